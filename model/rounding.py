"""How numbers are rounded to narrower types: dtypes, the blocks of a quantised cache, and the basis of these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.narrowing import narrowed

Array = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float32]

TURNED = ("q8_0", "q4_0")
QUANTISED = (*TURNED, "q8_0-plain", "q4_0-plain")
"""Types that are quantised in blocks of `BLOCK`, turned before where llama.cpp does it; ``-plain`` ones never."""

BLOCK = 32

LEAST_TURNED = 64
"""llama.cpp turns what it quantises into a cache in runs of this many dimensions, where heads are a multiple of it
(``llama_kv_cache``, ``attn_rot_k``)."""


def round_to(x: Array, kind: str | None) -> Array:
    """`x` rounded to a type and held in float32 (float64 where it was), or as it is for None.

    To nearest even; beyond the largest number, infinity.
    """
    if kind is None:
        return x
    if kind == "f32":
        return x.astype(np.float32, copy=False)
    rounded: Array = ROUNDINGS[kind](np.asarray(x, np.float32))
    return rounded if x.dtype != np.float64 else rounded.astype(np.float64)


def _q8_0(x: Floats) -> Floats:
    return quants.round_activations(x.reshape(-1, BLOCK), quants.BY_NAME["Q8_0"])[0].reshape(x.shape)


def _q4_0(x: Floats) -> Floats:
    """Quantise to Q4_0 and back (``quantize_row_q4_0_ref``)."""
    blocks = x.reshape(-1, BLOCK)
    first = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, first, axis=1) / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    codes = np.minimum(np.trunc(blocks * inverse + np.float32(8.5)), np.float32(15)) - np.float32(8)
    rounded: Floats = codes * narrowed(d, "f16")
    return rounded.reshape(x.shape)


ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    **{kind: partial(narrowed, kind=kind) for kind in ("f16", "bf16", "tf32", "tf32-truncated")},
    **dict.fromkeys(("q8_0", "q8_0-plain"), _q8_0),
    **dict.fromkeys(("q4_0", "q4_0-plain"), _q4_0),
}


def bf16_bits(x: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Numbers as bfloat16 stores them: the upper half of the nearest float32 that has no more digits."""
    near = np.ascontiguousarray(round_to(np.asarray(x, np.float32), "bf16"), np.float32)
    return (near.view(np.uint32) >> 16).astype(np.uint16)


def round_turned(x: Array, kind: str, run: int | None) -> Array:
    """`x` rounded to a type in the turned basis and turned back; in its own basis for no `run`."""
    return round_to(x, kind) if run is None else turn(round_to(turn(x, run), kind), run)


def turn(x: Array, run: int) -> Array:
    """Walsh-Hadamard transform of runs of the last axis, float32; its own inverse (``ggml_compute_forward_fwht``).

    Scaled first, then sums and differences of neighbours, of pairs, of fours: the order of ggml's additions, so
    that results agree to the bit, and with them the codes they are quantised to.
    """
    y = np.asarray(x, np.float32).reshape(-1, run) * (np.float32(1) / np.sqrt(np.float32(run)))
    length = 1
    while length < run:
        pairs = y.reshape(-1, run // (2 * length), 2, length)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(-1, run)
        length *= 2
    turned_: Array = y.reshape(x.shape).astype(x.dtype, copy=False)
    return turned_


def turned(kind: str | None, head_dim: int, *, values: bool = False) -> int | None:
    """How many dimensions llama.cpp turns together before it quantises keys or values to a type; None for none.

    Keys: the largest power of two that divides the head; values: 64 (``build_input_k_rot``, ``build_input_v_rot``).
    """
    if kind not in TURNED or head_dim % LEAST_TURNED:
        return None
    return LEAST_TURNED if values else head_dim & -head_dim
