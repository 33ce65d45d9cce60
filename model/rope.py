"""Rotary position embedding: frequencies and angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def frequencies(dim: int, *, base: float) -> npt.NDArray[np.float64]:
    """Inverse frequencies ``base ** (-2 i / dim)``, float64 [dim / 2], radians a position (Su et al. 2021)."""
    return np.float64(base) ** (-np.arange(0, dim, 2) / dim)


def angles(
    positions: Sequence[int],
    dim: int,
    *,
    base: float,
    scale: float = 1.0,
    factors: npt.NDArray[np.float32] | None = None,
    like_ggml: bool = False,
) -> npt.NDArray[np.float64]:
    """Angle of each pair at each position, float64 [T, dim / 2], in radians.

    Parameters
    ----------
    positions
        Absolute positions [T].
    dim
        Numbers a head that are rotated.
    base
        Base of the frequencies: 10000 in the paper, ``rope.freq_base`` in a GGUF file.
    scale
        Linear scaling (Chen et al. 2023): positions are multiplied by it (1 / ``rope.scaling.factor``).
    factors
        Llama 3's ``rope_freqs.weight`` [dim / 2]: each angle is divided by its factor.
    like_ggml
        Round as ``ggml_rope_cache_init`` does: float32, each pair's angle the previous one's times
        ``base ** (-2 / dim)``. It matters: the rounding grows with pair and position, to 6e-5 at position 500.
    """
    if not like_ggml:
        theta = np.asarray(positions, np.float64)[:, None] * frequencies(dim, base=base)
        return theta * scale if factors is None else theta / factors[: dim // 2] * scale
    # powf is correctly rounded in practice: float64's power, rounded once.
    step = np.float32(np.float64(np.float32(base)) ** np.float64(np.float32(-2.0 / dim)))
    products = np.full((len(positions), dim // 2), step, np.float32)
    products[:, 0] = positions
    theta32 = np.multiply.accumulate(products, axis=1)
    if factors is not None:
        theta32 = theta32 / factors[: dim // 2]
    return (np.float32(scale) * theta32).astype(np.float64)
