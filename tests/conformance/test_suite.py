"""The suite: right engines pass in whatever they compute, and a bug fails the tests that isolate it."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.black_boxes import ReferenceBox
from builders.command_line import Command, assert_refused, strict
from builders.engines import compile_engine
from builders.own_engine import script
from firstdiff.conformance.blocks import half_scales, matrix
from firstdiff.conformance.running import AS_OF_HALVES, UNEXPLAINED, Conformance, Outcome, Result
from firstdiff.conformance.suite import suite
from firstdiff.conformance.telling import badge, exit_code, lines
from firstdiff.errors import CaptureError
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model import quants
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.quants import SUPPORTED
from firstdiff.probing.engine import RefusedError

RUN_BY = "--model {model} --tokens {tokens} --logits {logits}"
BY_LLAMA_CPP = {"yarn scaling", *(test.name for test in suite("full") if test.family is not None)}
"""Tests of what firstdiff does not describe itself: test_families.py has them."""


def ran(box: ReferenceBox, folder: Path, *names: str) -> list[Result]:
    tests = [test for test in suite("full") if test.name in names or (not names and test.name not in BY_LLAMA_CPP)]
    return Conformance(box, folder).run(tests)


def failed(results: Sequence[Result]) -> list[str]:
    return [r.test.name for r in results if r.outcome is Outcome.FAILED]


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
@pytest.mark.parametrize("tiny", [False, True])
def test_random_blocks_have_values_of_the_size_asked_for(kind: str, tiny: bool) -> None:  # noqa: FBT001 - a parameter
    made = matrix(np.random.default_rng(0), kind, (16, 256), 0.05, tiny=tiny)
    assert made.data is not None
    assert made.nbytes == made.data.nbytes
    values = quants.dequantize(made.data, made.kind)
    assert np.isfinite(values).all()
    size = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    if tiny and half_scales(kind):
        blocks = made.data.reshape(-1, made.kind.nbytes)
        scales = [np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) for at in half_scales(kind)]
        assert all((of > 0).all() and (of < 2.0**-14).all() for of in scales)
        assert size > 0
    elif kind in ("MXFP4", "NVFP4"):  # their scales are powers of two, or of three bits
        assert 0.001 < size < 2
    else:
        assert size == pytest.approx(0.05, rel=0.3)


def test_names_are_unique_and_say_what_they_isolate() -> None:
    tests = suite("full")
    assert len({test.name for test in tests}) == len(tests)
    assert all(test.isolates for test in tests)
    assert tests[0].name == suite("core")[0].name == "plain"
    assert {test.name for test in suite("core")} < {test.name for test in tests}


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["f32", "bf16", "f16-operands", "ggml-cpu+kv=f16"])
def test_a_right_engine_passes_in_whatever_it_computes(tmp_path: Path, arithmetic: str) -> None:
    results = ran(ReferenceBox(arithmetic=arithmetic_named(arithmetic), decodes=True), tmp_path)
    assert {r.outcome for r in results} == {Outcome.PASSED}, failed(results)
    assert exit_code(results) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_last_tokens_logits_are_enough(tmp_path: Path) -> None:
    box = ReferenceBox([Planted(TABLE["bias-missing"])], last=True)
    assert failed(ran(box, tmp_path, "plain", "rope factors", "biases", "type Q8_0")) == ["biases"]


@pytest.mark.parametrize("bug", ["cache-slot", "cache-stale", "rope-position"])
def test_what_goes_wrong_in_decoding_only_fails_the_tests_of_decoding(tmp_path: Path, bug: str) -> None:
    box = ReferenceBox([Planted(TABLE[bug])], decodes=True)
    results = ran(box, tmp_path, "plain", "two tokens", "decoding", "one head of keys: decoding")
    assert failed(results) == ["decoding", "one head of keys: decoding"]
    assert f"({bug})" in results[2].says


def test_parts_of_several_tokens_are_judged_where_one_token_has_an_arithmetic_of_its_own(tmp_path: Path) -> None:
    running = Conformance(ReferenceBox([Planted(TABLE["rope-position"])], decodes=True), tmp_path, of_one_token="f16")
    results = running.run([test for test in suite("full") if test.name in ("plain", "prompt in two parts")])
    assert [r.outcome for r in results] == [Outcome.PASSED, Outcome.FAILED]


def test_decoding_is_left_out_where_the_command_has_no_place_for_it(tmp_path: Path) -> None:
    results = ran(ReferenceBox(), tmp_path, "plain", "decoding", "prompt in two parts")
    assert [r.outcome for r in results] == [Outcome.PASSED, Outcome.LEFT_OUT, Outcome.LEFT_OUT]
    assert badge(results)["message"] == "1 of 1"
    assert "\n".join(lines(results, "f32", width=200)).count("put {parts} into the command") == 1


def test_an_engine_that_does_not_read_a_type_refuses_it(tmp_path: Path) -> None:
    class Refuses(ReferenceBox):
        def logits(
            self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()
        ) -> npt.NDArray[np.float32]:
            if self.runs:
                raise RefusedError("--engine: the engine ended with exit code 1")
            return super().logits(model, tokens, width, parts)

    results = ran(Refuses(), tmp_path, "plain", "type Q4_K")
    assert [r.outcome for r in results] == [Outcome.PASSED, Outcome.REFUSED]
    assert exit_code(results) == 0
    assert badge(results)["message"] == "1 of 1"
    text = "\n".join(lines(results, "f32", width=80))
    assert "1 of 2 tests passed, 0 failed, 1 refused by the engine. The engine computes as f32 does." in text


def test_an_engine_that_crashes_or_gives_other_logits_fails(tmp_path: Path) -> None:
    class Crashes(ReferenceBox):
        def logits(
            self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()
        ) -> npt.NDArray[np.float32]:
            if self.runs:
                raise CaptureError("--engine: the engine crashed (SIGSEGV) after 0.1 s")
            return super().logits(model, tokens, width, parts)

    results = ran(Crashes(), tmp_path, "plain", "one token")
    assert [r.outcome for r in results] == [Outcome.PASSED, Outcome.FAILED]
    assert exit_code(results) == 1


def test_an_error_as_small_as_rounding_to_float16_is_said_to_be_so(tmp_path: Path) -> None:
    class Rounds(ReferenceBox):
        def logits(
            self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()
        ) -> npt.NDArray[np.float32]:
            given = super().logits(model, tokens, width, parts)
            noise = np.random.default_rng(0).standard_normal(given.shape)
            return (given * (1 + 1e-4 * noise)).astype(np.float32)

    (result,) = ran(Rounds(), tmp_path, "plain")
    assert result.outcome is Outcome.FAILED
    assert result.says == UNEXPLAINED + AS_OF_HALVES


def test_every_failure_of_a_public_engine_has_a_reason_that_was_confirmed() -> None:
    told = (Path(__file__).parents[1] / "data" / "public-engines.txt").read_text(encoding="utf-8")
    assert "ctransformers" in told
    assert "UNCONFIRMED" not in told


# The command


ISOLATED = {
    None: [],
    "rope-factors": ["rope factors"],
    "bias-missing": ["biases"],
    "f16-subnormal": ["subnormal scales of Q4_0", "subnormal scales of Q8_0"],
    "min-missing": ["type Q4_1"],
}


@pytest.mark.parametrize("bug", ISOLATED)
def test_a_bug_of_the_engine_in_c_fails_the_tests_that_isolate_it(
    firstdiff: Command, compiler: str, tmp_path: Path, bug: str | None
) -> None:
    engine = compile_engine(tmp_path, bug, None, flags=("-O0",))
    done = firstdiff("conformance", "--engine", f"{shlex.quote(str(engine))} {RUN_BY}", "--json")
    tests = dict(strict(done.out))["tests"]
    assert [test["name"] for test in tests if test["outcome"] == "failed"] == ISOLATED[bug]
    assert done.code == (1 if bug else 0), done.err
    if bug is not None:
        assert all(bug in test["says"] for test in tests if test["outcome"] == "failed")


def test_results_are_written_for_ci_too(firstdiff: Command, compiler: str, tmp_path: Path) -> None:
    engine = compile_engine(tmp_path, "rope-factors", None, flags=("-O0",))
    command = f"{shlex.quote(str(engine))} {RUN_BY}"
    junit, shield = tmp_path / "junit.xml", tmp_path / "badge.json"
    only = ("--only", "rope factors", "--only", "biases")
    done = firstdiff("conformance", "--engine", command, *only, "--junit", junit, "--badge", shield)
    assert done.code == 1
    assert "rope factors  failed" in done.out
    assert "isolates a factor for each frequency: rope_freqs.weight" in " ".join(done.out.split())
    cases = ET.parse(junit).getroot().iter("testcase")
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["rope factors"]
    assert json.loads(shield.read_text())["message"] == "2 of 3"


def test_a_test_that_is_not_there_is_refused(firstdiff: Command) -> None:
    assert_refused(firstdiff("conformance", "--engine", f"true {RUN_BY}", "--only", "nothing"), 2, "no test 'nothing'")


def test_a_command_that_is_not_there_ends_at_once(firstdiff: Command) -> None:
    assert_refused(firstdiff("conformance", "--engine", f"nosuch-engine {RUN_BY}"), 3, "not found: nosuch-engine")


def test_an_engine_that_runs_nothing_is_no_pass(firstdiff: Command, tmp_path: Path) -> None:
    engine = script(tmp_path / "engine", "exit 1")
    done = firstdiff("conformance", "--engine", f"{shlex.quote(str(engine))} {RUN_BY}", "--only", "plain")
    assert done.code == 4
    assert "0 of 1 tests passed, 0 failed, 1 refused" in done.out
