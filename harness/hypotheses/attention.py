"""Heads gone wrong: which keys and values they read, how they are summed, how they are merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import attend, scores
from firstdiff.model.operations import Derived, Operation
from firstdiff.model.probe import Call

# Which KV head a head reads


def _mapped(call: Call, _scene: Scene, values: Values) -> Call | None:
    of = call.arguments
    heads, kv = (of["q"].shape[1], of["keys"].shape[1]) if call.op is scores else (len(of["p"]), of["values"].shape[1])
    if kv in (1, heads):
        return None
    head = np.arange(heads)
    read = {"mod": head % kv, "first": 0 * head, "reversed": kv - 1 - head // (heads // kv)}[values["map"]]
    return with_op(call, _reading(call.op, read))


def _reading(op: Operation, read: npt.NDArray[np.int64]) -> Operation:
    """`op` with head h reading KV head `read[h]`: keys or values gathered, so that every head has its own."""

    def reading(first: Array, second: Array, *, group: int, arithmetic: Arithmetic, **rest: Any) -> Array:  # noqa: ANN401
        del group
        return op(first, second[:, read], group=1, arithmetic=arithmetic, **rest)

    return Derived(op, reading)


def _maps(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"map": name} for name in ("mod", "first", "reversed"))


MAPS = "head h reads another KV head than h // group"


# Scores


def _f16_scores(q: Array, keys: Array, *, group: int, order: str, arithmetic: Arithmetic, **_rest: object) -> Array:
    """Scores summed in float16."""
    with np.errstate(over="ignore", invalid="ignore"):
        q16, k16 = q.astype(np.float16), keys.astype(np.float16)
        terms = q16.transpose(1, 0, 2)[:, :, None] * k16.transpose(1, 0, 2).repeat(group, 0)[:, None]  # [H, T, S, D]
        if order == "one by one":
            total = np.add.accumulate(terms, -1, dtype=np.float16)[..., -1]
        else:
            total = terms.sum(-1, dtype=np.float16)
    return arithmetic.widen(total)


def _in_f16(call: Call, _scene: Scene, values: Values) -> Call | None:
    q, keys = call.argument("q"), call.argument("keys")
    if q.shape[0] * q.shape[1] * keys.shape[0] * q.shape[2] > 1 << 26:
        return None
    return with_op(call, _f16_scores, order=values["order"])


# Merging heads


def _merged(p: Array, values: Array, *, group: int, order: str, arithmetic: Arithmetic) -> Array:
    tokens, heads = p.shape[1], p.shape[0]
    out = attend(p, values, group=group, arithmetic=arithmetic).reshape(tokens, heads, -1)  # [T, H, D]
    out = out.transpose((1, 0, 2) if order == "[head, token, head_dim]" else (0, 2, 1))
    return np.ascontiguousarray(out).reshape(tokens, -1)


def _orders(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    if call.argument("p").shape[1] > 1:
        yield {"order": "[head, token, head_dim]"}
    yield {"order": "[token, head_dim, head]"}


TABLE = (
    Hypothesis(
        "gqa-map",
        Where((scores, attend)),
        MAPS,
        "let head h read KV head h // (n_head / n_head_kv)",
        _mapped,
        _maps,
        "head h reads another KV head than h // group ({map})",
        source="HazyResearch/HipKittens#22",
    ),
    Hypothesis(
        "kq-f16",
        Where((scores,)),
        "scores summed in float16",
        "sum scores in float32",
        _in_f16,
        lambda _call, _scene, _observed: ({"order": order} for order in ("one by one", "in pairs")),
        "scores summed in float16, {order}",
        stage=7,
        rounds=True,
        source="ggml-org/llama.cpp#7805",
    ),
    Hypothesis(
        "head-merge",
        Where((attend,)),
        "heads merged in another order of axes",
        "merge [token, head, head_dim] to [token, head * head_dim]",
        lambda call, _scene, values: with_op(call, _merged, order=values["order"]),
        _orders,
        "heads merged as {order}",
        stage=6,
    ),
)
