"""numpy's BLAS has one thread while firstdiff computes, and the user's number before and after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import firstdiff as fd
from builders.models import synthetic
from firstdiff import blas, pytest_plugin
from firstdiff.blas import one_thread
from firstdiff.model.probe import Probe
from firstdiff.model.synthetic import Llama
from firstdiff.pytest_plugin import FirstDiff
from firstdiff.runs import judge

TOKENS = (1, 70, 71, 72, 73)
USERS = 2
"""Threads that the user has chosen; two, since one core is enough to have them."""


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("model") / "model.gguf", Llama(n_layer=2))


@pytest.fixture(autouse=True)
def _the_users_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with threadpool_limits(limits=USERS, user_api="blas"):
        if threads() != {USERS}:
            pytest.skip(f"the threads of this numpy's BLAS cannot be set: {threadpool_info()}")
        yield


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of threads at every forward pass of the reference, once it has begun."""
    numbers: set[int] = set()
    call = Probe.__call__

    def watching(self: Probe, *given: Any, **attributes: Any) -> Any:
        if self.layer is None:
            numbers.update(threads())
        return call(self, *given, **attributes)

    monkeypatch.setattr(Probe, "__call__", watching)
    return numbers


@pytest.fixture
def trace(model: Path) -> Any:
    return fd.record(model, tokens=TOKENS, engine="reference:f32", bugs=["rope-base@1"], out="kept")


ASKED: dict[str, Callable[[Any, Path], object]] = {
    "record": lambda _, model: fd.record(model, tokens=TOKENS, engine="reference:f32"),
    "compare": fd.compare,
    "explain": lambda trace, model: fd.explain(trace, model=model),
    "plot": lambda trace, model: fd.plot.positions(trace, "Kcur_rope-1", model),
}


@pytest.mark.parametrize("verb", [pytest.param(v, marks=pytest.mark.notebook) if v == "plot" else v for v in ASKED])
def test_a_verb_computes_with_one_thread_and_gives_the_users_number_back(
    trace: Any, model: Path, verb: str, seen: set[int]
) -> None:
    seen.clear()
    ASKED[verb](trace, model)
    assert seen == {1}
    assert threads() == {USERS}


@pytest.mark.usefixtures("trace")
def test_the_pytest_plugin_computes_with_one_thread(
    model: Path, firstdiff: FirstDiff, seen: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest_plugin, "_out", lambda _, stem: tmp_path / stem)
    seen.clear()
    assert str(firstdiff.judge(model, "kept").diverging[0].site) == "Qcur_rope-1"
    assert seen == {1}
    assert threads() == {USERS}


def test_the_users_number_comes_back_after_an_error(trace: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        assert threads() == {1}
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "judge", failing)
    with pytest.raises(KeyboardInterrupt):
        fd.compare(trace, model)
    assert threads() == {USERS}


def test_the_last_of_several_at_once_gives_the_users_number_back() -> None:
    first, second = one_thread(), one_thread()
    with first:
        second.__enter__()
    assert threads() == {1}
    second.__exit__(None, None, None)
    assert threads() == {USERS}


@pytest.mark.parametrize(("given", "number"), [(None, "1"), ("3", "3")])
def test_the_command_has_one_thread_from_the_start_unless_the_user_says_otherwise(
    given: str | None, number: str
) -> None:
    script = "import os\nfrom firstdiff.cli import main\nmain(['--version'])\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    env |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == number


WIDE = "avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("said", "wide"),
    [
        (f"vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 {WIDE} fma\n\n", True),
        (f"vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 {WIDE.replace('avx512vl', '')}\n\n", False),
        (f"vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 {WIDE}\n\n", False),  # OpenBLAS knows it
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd\n\n", False),
        (None, False),
    ],
)
def test_amd_processors_with_avx512_are_told_by_what_linux_says(said: str | None, wide: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    told = tmp_path / "cpuinfo"
    if said is not None:
        told.write_text(said)
    assert blas._is_wide_amd(told) is wide
