"""An architecture that the house has never seen: whatever is not in its own lines must not know llama.

Attention and feed-forward network side by side, LayerNorm without a weight, one product for Q, K and V that a silent
call cuts. It is recorded, replayed, planted and diagnosed, and nothing elsewhere was changed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import judge
from builders.models import TINY, stored, synthetic
from firstdiff.dumps import Site, Trace
from firstdiff.model import dense
from firstdiff.model.architecture import Rotation, Tensor
from firstdiff.model.arithmetic import F32, F64, Arithmetic, Array
from firstdiff.model.dense import Cache, Hyperparameters, attention, feed_forward
from firstdiff.model.engine import ARCHITECTURES, Model, open_model
from firstdiff.model.moves import columns
from firstdiff.model.operations import add, embed, linear, rope
from firstdiff.model.probe import Probe
from firstdiff.model.synthetic import llama_metadata, llama_tensors
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights
from firstdiff.runs.pair import local
from firstdiff.verdict import Status

TOKENS = [1, *(3 + byte for byte in b"parallel")]


# The architecture, in 30 lines.


def layer_norm(x: Array, *, eps: float, arithmetic: Arithmetic) -> Array:
    x = arithmetic.widen(x)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + arithmetic.dtype(eps))


def tensors(hp: Hyperparameters) -> Iterator[Tensor]:
    q, kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    yield from (("token_embd.weight", (hp.n_vocab, hp.n_embd), True), ("output.weight", (hp.n_vocab, hp.n_embd), True))
    products = {"attn_qkv": (q + 2 * kv, hp.n_embd), "attn_output": (hp.n_embd, q), "ffn_gate": (hp.n_ff, hp.n_embd),
                "ffn_up": (hp.n_ff, hp.n_embd), "ffn_down": (hp.n_embd, hp.n_ff)}  # fmt: skip
    yield from dense.in_layers(hp, *((f"{name}.weight", shape, True) for name, shape in products.items()))


def rotation(hp: Hyperparameters) -> Rotation:
    return Rotation("half", hp.head_dim, hp.rope_base, hp.rope_scale, {"Qcur_rope": "Qcur", "Kcur_rope": "Kcur"})


def block(probe: Probe, x: Value, w: Weights, hp: Hyperparameters, cache: Cache, positions: Sequence[int]) -> Value:
    h = probe("attn_norm", layer_norm, x, eps=hp.rms_eps)
    qkv = probe(None, linear, h, w["attn_qkv.weight"])  # [token, (n_head + 2 n_head_kv) * head_dim]
    stop, d = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    q = probe("Qcur", columns, qkv, start=0, stop=stop, heads=hp.n_head)
    k = probe(None, columns, qkv, start=stop, stop=stop + d, heads=hp.n_head_kv)
    v = probe("Vcur", columns, qkv, start=stop + d, stop=stop + 2 * d, heads=hp.n_head_kv)
    q = probe("Qcur_rope", rope, q, positions, **rotation(hp).attributes)
    k = probe("Kcur_rope", rope, k, positions, **rotation(hp).attributes)
    o = probe("attn_out", linear, attention(probe, q, k, v, cache, group=hp.group, scale=hp.head_dim**-0.5),
              w["attn_output.weight"])  # fmt: skip
    return probe("l_out", add, probe("ffn_inp", add, o, x), feed_forward(probe, h, w))


def forward(
    probe: Probe, tokens: Sequence[int], positions: Sequence[int], w: Weights, hp: Hyperparameters, cache: Cache
) -> Value:
    x = probe("embd", embed, tokens, w["token_embd.weight"])
    for layer in range(hp.n_layer):
        probe.layer = layer
        x = block(probe, x, w.layer(layer), hp, cache, positions)
    probe.layer = None
    return probe("result_output", linear, probe("result_norm", layer_norm, x, eps=hp.rms_eps), w["output.weight"])


PARALLEL = SimpleNamespace(NODES={}, Cache=Cache, read=dense.read, tensors=tensors, rotation=rotation, forward=forward)


# What the house does with it.


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setitem(ARCHITECTURES, "parallel", PARALLEL)
    rng = np.random.default_rng(0)
    hp = dense.Hyperparameters(320, 64, 64, 3, 4, 2, 16, 128, 1e-5, 10000.0, 1.0)
    made = {
        name: stored((rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))
        for name, shape, _ in tensors(hp)
    }
    theirs = {key: value for key, value in llama_metadata(TINY).items() if key.startswith("llama.")}
    keys = dict.fromkeys(theirs) | {key.replace("llama", "parallel"): value for key, value in theirs.items()}
    keys |= {"general.architecture": "parallel", "parallel.block_count": np.uint32(3)}
    no_tensors = {name: None for name, _ in llama_tensors(TINY)}
    return open_model(synthetic(tmp_path / "parallel.gguf", TINY, metadata=keys, tensors={**no_tensors, **made}))


def test_a_clean_run_agrees(model: Model) -> None:
    trace, _ = plant(model, TOKENS)
    verdict = judge(model, trace)
    assert verdict.verdict == "agrees"
    assert verdict.coverage["agrees"] == verdict.coverage["sites"] == 2 * (17 * 3 + 3)


def test_a_clean_run_agrees_whatever_was_not_recorded(model: Model) -> None:
    trace, _ = plant(model, TOKENS, arithmetic=F64)
    for left_out in ("attn_norm", "Qcur", "Qcur_rope", "k_cache", "kq_soft_max", "ffn_inp", "ffn_swiglu"):
        kept = {s: trace[s] for s in trace.sites() if s.point != left_out}
        verdict = judge(model, Trace.from_arrays(trace.steps, kept, engine=dict(trace.engine), model={}))
        assert verdict.verdict == "agrees", left_out


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    "bug",
    [
        *("rope-base", "rope-pairing", "scale-missing", "mask-missing", "branch-missing", "residual-twice"),
        *("activation-wrong", "cache-stale", "gqa-map", "head-merge", "weight-row-offset"),
    ],
)
def test_a_fault_is_named_at_its_place(model: Model, bug: str, layer: int) -> None:
    trace, touched = plant(model, TOKENS, (bug, layer), decode=2)
    verdict = judge(model, trace)
    assert [str(s.site) for s in verdict.diverging] == touched
    assert {e.hypothesis for e in verdict.explanations} == {bug}


def test_a_fault_of_the_silent_product_is_found_through_its_segment(model: Model) -> None:
    trace, touched = plant(model, TOKENS, ("weight-row-offset", 1))
    at = {Site.parse(site).point for site in touched}
    assert {"Qcur", "Vcur", "Kcur_rope"} <= at  # K is cut silently too
    verdict = judge(model, trace)
    assert [str(s.site) for s in verdict.diverging] == touched
    assert {s.point for s in verdict.sites if s.status is Status.DIVERGES} == at


def test_a_wrong_norm_that_no_table_knows_is_the_first_divergence(model: Model) -> None:
    trace, _ = plant(model, TOKENS)
    wrong = {s: trace[s] * np.float32(1.5) if str(s) == "attn_norm-1" else trace[s] for s in trace.sites()}
    verdict = judge(model, Trace.from_arrays(trace.steps, wrong, engine=dict(trace.engine), model={}))
    first = verdict.first
    assert first is not None
    assert (str(first.site), first.op) == ("attn_norm-1", "layer_norm")


def test_the_reference_in_float32_agrees_too(model: Model) -> None:
    trace, _ = plant(model, TOKENS, arithmetic=F32)
    assert judge(model, replace(trace)).verdict == "agrees"


def test_one_site_is_measured_without_the_rest(model: Model) -> None:
    trace, _ = plant(model, TOKENS, ("rope-base", 1))
    for site in (Site(0, 1, "Kcur_rope"), Site(0, 1, "Vcur"), Site(1, 2, "kq")):
        pair = local(model, trace, site)
        assert pair.candidate.shape == trace[site].shape
        assert (abs(pair.candidate - pair.other).max() > 1e-3) == (site.point == "Kcur_rope")
