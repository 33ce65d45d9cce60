"""Pairs turned wrongly: in another pairing, by rounded angles, only some of them, or where nothing is to be turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Scene, Values, replaced, with_op
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import append
from firstdiff.model.engine import Model
from firstdiff.model.operations import rope
from firstdiff.model.probe import Call
from firstdiff.model.rope import angles
from firstdiff.model.rounding import round_to

LEAST_MAGNITUDE = 0.01
"""What cos and sin are multiplied by at least: YaRN's factors are a little over 1."""


def _turned(
    x: Array,
    theta: Array,
    *,
    pairing: str,
    arithmetic: Arithmetic,
    magnitude: float = 1.0,
    rounded: str | None = None,
    into: str | None = None,
    swapped: bool = False,
) -> Array:
    """Turn pairs of x [T, H, D] by theta [T, pairs]; what has no pair stays. `into` is how pairs are left."""
    x = arithmetic.widen(x)
    cos, sin = (round_to(arithmetic.widen(f(theta)) * magnitude, rounded)[:, None] for f in (np.cos, np.sin))
    if swapped:
        cos, sin = sin, cos
    y = x.copy()
    turned = 2 * theta.shape[-1]
    first, second = _places(pairing, turned)
    to_first, to_second = _places(into or pairing, turned)
    y[..., to_first] = x[..., first] * cos - x[..., second] * sin
    y[..., to_second] = x[..., first] * sin + x[..., second] * cos
    return y


def _places(pairing: str, dims: int) -> tuple[slice, slice]:
    if pairing == "interleaved":
        return slice(0, dims, 2), slice(1, dims, 2)
    return slice(0, dims // 2), slice(dims // 2, dims)


def _theta(call: Call, scene: Scene) -> npt.NDArray[np.float64]:
    """The right angles [T, D / 2]."""
    of = call.arguments
    return angles(
        of["positions"],
        of["x"].shape[-1],
        base=of["base"],
        scale=of["scale"],
        factors=None if of["factors"] is None else of["factors"].values(),
        like_ggml=scene.arithmetic.ggml_products,
    )


def _turn(call: Call, theta: Array, **how: Any) -> Call:  # noqa: ANN401 - of _turned
    return replaced(call, _turned, call.argument("x"), theta, pairing=call.argument("pairing"), **how)


def with_magnitude(call: Call, scene: Scene, values: Values) -> Call | None:
    """Cos and sin multiplied; by next to nothing they leave scores of zeros, as many a fault does."""
    if abs(values["magnitude"]) < LEAST_MAGNITUDE:
        return None
    return _turn(call, _theta(call, scene), magnitude=values["magnitude"])


def magnitudes(_call: Call, _scene: Scene) -> Iterator[float]:
    """YaRN's factors (Peng et al. 2023)."""
    yield from (float(0.1 * np.log(factor) + 1) for factor in (4, 8, 16, 32))  # YaRN's, Peng et al. 2023


def in_16_bits(call: Call, scene: Scene, values: Values) -> Call:
    """Angles, their cos and sin, or all that they are made of in 16 bits."""
    dtype, of = values["dtype"], values["of"]
    theta = _theta(call, scene)
    if of == "cos and sin":
        return _turn(call, theta, rounded=dtype)
    if of == "angles":
        return _turn(call, round_to(theta, dtype))
    positions = round_to(np.asarray(call.argument("positions"), np.float64), dtype)
    one = round_to(_theta(call.with_arguments(positions=[1]), scene)[0], dtype)
    return _turn(call, round_to(np.outer(positions, one), dtype))


def precisions(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    """What is rounded, and to what."""
    for of in ("angles", "cos and sin", "frequencies, positions and angles"):
        yield from ({"dtype": dtype, "of": of} for dtype in ("bf16", "f16"))


def only_some(call: Call, scene: Scene, values: Values) -> Call:
    """Some dimensions of each head turned."""
    dims, over, of = values["dims"], values["over"], call.arguments
    theta = angles(
        of["positions"],
        dims,
        base=of["base"] ** (dims / over),
        scale=of["scale"],
        factors=None if of["factors"] is None else of["factors"].values()[: dims // 2],
        like_ggml=scene.arithmetic.ggml_products,
    )
    return _turn(call, theta)


def parts(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """How many, and what their exponents are over."""
    x = call.argument("x")
    head_dim = x.shape[-1]
    usual = [head_dim // 2, head_dim // 4, 3 * head_dim // 4]
    if observed is not None and scene.later is None:
        other = (observed != x) & ~np.isnan(observed)  # NaN: not recorded
        turned = np.flatnonzero(other.any((0, 1)))  # up to the last that is not as it was
        usual += [turned[-1] + 1] if len(turned) else []
    for dims in dict.fromkeys(int(n) for n in usual if n < head_dim):
        even = dims // 2 * 2
        if even:
            yield from ({"dims": even, "over": over} for over in (even, head_dim))


def of_another_length(call: Call, scene: Scene, values: Values) -> Call | None:
    """Heads cut at n_embd / n_head dimensions where the file says another key_length.

    Not where it has frequency factors, which are as many as its own heads have pairs.
    """
    x, width = call.argument("x"), values["head_dim"]
    if x.shape[1] * x.shape[2] % width or width % 2 or call.argument("factors") is not None:
        return None
    theta = _theta(call.with_arguments(x=x[..., :1].repeat(width, -1)), scene)
    return replaced(call, _turned_as, x, theta, width=width, pairing=call.argument("pairing"))


def _turned_as(x: Array, theta: Array, *, width: int, pairing: str, arithmetic: Arithmetic) -> Array:
    cut = x.reshape(len(x), -1, width)
    return _turned(cut, theta, pairing=pairing, arithmetic=arithmetic).reshape(x.shape)


def lengths(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    """The length that heads have where they share n_embd evenly."""
    hp = scene.model.hp
    if (width := hp.n_embd // hp.n_head) not in (0, call.argument("x").shape[-1]):
        yield {"head_dim": width}


def on_v(call: Call, scene: Scene, _values: Values) -> Call | None:
    """Values rotated as keys are."""
    past, new, rotation = call.argument("past"), call.argument("new"), scene.model.rotation
    if rotation is None:
        return None
    start = 0 if past is None else len(past)
    turn = rotation.attributes
    turn["factors"] = None if rotation.factors is None else scene.model.weights.get(rotation.factors)
    return with_op(call, _append_turned, positions=range(start, start + len(new)), turn=turn)


def _append_turned(
    past: Array | None,
    new: Array,
    *,
    positions: Sequence[int],
    turn: dict[str, Any],
    values: bool = False,
    arithmetic: Arithmetic,
) -> Array:
    return append(past, rope(new, positions, arithmetic=arithmetic, **turn), values=values, arithmetic=arithmetic)


def in_other_pairs(call: Call, _scene: Scene, _values: Values) -> Call:
    """Dimensions paired the other way."""
    return call.with_arguments(pairing=_other(call.argument("pairing")))


def left_in_other_pairs(call: Call, scene: Scene, _values: Values) -> Call:
    """Pairs turned rightly, and written back the other way."""
    return _turn(call, _theta(call, scene), into=_other(call.argument("pairing")))


def exchanged(call: Call, scene: Scene, _values: Values) -> Call:
    """Cos and sin exchanged."""
    return _turn(call, _theta(call, scene), swapped=True)


def _other(pairing: str) -> str:
    return "half" if pairing == "interleaved" else "interleaved"


NAMES = {"interleaved": "interleaved", "half": "half-split"}


def paired(model: Model | None) -> str:
    """Say that the dimensions are paired otherwise than the model's."""
    if model is None or model.rotation is None:
        return "half-split pairs, where the order of the head dimensions needs interleaved ones, or the reverse"
    own = model.rotation.pairing
    return f"{NAMES[_other(own)]} pairs, where the order of the head dimensions needs {NAMES[own]} ones"


def pair_rightly(model: Model | None) -> str:
    """Say which dimensions are to be turned together."""
    if model is None or model.rotation is None:
        return "turn the dimensions together that the architecture pairs, on rows in the order that belongs to it"
    if model.rotation.pairing == "interleaved":
        return "turn dimensions (2i, 2i + 1) together, or permute the rows of Q and K back to Hugging Face's order"
    if model.written.rotation(model.hp) == model.rotation:
        return f"turn dimensions (i, i + head_dim / 2) together: the file has {model.architecture}'s rows unpermuted"
    return (
        "turn dimensions (i, i + head_dim / 2) together: your rows of Q and K are in Hugging Face's order; "
        "or keep your pairs, and leave the rows in GGUF's order"
    )
