"""The pytest plugin: a ``firstdiff.toml`` as test items, and the fixture ``firstdiff``.

It does nothing where it is not asked to: a ``firstdiff.toml`` is collected where it is named, on the command line or
in ``testpaths``, and the fixture where a test takes it. Only then is anything but this module imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from firstdiff.gate.config import GateCase, GateConfig
    from firstdiff.verdict import Verdict
    from firstdiff.verdict.gated import Checked

LONGEST = 150  # characters of a test's folder: file systems take 255 bytes
FILE = "firstdiff.toml"  # or a name that ends so, such as metal.firstdiff.toml


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("firstdiff")
    group.addoption(
        "--firstdiff-regen", action="store_true", help="write firstdiff's baselines anew: commit them afterwards"
    )
    group.addoption(
        "--firstdiff-out", metavar="DIR", help="folder for traces, verdicts and pages (default: in firstdiff-runs/)"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a ``firstdiff.toml`` that is named."""
    if not file_path.name.endswith(FILE) or not parent.session.isinitpath(file_path):
        return None
    gate: GateFile = GateFile.from_parent(parent, path=file_path)
    return gate


class GateFile(pytest.File):
    """A ``firstdiff.toml``."""

    def collect(self) -> Iterable[pytest.Item]:
        """One item a case."""
        from firstdiff.errors import exit_code, told
        from firstdiff.gate.config import read_config

        try:
            config = read_config(self.path)
        except Exception as e:
            if exit_code(e) is None:
                raise
            raise self.CollectError(f"firstdiff: {told(e)}") from None
        for case in config.cases:
            item: GateItem = GateItem.from_parent(self, name=case.name, config_=config, case=case)
            yield item


class GateItem(pytest.Item):
    """One case."""

    def __init__(self, *, config_: GateConfig, case: GateCase, **given: Any) -> None:  # noqa: ANN401 - pytest's own
        super().__init__(**given)
        self._config, self._case = config_, case

    def runtest(self) -> None:
        """Judge the case, and fail with what is wrong."""
        from firstdiff.blas import one_thread
        from firstdiff.gate.cases import check_case

        out = _out(self.config, self.path.stem) / self._case.name
        regen = bool(self.config.getoption("--firstdiff-regen"))
        with one_thread():
            checked = check_case(self._case, self._config, out=out, regen=regen)
        _settle(self, checked)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the case is, and what it is called."""
        return self.path, None, f"firstdiff: {self.name}"


class FirstDiff:
    """What the fixture `firstdiff` gives: judging a dump that a test has made."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._count = 0

    def judge(
        self, model: str | Path, trace: str | Path, *, tokens: Iterable[int] | None = None, names: str | None = None
    ) -> Verdict:
        """Judge a trace, whatever comes of it.

        Parameters
        ----------
        model
            The GGUF file.
        trace
            What the engine dumped.
        tokens
            The prompt's token ids, where the dump does not hold them.
        names
            How its names are to be understood, as for ``firstdiff run --names``.
        """
        return self._judged(model, trace, tokens, names)[0]

    def check(
        self, model: str | Path, trace: str | Path, *, tokens: Iterable[int] | None = None, names: str | None = None
    ) -> Verdict:
        """Judge a trace, and fail the test unless it agrees. Parameters as of :meth:`judge`."""
        from firstdiff.commands.printing import alone
        from firstdiff.runs.pages import report_of

        verdict, out = self._judged(model, trace, tokens, names)
        report = report_of(verdict, out, passes=verdict.exit_code == 0)
        _settle(self._request.node, alone(verdict, report, self._request.node.name))
        return verdict

    def _judged(
        self, model: str | Path, trace: str | Path, tokens: Iterable[int] | None, names: str | None
    ) -> tuple[Verdict, Path]:
        from firstdiff.blas import one_thread
        from firstdiff.engines.threads import threads_for
        from firstdiff.errors import exit_code, told
        from firstdiff.runs import candidates
        from firstdiff.runs.folder import keep_verdict
        from firstdiff.runs.prompt import Input
        from firstdiff.runs.run import begun

        node = self._request.node
        name = "".join(c if c.isalnum() or c in "._" else "-" for c in node.nodeid)[-LONGEST:]
        out = _out(node.config, "tests") / (name if not self._count else f"{name}-{self._count + 1}")
        self._count += 1
        source = Input(None if tokens is None else tuple(tokens))
        command = ["run", str(model), "--candidate", str(trace)]
        command += [] if source.tokens is None else ["--tokens", ",".join(map(str, source.tokens))]
        command += [] if names is None else ["--names", names]
        try:
            with one_thread():
                run = begun(Path(model), out=out, threads=threads_for(Path(model)), detailed=True)
                (judged,) = candidates.judge_candidates(run, [Path(trace)], source, names=names)
            verdict = keep_verdict(out, judged.verdict, command)
        except Exception as e:
            if exit_code(e) is None:
                raise
            raise pytest.fail.Exception(f"firstdiff: {told(e)}", pytrace=False) from None
        return verdict, out


@pytest.fixture
def firstdiff(request: pytest.FixtureRequest) -> FirstDiff:
    """Judging dumps: ``firstdiff.check(model, trace)`` fails the test where a tensor goes wrong."""
    return FirstDiff(request)


_OUT = pytest.StashKey[Path]()


def _out(config: pytest.Config, stem: str) -> Path:
    """The session's folder: one that is not there yet, unless the user names one."""
    if _OUT not in config.stash:
        from firstdiff.runs.folder import run_folder

        given = config.getoption("--firstdiff-out")
        config.stash[_OUT] = Path(given) if given else config.rootpath / run_folder(Path("pytest"))
    return config.stash[_OUT] / stem


def _settle(node: pytest.Item, checked: Checked) -> None:
    """Note what was found as properties of the test, and fail it where it does not pass."""
    from firstdiff.reports.junit import clean, properties, text

    node.user_properties += [(key, clean(value)) for key, value in properties(checked)]
    if not checked.passes:
        pytest.fail(clean(text(checked)), pytrace=False)  # no line of Python is wrong
