"""Families: llama.cpp passes, each test fails an engine that ignores what it isolates, and causes are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.black_boxes import ReferenceBox
from firstdiff.conformance import definition, running
from firstdiff.conformance.families import Family
from firstdiff.conformance.running import Conformance, Outcome, Result
from firstdiff.conformance.suite import suite
from firstdiff.conformance.telling import exit_code, lines
from firstdiff.dumps import Step
from firstdiff.engines.opening import open_reference
from firstdiff.engines.reference import Recording
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.arithmetic import BF16, F32
from firstdiff.model.errors import NotDescribedError
from firstdiff.model.graph.reference import GraphArchitecture

TESTS = {test.name: test for test in suite("full")}
OF_FAMILIES: dict[str, Family] = {name: test.family for name, test in TESTS.items() if test.family is not None}
GRAPHS = ("yarn scaling", *OF_FAMILIES)
"""What firstdiff does not describe itself."""

DECODING = tuple(name for name, test in TESTS.items() if test.at_a_time)
CHANGED = tuple(name for name in OF_FAMILIES if ": " in name and "long prompt" not in name and name not in DECODING)
CHOOSING = tuple(name for name, of in OF_FAMILIES.items() if 0 < of.keys.get("expert_used_count", 0) < 4)  # type: ignore[operator]

Floats = npt.NDArray[np.float32]


@dataclass
class LlamaBox:
    """llama.cpp, in this process."""

    name: str = "llama.cpp"
    decodes: bool = True

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        import llama_cpp

        engine = llama_cpp.Llama(str(model), n_ctx=128, n_batch=128, logits_all=True, verbose=False, n_threads=1)
        for start, end in pairwise([0, *accumulate(parts or (len(tokens),))]):
            engine.eval(tokens[start:end])
        given = np.array(engine.scores[: len(tokens)], np.float32)
        engine.close()
        assert given.shape[1] == width
        return given


@dataclass
class Ignoring(ReferenceBox):
    """The reference on other families than the files hold: an engine that ignores what is changed in them."""

    family: Family | None = None

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        if self.runs:  # the plain model is left as it is
            folder = model.parent / "ignored"
            folder.mkdir()
            model = definition.Test("ignored", "", family=self.family).write(folder)
        return super().logits(model, tokens, width, parts)


def ran(box: ReferenceBox | LlamaBox, folder: Path, *names: str, budget: float = 20.0) -> list[Result]:
    return Conformance(box, folder, budget=budget).run([TESTS[name] for name in ("plain", *names)])


def outcomes(results: Sequence[Result]) -> list[str]:
    return [str(r.outcome) for r in results[1:]]


@pytest.mark.llama
@pytest.mark.slow
def test_llama_cpp_passes(tmp_path: Path) -> None:
    angles = [name for name in TESTS if name.startswith("angles")]
    results = ran(LlamaBox(), tmp_path, *GRAPHS, *angles)
    assert [(r.test.name, r.outcome, r.says) for r in results if r.outcome is not Outcome.PASSED] == []


@pytest.mark.llama
@pytest.mark.slow
def test_llama_cpp_reads_every_tensor_of_a_file(tmp_path: Path) -> None:
    for name in OF_FAMILIES:
        written = open_reference(TESTS[name].write(tmp_path)).written
        assert isinstance(written, GraphArchitecture), name
        written.prepare([(3, 4, 5)])
        assert written.unread == (), name


def without(changed: Family, base: Family) -> Family:
    """A family with what a test changes in its base taken back, and the same random values."""
    if changed.keys != base.keys:
        return replace(changed, keys=base.keys, layer=base.layer)
    return replace(changed, sizes=base.sizes, centres=base.centres, kinds=base.kinds)


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_an_engine_that_ignores_what_is_changed_fails(name: str, tmp_path: Path) -> None:
    family = without(OF_FAMILIES[name], OF_FAMILIES[TESTS[name].base])
    if name == "deepseek2: bias of the choice":
        family = replace(family, sizes={"exp_probs_b.bias": 0.0})
    assert outcomes(ran(Ignoring(family=family), tmp_path, name, budget=0.1)) == ["failed"]


@dataclass
class Forgetful(ReferenceBox):
    """The reference, with nothing left of earlier parts when a later one is run."""

    decodes: bool = True

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        ends = [0, *accumulate(parts or (len(tokens),))]
        return np.concatenate([super(Forgetful, self).logits(model, tokens[a:b], width) for a, b in pairwise(ends)])


@pytest.mark.llama
@pytest.mark.slow
def test_an_engine_that_forgets_earlier_parts_fails_all_tests_of_decoding(tmp_path: Path) -> None:
    assert len(DECODING) > 10
    results = ran(Forgetful(), tmp_path, *DECODING, budget=0.1)
    assert [r.test.name for r in results[1:] if r.outcome is not Outcome.FAILED] == []


def planted(bug: str, folder: Path, *names: str) -> dict[str, str]:
    results = ran(ReferenceBox([Planted(TABLE[bug])]), folder, *names)
    assert results[0].outcome is Outcome.PASSED
    return {r.test.name: r.says for r in results[1:] if r.outcome is Outcome.FAILED}


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "passes", "fails"),
    [
        ("window-missing", "gemma2", "gemma2: window"),
        ("sink-missing", "gpt-oss", "gpt-oss: sinks"),
        ("expert-missing", "mixtral: one expert", "qwen3moe"),
        ("norm-rms", "granite", "starcoder2"),
        ("norm-bias-missing", "granite", "gpt2"),
        ("gelu-wrong", "olmo2", "gemma"),
    ],
)
def test_a_fault_of_a_family_is_named(bug: str, passes: str, fails: str, tmp_path: Path) -> None:
    failed = planted(bug, tmp_path, passes, fails)
    assert set(failed) == {fails}
    assert f"({bug})" in failed[fails]


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize("name", CHOOSING)
def test_no_choice_of_experts_is_near_a_tie(name: str, tmp_path: Path) -> None:
    test, used = TESTS[name], OF_FAMILIES[name].keys["expert_used_count"]
    assert isinstance(used, int)
    probe = Recording(F32)
    model = open_reference(test.write(tmp_path))
    list(model.forward([Step(test.tokens, tuple(range(len(test.tokens))))], probe))
    tensors = probe.finish()
    layers = next(
        made
        for part in ("ffn_moe_probs_biased", "ffn_moe_logits_biased", "ffn_moe_logits", "ffn_moe_probs")
        if (made := [np.asarray(x) for key, x in tensors.items() if key.rpartition("-")[0] == part])
    )
    for x in layers:
        scores = x.reshape(len(test.tokens), -1)  # [token, expert]
        ranked = np.sort(scores, 1)[:, ::-1]
        assert (ranked[:, used - 1] - ranked[:, used]).min() > scores.std() / 13
        assert np.unique(np.argsort(-scores, 1)[:, :used]).size == scores.shape[1]


@pytest.mark.llama
def test_a_family_whose_model_fails_without_a_cause_is_not_searched_again(tmp_path: Path) -> None:
    other = replace(OF_FAMILIES["gpt2"], seed=1)
    results = ran(Ignoring(family=other), tmp_path, "gpt2", "gpt2: long prompt", "granite", budget=0.1)
    assert [r.says for r in results][2] == running.NOT_SEARCHED.format(base="gpt2")


@pytest.mark.llama
def test_a_right_engine_passes_in_bfloat16(tmp_path: Path) -> None:
    names = ("gemma2", "mixtral", "gpt-oss: MXFP4 experts", "deepseek2", "mamba", "lfm2")
    assert set(outcomes(ran(ReferenceBox(arithmetic=BF16), tmp_path, *names))) == {"passed"}


def test_families_are_left_out_where_llama_cpp_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> None:
        raise NotDescribedError(
            f"{path}: no; llama.cpp's own graph would do, but llama.cpp is not installed: install it"
        )

    results = ran(ReferenceBox(), tmp_path)
    monkeypatch.setattr(running, "open_reference", missing)
    results += ran(ReferenceBox(), tmp_path, "gemma2", "mamba")[1:]
    assert outcomes(results) == ["left out", "left out"]
    assert exit_code(results) == 0
    text = "\n".join(lines(results, "f32", width=200))
    assert text.count("llama.cpp is not installed") == 1
    assert "1 of 3 tests passed, 0 failed, 2 left out." in text
