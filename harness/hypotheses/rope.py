"""Rotary position embedding gone wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses import rope_angles
from firstdiff.hypotheses.fitting import numbers
from firstdiff.hypotheses.hypothesis import (
    Hypothesis,
    Scene,
    Values,
    identity,
    replaced,
    with_attributes,
    with_input,
    with_op,
)
from firstdiff.model import quants
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import append, rope
from firstdiff.model.probe import Call
from firstdiff.model.rope import angles

ROTATED = ("Qcur_rope", "Kcur_rope")


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
    cos, sin = (_rounded(arithmetic.widen(f(theta)) * magnitude, rounded)[:, None] for f in (np.cos, np.sin))
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


def _rounded(x: Array, to: str | None) -> Array:
    if to is None:
        return x
    if to == "bf16":
        return quants.round_bf16(np.asarray(x, np.float32)).astype(x.dtype)
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def _theta(call: Call, scene: Scene) -> npt.NDArray[np.float64]:
    """The right angles [T, D / 2]."""
    x, positions, factors = call.inputs
    return angles(
        positions,
        x.shape[-1],
        base=call.attributes["base"],
        scale=call.attributes["scale"],
        factors=None if factors is None else factors.values(),
        like_ggml=scene.arithmetic.ggml_products,
    )


def _turn(call: Call, theta: Array, **how: Any) -> Call:  # noqa: ANN401 - of _turned
    return replaced(call, _turned, call.inputs[0], theta, pairing=call.attributes["pairing"], **how)


def _magnitude(call: Call, scene: Scene, values: Values) -> Call:
    return _turn(call, _theta(call, scene), magnitude=values["magnitude"])


def _magnitudes(_call: Call, _scene: Scene) -> Iterator[float]:
    yield from (float(0.1 * np.log(factor) + 1) for factor in (4, 8, 16, 32))  # YaRN's, Peng et al. 2023


def _low_precision(call: Call, scene: Scene, values: Values) -> Call:
    dtype, of = values["dtype"], values["of"]
    theta = _theta(call, scene)
    if of == "cos and sin":
        return _turn(call, theta, rounded=dtype)
    if of == "angles":
        return _turn(call, _rounded(theta, dtype))
    _, positions, _ = call.inputs
    one = _theta(with_input(call, 1, [1]), scene)[0]
    return _turn(
        call, _rounded(np.outer(_rounded(np.asarray(positions, np.float64), dtype), _rounded(one, dtype)), dtype)
    )


def _precisions(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    for of in ("angles", "cos and sin", "frequencies, positions and angles"):
        yield from ({"dtype": dtype, "of": of} for dtype in ("bf16", "f16"))


def _partial(call: Call, scene: Scene, values: Values) -> Call:
    dims, over = values["dims"], values["over"]
    _, positions, factors = call.inputs
    theta = angles(
        positions,
        dims,
        base=call.attributes["base"] ** (dims / over),
        scale=call.attributes["scale"],
        factors=None if factors is None else factors.values()[: dims // 2],
        like_ggml=scene.arithmetic.ggml_products,
    )
    return _turn(call, theta)


def _parts(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    head_dim = call.inputs[0].shape[-1]
    for dims in dict.fromkeys((head_dim // 2, head_dim // 4, 3 * head_dim // 4)):
        even = dims // 2 * 2
        if even:
            yield from ({"dims": even, "over": over} for over in (even, head_dim))


def _head_dim(call: Call, scene: Scene, values: Values) -> Call | None:
    """Heads cut at n_embd / n_head dimensions where the file says another key_length.

    Not where it has frequency factors, which are as many as its own heads have pairs.
    """
    x, _, factors = call.inputs
    width = values["head_dim"]
    if x.shape[1] * x.shape[2] % width or width % 2 or factors is not None:
        return None
    theta = _theta(replaced(call, call.op, x[..., :1].repeat(width, -1), *call.inputs[1:], **call.attributes), scene)
    return replaced(call, _turned_as, x, theta, width=width, pairing=call.attributes["pairing"])


def _turned_as(x: Array, theta: Array, *, width: int, pairing: str, arithmetic: Arithmetic) -> Array:
    cut = x.reshape(len(x), -1, width)
    return _turned(cut, theta, pairing=pairing, arithmetic=arithmetic).reshape(x.shape)


def _head_dims(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    hp = scene.model.hp
    if (width := hp.n_embd // hp.n_head) not in (0, hp.head_dim):
        yield {"head_dim": width}


def _on_v(call: Call, scene: Scene, _values: Values) -> Call | None:
    past, new = call.inputs
    rotation = scene.model.rotation
    if call.point != "v_cache" or rotation is None:
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


def _pairing(call: Call, _scene: Scene, _values: Values) -> Call:
    return with_attributes(call, pairing="half" if call.attributes["pairing"] == "interleaved" else "interleaved")


def _left_in(call: Call, scene: Scene, _values: Values) -> Call:
    other = "half" if call.attributes["pairing"] == "interleaved" else "interleaved"
    return _turn(call, _theta(call, scene), into=other)


PAIRING, BASE, ANGLE, SIZE = 3, 4, 5, 6  # stages: two of them can be wrong at once

TABLE = (
    Hypothesis(
        "rope-pairing",
        ROTATED,
        "dimensions paired half-split in place of interleaved",
        "turn dimensions (2i, 2i + 1) together, or permute the rows of Q and K back to Hugging Face's order",
        _pairing,
        stage=PAIRING,
        source="kekzl/imp#503",
    ),
    Hypothesis(
        "rope-position",
        ROTATED,
        "positions that start from 0 again at each decode step",
        "go on counting positions where the cache ends",
        rope_angles.restarted,
        stage=ANGLE,
        source="Blaizzy/mlx-vlm#1983",
    ),
    Hypothesis(
        "rope-twice",
        ROTATED,
        "the rotation done twice",
        "rotate once: a cached key is rotated already",
        lambda call, _scene, _values: with_attributes(call, scale=2 * call.attributes["scale"]),
        stage=ANGLE,
    ),
    Hypothesis(
        "rope-sign",
        ROTATED,
        "every angle with the other sign",
        "turn (a, b) to (a cos - b sin, a sin + b cos)",
        lambda call, _scene, _values: with_attributes(call, scale=-call.attributes["scale"]),
        stage=ANGLE,
    ),
    Hypothesis(
        "rope-none",
        ROTATED,
        "no rotation",
        "rotate Q and K, each by its own token's position",
        lambda call, _scene, _values: replaced(call, identity, call.inputs[0]),
        stage=ANGLE,
    ),
    Hypothesis(
        "rope-offset",
        ROTATED,
        "positions off by a constant",
        "give each token its own position, from 0 on",
        rope_angles.with_offset,
        rope_angles.ways_off,
        "positions off by {offset:+d}",
        stage=ANGLE,
    ),
    Hypothesis(
        "rope-denominator",
        ROTATED,
        "the frequencies' exponent divided by something else than head_dim",
        "take base ** (-2 i / head_dim)",
        rope_angles.with_denominator,
        rope_angles.denominators,
        "the frequencies' exponent divided by {denominator:g} in place of head_dim",
        stage=BASE,
    ),
    Hypothesis(
        "rope-base",
        ROTATED,
        "a rope base that is not the file's",
        "read '<architecture>.rope.freq_base' of the file",
        rope_angles.with_base,
        numbers(
            rope_angles.with_base,
            "base",
            rope_angles.bases,
            starts=rope_angles.base_starts,
            without=rope_angles.own_base,
        ),
        "a rope base of {base:.6g} in place of the file's",
        stage=BASE,
        source="lyogavin/airllm#368",
    ),
    Hypothesis(
        "rope-factors",
        ROTATED,
        "frequency factors ignored, or Llama 3's where the file has none",
        "divide each pair's angles by 'rope_freqs.weight' where the file has it, and only there",
        rope_angles.with_factors,
        lambda _call, _scene, _observed: ({"factor": f} for f in (1.0, 8.0, 32.0)),
        "frequency factors that go up to {factor:g} in place of the file's",
        stage=BASE,
        source="ggml-org/llama.cpp#8676",
    ),
    Hypothesis(
        "rope-scale",
        ROTATED,
        "all angles multiplied by one factor",
        "multiply positions by 1 / '<architecture>.rope.scaling.factor' of the file, or by nothing",
        rope_angles.with_scale,
        numbers(
            rope_angles.with_scale,
            "factor",
            rope_angles.scales,
            starts=rope_angles.scale_starts,
            without=lambda _c, _s: (-1.0, 0.0, 1.0, 2.0),
        ),
        "all angles multiplied by {factor:.6g}",
        stage=ANGLE,
    ),
    Hypothesis(
        "rope-yarn-magnitude",
        ROTATED,
        "cos and sin multiplied by a factor",
        "leave lengths as they are: the file asks for no YaRN",
        _magnitude,
        numbers(_magnitude, "magnitude", _magnitudes, without=lambda _c, _s: (1.0,)),
        "cos and sin multiplied by {magnitude:.6g}",
        stage=SIZE,
        source="kekzl/imp#880",
    ),
    Hypothesis(
        "rope-low-precision",
        ROTATED,
        "angles computed in 16 bits",
        "compute angles, cos and sin in float32",
        _low_precision,
        _precisions,
        "{of} rounded to {dtype}",
        stage=SIZE,
        source="NVIDIA/Megatron-LM#535",
    ),
    Hypothesis(
        "rope-partial",
        ROTATED,
        "only some dimensions of each head turned",
        "turn all head_dim dimensions ('<architecture>.rope.dimension_count')",
        _partial,
        _parts,
        "only {dims} dimensions of each head turned, with exponents over {over}",
        stage=BASE,
    ),
    Hypothesis(
        "rope-order",
        ROTATED,
        "pairs turned rightly and written back in the other order",
        "write each pair back where it came from",
        _left_in,
        stage=SIZE,
    ),
    Hypothesis(
        "rope-cos-sin",
        ROTATED,
        "cos and sin exchanged",
        "turn (a, b) to (a cos - b sin, a sin + b cos)",
        lambda call, scene, _values: _turn(call, _theta(call, scene), swapped=True),
        stage=SIZE,
    ),
    Hypothesis(
        "head-dim",
        ROTATED,
        "heads cut at n_embd / n_head dimensions, where the file says another length",
        "read '<architecture>.attention.key_length' of the file",
        _head_dim,
        _head_dims,
        "heads cut at {head_dim} dimensions",
        stage=PAIRING,
        source="vllm-project/vllm#2622",
    ),
    Hypothesis(
        "rope-on-v",
        ("v_cache",),
        "values rotated too",
        "rotate Q and K alone",
        _on_v,
        stage=ANGLE,
    ),
)
