"""Kernels of norms and products gone wrong: right for some rows or half of the inputs, and wrong for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.blocks.buffers import shifted
from firstdiff.hypotheses.hypothesis import Apart, Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import NORMS, PRODUCTS, Where
from firstdiff.model import quants
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, linear
from firstdiff.model.probe import Call
from firstdiff.model.quants import QuantType
from firstdiff.model.weights import Weight

# Norms

AROUND, BEHIND = "then from its start again", "then what lies behind it in the file"
"""What is read beyond a weight's end."""

SAMPLED = 64  # elements of a weight that a shift is sought by; what is found is tried in full


def _viewed(call: Call, scene: Scene, values: Values) -> Call | None:
    weight, first = call.argument("weight"), values["token"]
    if weight is None or first >= len(call.argument("x")):
        return None
    other = _read_at(weight, scene, values["by"], values["beyond"])
    if other is None:
        return None

    op = call.op

    def norm(x: Array, weight: Weight, *bias: Weight, eps: float, other: Weight, arithmetic: Arithmetic) -> Array:
        y = op(x, weight, *bias, eps=eps, arithmetic=arithmetic)
        y[first:] = op(x[first:], other, *bias, eps=eps, arithmetic=arithmetic)
        return y

    return with_op(call, Derived(op, norm), other=other)


def _read_at(weight: Weight, scene: Scene, by: int, beyond: str) -> Weight | None:
    """A vector read so many elements further on; None where these are none, or outside the file."""
    if beyond == AROUND:
        return replace(weight, dense=np.roll(weight.values(), -by)) if by % weight.shape[-1] else None
    if weight.name not in scene.model.gguf.tensors or weight.kind.block > 1:
        return None
    raw = shifted(scene.model.gguf, weight.name, by * weight.kind.nbytes)
    return None if raw is None else replace(weight, raw=raw, dense=None)


def _views(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, Any]]:
    """The first token and the shift that were observed; to plant, an eighth of the weight from the middle on."""
    weight, tokens = call.argument("weight"), len(call.argument("x"))
    if weight is None:
        return
    n = weight.shape[-1]
    if observed is None or scene.later is not None:
        yield {"token": tokens // 2, "by": max(1, n // 8), "beyond": AROUND}
        return
    first, seen = _weight_seen(call, scene, observed)
    if seen is None:
        return
    at = np.unique(np.linspace(0, n - 1, SAMPLED).astype(np.int64))
    own = weight.values()
    near = np.abs(own[(at + np.arange(n)[:, None]) % n] - seen[at]).sum(-1)  # [shift]
    near[0] = np.inf
    yield {"token": first, "by": int(near.argmin()), "beyond": AROUND}
    # Offsets of a view of the input are whole rows: the weight is then read far behind its end.
    for by in (int(_within(own, seen)), *(n * row for row in range(1, tokens + 1))):
        other = _read_at(weight, scene, by, BEHIND)
        if other is not None and np.abs(other.values()[at] - seen[at]).sum() <= np.abs(own[at] - seen[at]).sum() / 2:
            yield {"token": first, "by": by, "beyond": BEHIND}


def _within(own: Array, seen: Array) -> int:
    """The shift by which the weight's end is the beginning of what was seen."""
    n = len(own)
    apart = [float(np.abs(own[by : by + SAMPLED] - seen[: min(SAMPLED, n - by)]).mean()) for by in range(1, n)]
    return 1 + int(np.argmin(apart)) if apart else 0


def _weight_seen(call: Call, scene: Scene, observed: Array) -> tuple[int, npt.NDArray[np.float64] | None]:
    """The first wrong token of those recorded, and the weight that fits it and all later ones; None for none."""
    x, n = call.argument("x"), observed.shape[-1]
    bare = call.op(np.asarray(x, np.float64), None, eps=call.argument("eps"), arithmetic=scene.arithmetic)
    y, bias = np.asarray(observed, np.float64), call.argument("bias")
    shift = 0.0 if bias is None else bias.values()
    off = np.square(y - call.compute(scene.arithmetic)).reshape(len(y), -1).sum(-1)
    off = np.where(np.isfinite(off), off, 0.0)  # rows that were not recorded are NaN
    if not off.any():
        return 0, None
    first = int((off > off.max() / 100).argmax())  # tokens of a norm are of one size
    known = np.isfinite(bare * y).reshape(len(y), -1).all(-1) & (np.arange(len(y)) >= first)
    u, v = (np.asarray(a[known], np.float64).reshape(-1, n) for a in (bare, y - shift))
    return first, (u * v).sum(0) / np.maximum(np.square(u).sum(0), 1e-30)


def _told_view(values: Values) -> str:
    since = f"from token {values['token']} on, " if values["token"] else ""
    return f"{since}the norm's weight read {values['by']} elements further on, {values['beyond']}"


# Products

STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)
"""How many inputs kernels take at a time."""

ALIKE = 0.02  # of the largest number: one number stored in bf16, and once more with a bias added


def _halved(call: Call, _scene: Scene, values: Values) -> Call | None:
    weight, block = call.argument("weight"), values["block"]
    if weight.shape[-1] % block:
        return None
    factor = np.zeros(block, np.float32)
    start = 0 if values["half"] == "first" else block // 2
    factor[start : start + block // 2] = {"once": 1, "twice": 2}[values["counted"]]
    return call.with_arguments(weight=times_factor(weight, factor))


def times_factor(weight: Weight, factor: npt.NDArray[np.float32]) -> Weight:
    """The weight, each so many values along a row times a factor of their own."""

    def scaled(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (values.reshape(-1, len(factor)) * factor).reshape(values.shape)

    if weight.dense is not None:
        return replace(weight, dense=scaled(weight.dense))
    decoded = weight.decode or _decoded

    def decode(raw: npt.NDArray[np.uint8], kind: QuantType) -> npt.NDArray[np.float32]:
        return scaled(decoded(raw, kind))

    return replace(weight, decode=decode)


def _decoded(raw: npt.NDArray[np.uint8], kind: QuantType) -> npt.NDArray[np.float32]:
    return quants.dequantize(np.ascontiguousarray(raw).reshape(-1), kind).reshape(len(raw), -1)


def _halves(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, Any]]:
    for block in (256, 32):
        if call.argument("weight").shape[-1] % block == 0:
            for counted in ("once", "twice"):
                yield from ({"block": block, "half": half, "counted": counted} for half in ("first", "second"))


def _cut_short(call: Call, _scene: Scene, values: Values) -> Call | None:
    x, last = call.argument("x"), values["last"]
    if not 0 < last < x.shape[-1]:
        return None
    factor = np.ones(x.shape[-1], x.dtype)
    factor[-last:] = {"not at all": 0, "twice": 2}[values["counted"]]
    return call.with_arguments(x=x * factor)


def _tails(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, Any]]:
    """What is left beyond a multiple of the kernel's step; or one whole step, of a loop that ends one too early."""
    n = call.argument("x").shape[-1]
    left = [n % step for step in STEPS if step < n and n % step]
    for last in dict.fromkeys([*left, *(step for step in STEPS if step < n and n % step == 0)]):
        yield from ({"last": last, "counted": counted} for counted in ("not at all", "twice"))


def _told_tail(values: Values) -> str:
    counted = "left out of the product" if values["counted"] == "not at all" else "counted twice in the product"
    return f"the last {values['last']} inputs are {counted}"


def _repeated(call: Call, _scene: Scene, values: Values) -> Call | None:
    weight, rows = call.argument("weight"), values["rows"]
    if not 1 < rows <= weight.shape[0] or weight.shape[0] % rows:
        return None
    index = np.arange(weight.shape[0])
    return call.with_arguments(weight=weight.pick(index - index % rows + (rows - 1 if values["row"] == "last" else 0)))


def _repeats(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, Any]]:
    """All that leave equal numbers in what was observed; where that is not seen, the usual ones."""
    outputs, bias = call.argument("weight").shape[0], call.argument("bias")
    alike = None
    if observed is not None and scene.later is None:
        alike = observed.reshape(len(observed), outputs).astype(np.float64) - (0.0 if bias is None else bias.values())
    for rows in (2, 4, 8) if alike is None else dict.fromkeys((2, 4, 8, 16, 32, 64, outputs)):
        if rows > outputs or outputs % rows or rows == 1:
            continue
        if alike is not None:
            group = alike.reshape(len(alike), -1, rows)
            if np.nanmax(np.ptp(group, -1), initial=0.0) > ALIKE * np.nanmax(np.abs(group), initial=0.0):
                continue
        yield from ({"rows": rows, "row": row} for row in ("first", "last"))


TABLE = (
    Hypothesis(
        "weight-view-offset",
        NORMS,
        "a norm's weight read from another place for some of the tokens",
        "give the weight's view its own offset, and not that of the input's view",
        _viewed,
        _views,
        _told_view,
        source="ggml-org/llama.cpp#26085",
    ),
    Hypothesis(
        "half-block",
        Where((linear,)),
        "one half of the inputs of each block left out of a product",
        "let the kernel visit both halves of each block",
        _halved,
        _halves,
        "the product adds up only the {half} half of each {block} inputs, and adds it {counted}",
        stage=3,
        apart=Apart.WEIGHT,
        source="ggml-org/llama.cpp#25690",
    ),
    Hypothesis(
        "reduction-remainder",
        Where((linear,)),
        "the last inputs left out of a product, or counted twice",
        "let the kernel's loop end with the last input: handle what is left beyond a multiple of its step once",
        _cut_short,
        _tails,
        _told_tail,
        stage=3,
    ),
    Hypothesis(
        "row-repeated",
        PRODUCTS,
        "one output's value written to several outputs of a product",
        "let each row of the kernel's block write to its own output",
        _repeated,
        _repeats,
        "of each {rows} outputs of the product, all hold the value of the {row} one",
        stage=3,
        apart=Apart.WEIGHT,
        source="ggml-org/llama.cpp#25690",
    ),
)
