"""The measurements that the floors come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.engines import recorded_by_llama_cpp
from builders.judging import dump, replayed
from builders.relaid import on_disk
from builders.tiny_models import tiny
from firstdiff.dumps import Site, Trace
from firstdiff.dumps.tensors import Held
from firstdiff.judging import floors
from firstdiff.model import quants
from firstdiff.model.arithmetic import F16, F32, GGML_CPU, arithmetic_named
from firstdiff.model.attention import soft_max, visible
from firstdiff.model.engine import Model, open_model
from firstdiff.model.narrowing import narrowed
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rounding import round_to
from firstdiff.model.terms import terms
from firstdiff.model.weights import Weight
from firstdiff.verdict import Status

FRANCE = [1780, 314, 260, 3575, 282, 4649, 47]  # "What is the capital of France?"


@pytest.fixture(scope="module")
def theirs(llama: None, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return recorded_by_llama_cpp(smollm2, tmp_path_factory.mktemp("floors") / "trace", FRANCE, decode=4)[0]


@pytest.fixture(scope="module")
def small(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("narrowed")
    return open_model(tiny("llama", folder, n_head=4, n_head_kv=2, head_dim=128))


KEPT: dict[str, tuple[Callable[[Site], bool], float]] = {
    "products without their norms": (lambda s: s.point not in ("attn_norm", "ffn_norm"), 1e-3),
    "no scores": (lambda s: s.point not in ("kq", "kq_soft_max"), 5e-4),
    "both sums of a layer": (lambda s: s.layer is None or s.point in ("ffn_inp", "l_out"), 1e-2),
    "layer outputs": (lambda s: s.layer is None or s.point == "l_out", 1e-2),
    "logits alone": (lambda s: s.point == "result_output", 0.15),
}


@pytest.mark.parametrize("kept", KEPT)
def test_a_clean_run_with_points_missing_stays_below_the_floor_of_its_segments(
    smollm2_model: Model, theirs: Trace, kept: str
) -> None:
    keep, seen = KEPT[kept]
    sites = replayed(smollm2_model, theirs.without(lambda site: not keep(site)), GGML_CPU)
    assert [s.site for s in sites if s.status is Status.DIVERGES] == []
    segments = [s.local_error for s in sites if s.segment and s.local_error is not None]
    assert segments
    assert max(segments) < seen


def test_cancelling_parts_make_llama_cpps_own_sums_inexact(smollm2_model: Model, theirs: Trace) -> None:
    site = Site(2, 26, "attn_out")
    x, product = theirs[Site(2, 26, "kqv_out")], theirs[site].astype(np.float64)
    weight = smollm2_model.weights.layer(26)["attn_output.weight"]
    rounded, sums = quants.round_activations(x, weight.kind)
    minima = weight.minima(0, weight.shape[0])
    assert sums is not None
    assert minima is not None
    exact = rounded.astype(np.float64) @ weight.values().T.astype(np.float64)
    exact += sums.astype(np.float64) @ minima.T.astype(np.float64)
    ours = linear(x, weight, arithmetic=GGML_CPU)
    size = np.linalg.norm(exact)
    summed = terms(Call(2, 26, "attn_out", linear, (x, weight), {}))
    assert summed is not None
    assert np.linalg.norm(ours - exact) / size < 3e-7
    assert np.linalg.norm(product - exact) / size < 2e-6
    assert np.linalg.norm(summed) / size > 10  # the parts are that much larger than what is left of them
    assert np.linalg.norm(product - exact) / np.linalg.norm(summed) < 2e-7


def random_weight(n: int, kind: str) -> Weight:
    rng = np.random.default_rng(n)
    values = rng.standard_normal((64, n), np.float32)
    return Weight("w", BY_NAME[kind], values.shape, values.reshape(-1).view(np.uint8), dense=values)


@pytest.mark.parametrize("n", [576, 2048, 8192, 14336])
def test_a_float32_sum_of_one_term_after_another_stays_below_its_floor(n: int) -> None:
    weight = random_weight(n, "F32")
    x = np.random.default_rng(1).standard_normal((8, n), np.float32)
    naive = np.stack([np.add.accumulate(weight.values() * row, axis=1, dtype=np.float32)[:, -1] for row in x])
    exact = x.astype(np.float64) @ weight.values().T.astype(np.float64)
    error = (np.linalg.norm(naive - exact, axis=1) / np.linalg.norm(exact, axis=1)).max()
    assert error < 3e-8 * np.sqrt(n) + 1e-7
    assert error < floors.floor(F32, [Call(0, 0, "ffn_out", linear, (x, weight), {})]) / 1.2


def test_activations_stored_in_f16_flip_codes_of_a_quantised_product(smollm2_model: Model, theirs: Trace) -> None:
    weight = smollm2_model.weights.layer(3)["ffn_up.weight"]
    x = theirs[Site(0, 3, "ffn_norm")]
    y, narrow = (linear(v, weight, arithmetic=GGML_CPU) for v in (x, x.astype(np.float16).astype(np.float32)))
    error = (np.linalg.norm(y - narrow, axis=1) / np.linalg.norm(y, axis=1)).max()
    assert F16.floor < error < floors.CODES["f16"] * F16.floor


def test_one_operation_of_a_known_arithmetic_has_the_floor_of_that_arithmetic() -> None:
    call = Call(0, 0, "ffn_up", linear, (np.ones((1, 32), np.float32), random_weight(32, "Q8_0")), {})
    assert floors.floor(GGML_CPU, [call]) == GGML_CPU.floor == 1e-6


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_scores_that_are_rounded_again_once_they_are_scaled_stay_below_the_floor_of_their_softmax(kind: str) -> None:
    rng, scale = np.random.default_rng(5), 32**-0.5
    kq = round_to(np.float32(60 * rng.standard_normal((4, 1, 500))), kind)
    scaled = Call(0, 0, "kq_soft_max", soft_max, (round_to(kq * np.float32(scale), kind),), {"scale": 1.0})
    call = Call(0, 0, "kq_soft_max", soft_max, (kq,), {"scale": scale})
    off = np.linalg.norm(scaled.compute(F32) - call.compute(F32)) / np.linalg.norm(call.compute(F32))
    assert arithmetic_named(kind).floor < off < floors.floor(arithmetic_named(kind), [call])


def test_hidden_scores_are_no_exponents_of_a_softmax() -> None:
    kq = np.random.default_rng(1).standard_normal((2, 5, 5)).astype(np.float32)
    masked = np.where(visible(5, 5), kq, np.float32(-65504))
    calls = [
        [Call(0, 0, "kq_soft_max", soft_max, (x,), {"scale": 0.25})] for x in (np.where(visible(5, 5), kq, 0), masked)
    ]
    plain, hidden = (floors.floor(F32, call, inputs=floors.STORED["f16"]) for call in calls)
    assert hidden == plain < 2 * floors.STORED["f16"]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_clean_trace_that_was_stored_narrowly_has_no_diverging_site(
    smollm2_model: Model, theirs: Trace, dtype: str
) -> None:
    held = {}
    for site in theirs.sites():
        x = np.array(theirs[site])
        bits = (narrowed(x, "bf16").view(np.uint32) >> 16).astype(np.uint16)
        held[site] = Held(bits, "bf16") if dtype == "bf16" else Held(x.astype(np.float16), "f16")
    narrow = dataclasses.replace(theirs, tensors=held)
    sites = replayed(smollm2_model, narrow, GGML_CPU)
    assert [s.site for s in sites if s.status is Status.DIVERGES] == []
    products = [s.local_error for s in sites if s.op == "linear" and s.local_error is not None]
    assert max(products) > floors.STORED[dtype]  # more than storing alone makes


NARROWED: dict[str, tuple[str, str, float]] = {
    "append": ("ggml-cpu+flash+kv=q8_0", "f16", 4.0),
    "append, bf16": ("ggml-cpu+flash+kv=q8_0", "bf16", 1.0),
    "append, q4_0": ("ggml-cpu+flash+kv=q4_0", "f16", 35.0),
    "append, q4_0, bf16": ("ggml-cpu+flash+kv=q4_0", "bf16", 8.0),
    "scores": ("ggml-cpu+flash+kv=q4_0", "f16", 4.5),
    "scores, bf16": ("ggml-cpu+flash+kv=q8_0", "bf16", 1.5),
    "linear": ("bf16-operands", "f16", 3.6),
    "attend": ("bf16-operands", "f16", 3.6),
}
"""What a clean run stored in a narrow dtype shows, in floors of storing: operation, arithmetic, dtype, the most."""


@pytest.mark.parametrize("name", NARROWED)
def test_what_rounded_inputs_change_stays_below_what_is_allowed_for_it(small: Model, name: str) -> None:
    op, (arithmetic, stored, most) = name.partition(",")[0], NARROWED[name]
    of = arithmetic_named(arithmetic)
    sites = replayed(small, on_disk(dump(small, [1, *range(60, 100)], arithmetic=of), stored), of)
    own = [s for s in sites if s.op == op and not s.segment and s.local_error is not None and s.floor is not None]
    assert own
    assert max((s.local_error or 0.0) for s in own) < most * floors.STORED[stored]
    assert [str(s.site) for s in sites if s.status is Status.DIVERGES] == []
