"""Dumps stored in fewer digits than were computed with, and numbers at the ends of their range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from builders.judging import replayed
from builders.known_faults import held, places, planted_at, tokens_of
from builders.models import synthetic
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import record_planted
from firstdiff.judging import floors
from firstdiff.judging.measure import SMALLEST_F32, measure, overflowing, within_f16
from firstdiff.model.arithmetic import F16, F32, F64, Array
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import swiglu
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms
from firstdiff.verdict import SiteVerdict, Status

PROMPT = [1, *range(300, 311)]
AXES = axes_of("l_out")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("narrow"), n_layer=3))


def in_f16(model: Model, **altered: Callable[[Array], Array]) -> dict[str, SiteVerdict]:
    """Verdicts of layer 1 on a clean run that was stored in f16, some of its points altered before."""
    writer = MemoryWriter()
    record_planted(model, PROMPT, writer, arithmetic=F64, decode=0)
    tensors = dict(writer.tensors)
    for point, alter in altered.items():
        tensors[Site(0, 1, point)] = alter(tensors[Site(0, 1, point)])
    with np.errstate(over="ignore"):
        tensors = {site: x.astype(np.float16) for site, x in tensors.items()}
    trace = Trace.from_arrays(writer.steps, tensors, engine={"name": "narrow", "arithmetic": "f32"}, model={})
    return {s.point: s for s in replayed(model, trace, F32) if s.layer == 1}


@pytest.mark.parametrize(
    ("id_", "place", "dtype"),
    [
        ("scale-missing", "last", "f16"),  # scores eight times as large: so is their rounding
        ("scale-missing", "middle", "bf16"),
        ("rope-on-v", "first", "f16"),  # where a copy should be, which rounds nothing
    ],
)
def test_a_fault_that_enlarges_rounding_is_named_all_the_same(
    smollm2_model: Model, id_: str, place: str, dtype: str
) -> None:
    hypothesis, tokens = TABLE[id_], tokens_of("SmolLM2")
    planted = planted_at(smollm2_model, tokens, hypothesis, places(hypothesis, smollm2_model)[place], place)
    assert planted is not None
    outcome = held(smollm2_model, planted, dtype, name="SmolLM2")
    assert outcome.site
    assert outcome.accused == ()
    assert outcome.named == ("named",)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_run_that_overflows_is_judged_without_a_warning(smollm2_model: Model, dtype: str) -> None:
    planted = planted_at(smollm2_model, tokens_of("SmolLM2")[:8], TABLE["norm-missing"], None, "all")
    assert planted is not None
    assert any(not np.isfinite(planted.trace(dtype)[site]).all() for site in planted.tensors)
    outcome = held(smollm2_model, planted, dtype, name="SmolLM2")
    assert outcome.site
    assert outcome.named == ("named",)


def test_where_all_gates_of_a_token_are_below_what_a_float32_sigmoid_holds_engines_may_differ() -> None:
    rng = np.random.default_rng(0)
    gate = np.float32(-95 - 200 * rng.random((2, 64)))
    gate[0, 5] = -90.86  # where one float32 engine has 0 and the other 1e-36
    up = np.float32(100 * rng.standard_normal((2, 64)))
    theirs = (gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)
    call = Call(0, 0, "ffn_swiglu", swiglu, (gate, up), {})
    ours = call.compute(F32)
    assert theirs[0, 5] != 0
    assert ours[0, 5] == 0
    floor = floors.floor(F32, [call])
    assert measure(theirs, ours, axes=AXES, floor=floor).error > floor
    assert measure(theirs, ours, axes=AXES, floor=floor, terms=lambda: terms(call)).error <= floor


def test_a_swiglu_of_ordinary_gates_has_no_such_excuse() -> None:
    rng = np.random.default_rng(1)
    gate, up = (np.float32(rng.standard_normal((2, 64))) for _ in range(2))
    call = Call(0, 0, "ffn_swiglu", swiglu, (gate, up), {})
    ours = call.compute(F32)
    off = ours * np.float32(1 + 1e-5)
    assert measure(off, ours, axes=AXES, floor=1e-6, terms=lambda: terms(call)).error == pytest.approx(1e-5, rel=0.1)


def test_numbers_below_the_normal_ones_of_float32_may_be_zero() -> None:
    ours = np.full((1, 8), 0.9 * SMALLEST_F32, np.float32)
    assert measure(np.zeros_like(ours), ours, axes=AXES, floor=1e-6).error == 0
    assert measure(np.zeros_like(ours), 2 * ours, axes=AXES, floor=1e-6).error == 1


@pytest.mark.parametrize(("kind", "computed", "taken"), [
    ("f16", 65400.0, 65400.0), ("f16", 64896.0, np.inf), ("f16", -65400.0, np.inf),
    ("bf16", 3.375e38, 3.375e38), ("bf16", 65400.0, np.inf), (None, 65400.0, np.inf),
])  # fmt: skip
def test_infinity_is_as_good_as_the_largest_number_of_the_dtype_that_it_was_stored_in(
    kind: str | None, computed: float, taken: float
) -> None:
    found = overflowing(np.float32([[np.inf, 1.0]]), np.float32([[computed, 2.0]]), (kind,), 0.0)
    assert found.tolist() == np.float32([[taken, 1.0]]).tolist()


def test_infinity_may_be_a_number_that_is_off_by_the_floor() -> None:
    recorded, computed = np.float32([[-np.inf]]), np.float32([[-64896.0]])
    assert overflowing(recorded, computed, ("f16",), 0.01) == computed


def test_what_f16_rounds_off_below_its_normal_numbers_is_no_error_and_more_is() -> None:
    computed = np.float32([[2e-7, 3e-6, 1.0]])
    recorded = computed.astype(np.float16).astype(np.float32)
    assert (within_f16(recorded, computed, 0.0) == computed)[0, :2].all()
    assert within_f16(recorded + np.float32(1e-6), computed, 0.0)[0, 0] != computed[0, 0]


def test_a_small_row_has_lost_more_than_a_large_one() -> None:
    call = Call(0, 0, "Qcur", swiglu, (), {})
    rows = np.ones((4, 3, 64))
    assert floors.stored(F32, call, "f16", rows) == F16.floor
    rows[2, 1] = 2.0**-16
    assert floors.stored(F32, call, "f16", rows) == 4 * F16.floor
    rows[2, 1] = 0
    assert floors.stored(F32, call, "f16", rows) == F16.floor
    assert floors.stored(F32, call, "f32", rows) == 0


def test_what_was_stored_as_infinity_accuses_nobody_downstream(small: Model) -> None:
    clean = in_f16(small)
    assert {s.status for s in clean.values()} == {Status.AGREES}
    odd = in_f16(small, ffn_out=lambda x: x * np.float32(1.01))
    assert odd["ffn_out"].status is Status.DIVERGES
    huge = {
        "ffn_gate": lambda x: np.full_like(x, 1000.0),
        "ffn_up": lambda x: np.full_like(x, 1000.0),
        "ffn_swiglu": lambda x: np.full_like(x, 1e6),  # infinity in f16, and rightly so
    }
    beyond = in_f16(small, **huge, ffn_out=lambda x: x * np.float32(1.01))
    assert beyond["ffn_gate"].status is Status.DIVERGES
    assert beyond["ffn_swiglu"].status is Status.INHERITS
    assert beyond["ffn_out"].status is Status.NOT_COMPARABLE
    assert "stored in f16 as infinity" in (beyond["ffn_out"].reason or "")
