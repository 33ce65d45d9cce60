"""Running an engine through the suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from shutil import rmtree

from firstdiff.conformance.definition import Test
from firstdiff.engines.opening import open_reference
from firstdiff.errors import CaptureError, UsageError
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError, NotDescribedError
from firstdiff.probing.arithmetics import ARITHMETICS, judged_in, nearest, nearest_of_one
from firstdiff.probing.asking import Answer
from firstdiff.probing.engine import BlackBox, NotStartedError, RefusedError, whole
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.judge import judge
from firstdiff.runs.run import Run
from firstdiff.verdict import SiteVerdict, Status, Verdict

NOT_SEARCHED = "not searched for a cause, because {base!r} is wrong already and nothing explains that"

UNEXPLAINED = "no hypothesis explains it"

HALVES = 2.0**-11
"""What one rounding to float16 changes a number by, at most. ggml looked up exponentials and SiLU in tables of float16
once: on the plain model that makes an error of 1.2e-4."""

AS_OF_HALVES = ", but it is as little as rounding something to float16 makes"

NOT_TOLD = "to test decoding, put {parts} into the command: it is how many tokens to run at a time ('8,1,1')"

GRAPH_NEEDED = "firstdiff judges architectures that it does not describe itself by llama.cpp's graph"


class Outcome(StrEnum):
    """What came of a test."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One test's result.

    Parameters
    ----------
    test, outcome
        Which, and what came of it. An engine refuses what it ends at with an exit code of its own; one that crashes,
        or gives other logits than those of the tokens, fails. A test is left out where the engine cannot be told
        how many tokens to run at a time, and where the reference cannot run its model: architectures that firstdiff
        does not describe itself need llama.cpp.
    says
        What is wrong, or why there is no result, in words; empty where nothing is.
    error, floor
        How far the logits are off, relative to their size, and what rounding may leave.
    verdict
        What is said of the model; None where there are no logits.
    """

    test: Test
    outcome: Outcome
    says: str = ""
    error: float | None = None
    floor: float | None = None
    verdict: Verdict | None = None


@dataclass(slots=True, eq=False)
class Conformance:
    """An engine that is run through the suite.

    Parameters
    ----------
    engine, folder
        The engine, and where models are written, one at a time.
    arithmetic, of_one_token
        What it computes in, as the first test that it runs shows; and what in where it is given one token, if that is
        something else, as tests of decoding show.
    progress, budget
        Shows which test is run; seconds that explaining one failure may take.
    """

    engine: BlackBox
    folder: Path
    arithmetic: str | None = None
    of_one_token: str | None = None
    progress: Progress = QUIET
    budget: float = 20.0
    _known: dict[str, Hypothesis] = field(default_factory=dict)
    _unexplained: set[str] = field(default_factory=set)

    def run(self, tests: Sequence[Test]) -> list[Result]:
        """Run the tests, one after another."""
        return [self._result(test) for test in tests]

    def _result(self, test: Test) -> Result:
        if test.at_a_time and not self.engine.decodes:
            return Result(test, Outcome.LEFT_OUT, NOT_TOLD)
        self.progress.say(f"testing {test.name}")
        models = self.folder / "model"
        models.mkdir(exist_ok=True)
        try:
            path = self._written(test, models)
            model = open_reference(path)
        except NotDescribedError as e:
            why = str(e).rpartition("would do, but ")[2]
            return Result(test, Outcome.LEFT_OUT, f"{GRAPH_NEEDED}: {why}")
        else:
            return self._asked(test, model)
        finally:
            rmtree(models, ignore_errors=True)

    def _asked(self, test: Test, model: Model) -> Result:
        try:
            logits = self.engine.logits(model.gguf.path, test.tokens, model.hp.n_vocab, test.at_a_time)
        except NotStartedError:
            raise
        except CaptureError as e:
            outcome = Outcome.REFUSED if isinstance(e, RefusedError) else Outcome.FAILED
            return Result(test, outcome, str(e).removeprefix("--engine: "))
        try:
            return self._judged(test, Answer(model, test.tokens, whole(logits, len(test.tokens)), test.at_a_time))
        except (ModelError, CaptureError) as e:  # weights that are not held as the plain ones are; llama.cpp gave up
            return Result(test, Outcome.LEFT_OUT, f"the reference cannot run it: {e}")

    def _written(self, test: Test, folder: Path) -> Path:
        try:
            return test.write(folder)
        except OSError as e:
            raise UsageError(f"{folder}: a model cannot be written ({e.strerror}): make room for it") from e

    def _judged(self, test: Test, answer: Answer) -> Result:
        if self.arithmetic is None:
            found = nearest(answer, self.engine.name, identity=False)
            self.arithmetic = None if found is None else found[1]
        named = self.arithmetic or ARITHMETICS[0]
        found_ = judged_in(answer, {}, self.engine.name, named)
        if found_.status is Status.DIVERGES and test.at_a_time:
            found_ = self._of_one_token(answer, named) or found_
        if found_.status is not Status.DIVERGES:
            return Result(test, Outcome.PASSED, "", found_.local_error, found_.floor)
        if test.base in self._unexplained:
            self._unexplained.add(test.name)
            return Result(test, Outcome.FAILED, NOT_SEARCHED.format(base=test.base), found_.local_error, found_.floor)
        verdict = replace(self._explained(answer, named), model={"file": test.name})
        if all(e.hypothesis is None for e in verdict.explanations):
            self._unexplained.add(test.name)
        return Result(
            test, Outcome.FAILED, _why(verdict, found_.local_error), found_.local_error, found_.floor, verdict
        )

    def _of_one_token(self, answer: Answer, arithmetic: str) -> SiteVerdict | None:
        """What is found where one token is computed otherwise than several; None where it is not."""
        if 1 not in answer.parts:
            return None
        one = self.of_one_token or nearest_of_one(answer, self.engine.name, arithmetic)
        if one is None:
            return None
        found = judged_in(answer, {}, self.engine.name, arithmetic, one)
        if found.status is Status.DIVERGES:
            return None
        self.of_one_token = one
        return found

    def _explained(self, answer: Answer, arithmetic: str) -> Verdict:
        """Explain a failure: by what explained an earlier one, or else by all hypotheses."""
        trace = answer.trace({}, self.engine.name, arithmetic)
        for table in (self._known, TABLE) if self._known else (TABLE,):
            verdict = judge(Run(answer.model, budget=self.budget, table=table), trace)
            if all(e.hypothesis is not None and e.measured is None for e in verdict.explanations):
                break
        named = {part for e in verdict.explanations for part in (e.hypothesis or "").split(" + ")}
        self._known |= {id_: TABLE[id_] for id_ in named if id_ in TABLE}
        return verdict


def _why(verdict: Verdict, error: float | None) -> str:
    """What explains a failure, in a few words."""
    told = [f"{e.says} ({e.hypothesis})" for e in verdict.explanations if e.hypothesis is not None]
    if told:
        return "; ".join(told)
    return UNEXPLAINED + (AS_OF_HALVES if error is not None and error < HALVES else "")
