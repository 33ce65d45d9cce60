"""Scores of long prompts are computed where they are read, and are the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.engines import recorded_by_reference
from builders.judging import judge
from builders.models import synthetic
from firstdiff.dumps import open_trace
from firstdiff.model import attention
from firstdiff.model.arithmetic import F32, F64, GGML_CPU, Arithmetic
from firstdiff.model.attention import InParts, attend, scores, scores_in_parts, soft_max
from firstdiff.model.engine import open_model
from firstdiff.model.synthetic import Llama

RNG = np.random.default_rng(0)
HEADS, GROUP, TOKENS, KEYS, DIM = 6, 2, 9, 12, 8
Q = RNG.standard_normal((TOKENS, HEADS, DIM), np.float32)
K, V = RNG.standard_normal((2, KEYS, HEADS // GROUP, DIM), np.float32)
MASK = np.where(RNG.random((TOKENS, KEYS)) < 0.3, -np.inf, 0).astype(np.float32)
MASK[:, 0] = 0
WAYS: dict[str, dict[str, Any]] = {
    "causal": {},
    "a mask": {"mask": MASK},
    "a mask for each head": {"mask": np.stack([MASK + h for h in range(HEADS)])},
    "a soft cap": {"cap": 2.0},
    "one more key": {"offset": 1},
}


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What has scores computed in parts from now on, where that is allowed."""
    monkeypatch.setattr(attention, "QUERIES", 4)
    return lambda: monkeypatch.setattr(attention, "MANY", 0)


def attended_in_parts(arithmetic: Arithmetic, way: dict[str, Any]) -> list[Any]:
    with scores_in_parts():
        return attended(arithmetic, way)


def attended(arithmetic: Arithmetic, way: dict[str, Any]) -> list[Any]:
    kq = scores(Q, K, group=GROUP, arithmetic=arithmetic)
    p = soft_max(kq, scale=0.3, arithmetic=arithmetic, **way)
    return [kq, p, attend(p, V, group=GROUP, arithmetic=arithmetic)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arithmetic", [F32, F64, GGML_CPU], ids=lambda a: a.name)
def test_the_numbers_are_the_same(in_parts: Callable[[], None], arithmetic: Arithmetic, way: str) -> None:
    whole = attended(arithmetic, WAYS[way])
    in_parts()
    parts = attended_in_parts(arithmetic, WAYS[way])
    assert [isinstance(x, InParts) for x in parts] == [True, True, False]
    for a, b in zip(whole, parts, strict=True):
        assert (a.shape, a.dtype, a.ndim, a.size, len(a)) == (b.shape, b.dtype, b.ndim, b.size, len(b))
        assert np.allclose(a, np.asarray(b), rtol=1e-5, atol=1e-6)


def test_scores_are_arrays_where_nobody_allows_parts(in_parts: Callable[[], None]) -> None:
    in_parts()
    assert all(isinstance(x, np.ndarray) for x in attended(F32, {}))


@pytest.mark.parametrize(
    "key", [np.s_[2], np.s_[1:3], np.s_[:, 4:6], np.s_[:, 2:5, :7], np.s_[..., 3], np.s_[1, 2, 3], np.s_[:, :, 2:]]
)
def test_a_part_is_read_as_of_an_array(in_parts: Callable[[], None], key: Any) -> None:
    whole = attended(F32, {})[1]
    in_parts()
    assert np.allclose(attended_in_parts(F32, {})[1][key], whole[key], atol=1e-6)


@pytest.mark.parametrize("bugs", [(), (("rope-base", 2),), (("mask-offset", 1),), (("gqa-map", 1),)], ids=str)
@pytest.mark.parametrize("left_out", [(), ("kq", "kq_soft_max")], ids=str)
def test_a_verdict_is_the_same(
    in_parts: Callable[[], None], tmp_path: Path, bugs: tuple[Any, ...], left_out: tuple[str, ...]
) -> None:
    path = synthetic(tmp_path / "model.gguf", Llama(n_layer=3, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96))
    recorded_by_reference(path, tmp_path / "trace", *bugs)
    model, trace = open_model(path), open_trace(tmp_path / "trace").without(lambda site: site.point in left_out)
    whole = judge(model, trace)
    in_parts()
    parts = judge(model, trace)
    assert [(s.site, s.status) for s in parts.sites] == [(s.site, s.status) for s in whole.sites]
    assert [(e.hypothesis, e.sites) for e in parts.explanations] == [
        (e.hypothesis, e.sites) for e in whole.explanations
    ]
