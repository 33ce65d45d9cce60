"""Hypotheses in a candidate's own layout: they run on its own rows, and what is told is true of the candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from builders.hypotheses import OF_GRAPHS
from builders.judging import judge
from builders.known_faults import Plant, held, plant_known
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.blocks import table as blocks
from firstdiff.hypotheses.planting import Planted
from firstdiff.judging.closeup import Details
from firstdiff.judging.layout_options import candidates
from firstdiff.judging.layouts import HALF, PAIRS, Alignment
from firstdiff.judging.own_layout import OwnLayout, own_layout
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import F32
from firstdiff.model.attention import append, scores
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear, rms_norm, rope
from firstdiff.model.probe import Call, Probe
from firstdiff.model.terms import terms
from firstdiff.model.value import Value
from firstdiff.rope.fit import fits_of
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Verdict

TOKENS = [1, *range(60, 83)]
LAYER = 2
SHAPES = {"F32": {"n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 96}, "Q4_K_M": {"n_embd": 256, "n_ff": 256}}
OPTIONAL = {"llama": r"attn_[qkv].bias|rope_freqs.weight", "qwen3": ""}
ORDERS = {"llama": HALF, "qwen3": PAIRS}
"""The order in which an engine has the dimensions of its heads, where it is not the file's."""

WORKING_ON_HEADS = {linear, rms_norm, rope, append, scores}
TOUCHING = [
    id_
    for id_, h in TABLE.items()
    if h.where.ops is not None
    and WORKING_ON_HEADS.intersection(h.where.ops)
    and not h.outside_layers
    and id_ not in OF_GRAPHS
]
OF_BLOCKS = [id_ for id_ in TOUCHING if TABLE[id_] in blocks.TABLE]
ELSEWHERE = {
    *("code-unsigned", "field-order", "bf16-as-half", "block-size", "header-length"),
    *("code-table", "digit-order", "scale-exponent", "grid-entry", "sign-mask", "grid-delta", "grid-scale"),
}
"""Faults of blocks that the types of Q4_K_M do not have."""

READ_OTHERWISE = {("qk-permutation", None), ("rope-order", LAYER), ("rope-order", None)}
"""What has a test of its own."""

OTHERS = [
    (id_, layer)
    for id_ in TOUCHING
    for layer in (LAYER, None)
    if id_ not in (*OF_BLOCKS, "head-dim") and (id_, layer) not in READ_OTHERWISE
]
BIASES = {"bias-missing", "bias-twice"}


@cache
def of_architecture(arch: str, file_type: str, folder: Path) -> tuple[Model, OwnLayout]:
    """A model, and how an engine has it whose head dimensions stand in the other order."""
    head_dim = 16 if arch == "llama" and file_type == "F32" else 32
    shape = SHAPES[file_type] | {"n_layer": 4, "eps": 1e-4, "head_dim": head_dim, "optional": OPTIONAL[arch]}
    model = open_model(tiny(arch, folder, file_type=file_type, **shape))
    other = next(layout for layout in candidates("Qcur", model) if layout.reordered)
    own = own_layout(model, Alignment({"Qcur": other}))
    assert own is not None
    return model, own


@pytest.fixture(params=ORDERS)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def theirs(arch: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, OwnLayout]:
    return of_architecture(arch, "F32", tmp_path_factory.getbasetemp())


def planted(model: Model, own: OwnLayout, layer: int | None, *ids: str) -> Plant | None:
    """The dump of an engine of this layout that goes wrong; with a decoded step where no prompt shows it."""
    faults = [Planted(TABLE[id_], layer) for id_ in ids]
    dumps = (plant_known(model, TOKENS, faults, str(layer), decode=n, own=own) for n in (0, 1))
    return next((plant for plant in dumps if plant is not None), None)


def trace_of(theirs: tuple[Model, OwnLayout], layer: int | None, *ids: str) -> Trace:
    plant = planted(*theirs, layer, *ids)
    assert plant is not None
    return plant.trace("f32")


def assert_named(theirs: tuple[Model, OwnLayout], id_: str, layer: int | None) -> None:
    plant = planted(*theirs, layer, id_)
    assert plant is not None
    outcome = held(theirs[0], plant, "f32", name="own")
    assert (outcome.visible, outcome.site, outcome.found, outcome.accused) == (True, True, 1, ())
    assert outcome.named[0] in {"named", "equivalent"}


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize(("id_", "layer"), OTHERS)
def test_what_is_wrong_with_an_engine_in_another_order_is_named(
    theirs: tuple[Model, OwnLayout], arch: str, id_: str, layer: int | None
) -> None:
    if arch == "qwen3" and id_ in BIASES:
        assert planted(*theirs, layer, id_) is None
    else:
        assert_named(theirs, id_, layer)


@pytest.mark.slow
@pytest.mark.parametrize("id_", [i for i in OF_BLOCKS if i not in ELSEWHERE])
def test_what_is_wrong_with_blocks_of_rows_in_another_order_is_named(
    tmp_path_factory: pytest.TempPathFactory, id_: str
) -> None:
    assert_named(of_architecture("llama", "Q4_K_M", tmp_path_factory.getbasetemp()), id_, LAYER)


# What is told


def only_explanation(verdict: Verdict) -> tuple[str | None, str]:
    (explanation,) = verdict.explanations
    return explanation.hypothesis, explanation.says


@pytest.mark.parametrize("layer", [LAYER, None], ids=["one layer", "every layer"])
def test_wrong_pairs_are_those_of_the_candidates_own_order(
    theirs: tuple[Model, OwnLayout], arch: str, layer: int | None
) -> None:
    verdict = judge(theirs[0], trace_of(theirs, layer, "rope-pairing"))
    says = {
        "llama": "interleaved pairs, where the order of the head dimensions needs half-split ones",
        "qwen3": "half-split pairs, where the order of the head dimensions needs interleaved ones",
    }
    assert only_explanation(verdict) == ("rope-pairing", says[arch])
    assert {verdict.layouts[point] for point in ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope")} == {ORDERS[arch]}


def test_indices_are_those_of_the_candidates_dump(theirs: tuple[Model, OwnLayout], arch: str) -> None:
    """Whatever the base, the first pair is turned by the position: these are other dimensions in either order."""
    model, own = theirs
    verdict = judge(model, trace := trace_of(theirs, LAYER, "rope-base"))
    assert only_explanation(verdict)[0] == "rope-base"
    first = verdict.first
    assert first is not None
    assert first.worst is not None
    assert first.worst.there is not None
    where = first.worst.there
    assert trace[first.site][where] == pytest.approx(first.worst.candidate)
    assert own.there(first.site.point, np.indices(trace.shape(first.site))[2])[where] == first.worst.index[2]
    assert first.where is not None
    assert first.where["head_dim"] == {"llama": f"all but 0, {model.hp.head_dim // 2}", "qwen3": "all but 0, 1"}[arch]


@pytest.mark.parametrize("layer", [LAYER, None], ids=["one layer", "every layer"])
def test_pairs_written_back_in_the_other_order(theirs: tuple[Model, OwnLayout], layer: int | None) -> None:
    """At every layer it would be a layout of its own, were it not for the order of the products."""
    verdict = judge(theirs[0], trace_of(theirs, layer, "rope-order"))
    assert only_explanation(verdict)[0] == "rope-order"
    assert {s.point for s in verdict.diverging} == {"Qcur_rope", "Kcur_rope"}
    assert {s.layer for s in verdict.diverging} == ({LAYER} if layer else set(range(4)))


def test_rows_permuted_at_every_layer_are_in_the_files_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    """That the rotation then turns the wrong pairs is the one claim that is left."""
    theirs = of_architecture("llama", "F32", tmp_path_factory.getbasetemp())
    verdict = judge(theirs[0], trace_of(theirs, None, "qk-permutation"))
    says = "half-split pairs, where the order of the head dimensions needs interleaved ones"
    assert only_explanation(verdict) == ("rope-pairing", says)
    assert {s.point for s in verdict.diverging} == {"Qcur_rope", "Kcur_rope"}
    assert verdict.layouts == {}


def test_two_faults_at_one_call_are_made_on_the_candidates_rows(theirs: tuple[Model, OwnLayout]) -> None:
    verdict = judge(theirs[0], trace_of(theirs, LAYER, "rope-pairing", "rope-base"))
    assert only_explanation(verdict)[0] == "rope-pairing + rope-base"
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


# Calls, there and back


@dataclass
class Both(Probe):
    """Runs each call as the reference and as the candidate make it."""

    own: OwnLayout
    turned: list[str] = field(default_factory=list, init=False)

    def value(self, call: Call) -> Value:
        """Compute both; they are the same numbers, each in its own order."""
        right, theirs = call.compute(self.arithmetic), self.own.own(call)
        given = theirs.compute(self.arithmetic)
        np.testing.assert_allclose(given, self.own.there(call.point, right), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(self.own.back(call.point, given), self.own.laid_back(theirs).compute(F32))
        sizes, expected = terms(self.own.laid_back(theirs)), terms(call)
        assert (sizes is None) == (expected is None)
        if sizes is not None and expected is not None:
            np.testing.assert_allclose(sizes, expected, rtol=1e-5)
        if theirs is not call:
            self.turned.append(call.point)
        return Value(right)


def test_every_call_gives_the_same_on_the_candidates_rows(theirs: tuple[Model, OwnLayout], arch: str) -> None:
    model, own = theirs
    trace = trace_of(theirs, LAYER, "rope-pairing")
    probe = Both(F32, own)
    for _ in model.forward(trace.steps, probe):
        pass
    normed = {"Qcur_normed", "Kcur_normed"} if arch == "qwen3" else set()
    assert set(probe.turned) == {"Qcur", "Kcur", *normed, "Qcur_rope", "Kcur_rope", "k_cache", "kq"}


def test_an_engine_in_the_files_order_has_no_layout_of_its_own(theirs: tuple[Model, OwnLayout]) -> None:
    assert own_layout(theirs[0], Alignment()) is None


@pytest.mark.parametrize("id_", ["rope-pairing", "rope-base", "rope-sign"])
def test_the_rope_investigation_turns_the_candidates_own_pairs(theirs: tuple[Model, OwnLayout], id_: str) -> None:
    model, own = theirs
    for fit in fits_of(model, trace_of(theirs, None, id_), LAYER):
        assert fit.finding.id == id_
        assert own.model.rotation is not None
        assert fit.own == own.model.rotation.pairing


def test_a_closer_look_is_one_at_the_sites_as_they_were_judged(theirs: tuple[Model, OwnLayout]) -> None:
    trace = trace_of(theirs, None, "fused-split")  # what is found with this fault is given up again
    taken, again = Details(), Details()
    done = replayed(theirs[0], trace, details=taken)
    run_trace(theirs[0], trace, Replay.of(done.found, trace, done.alignment, details=again))
    assert taken.taken == again.taken
