"""Which rotation made one tensor of another: ratios and frequencies of pairs, fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]

FARTHEST = 64
"""Offsets of positions that are searched beyond the trace's own."""


def fit_ratios(before: npt.NDArray[Any], after: npt.NDArray[Any], pairing: str) -> tuple[Complex, float, float]:
    """Complex ratio of rotated to unrotated pairs [T, D / 2], the common magnitude, and the relative residual.

    `before` and `after` are [T, H, D].
    """
    x, y = (np.asarray(a, np.float64) for a in (before, after))
    return _fit(_pairs(x, pairing), _pairs(y, pairing))


def _pairs(x: Floats, pairing: str) -> Complex:
    """Each pair as one complex number, [T, H, D] -> [T, H, D / 2]."""
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else (x[..., :half], x[..., half:])
    with np.errstate(invalid="ignore"):
        return np.asarray(first + 1j * second)


def _fit(before: Complex, after: Complex) -> tuple[Complex, float, float]:
    """Complex ratio of every token and pair [T, D / 2], the common magnitude, and the relative residual.

    The residual is that of pure rotations with one magnitude for all: with a single head a free ratio would fit
    anything.
    """
    with np.errstate(all="ignore"):
        power = (np.abs(before) ** 2).sum(1)
        cross = (before.conj() * after).sum(1)
        ratio = np.where(power == 0, 1.0, cross / power)  # what is zero turns by any angle
        size = np.abs(cross)
        total = power.sum()
        magnitude = float(size.sum() / total) if total > 0 else 1.0
        turned = before * (magnitude * np.where(size == 0, 1.0, cross / size))[:, None]
        norm = np.linalg.norm(after)
        residual = float(np.linalg.norm(after - turned) / norm) if norm > 0 else 0.0
    return ratio, magnitude, residual


def frequencies_of(ratio: npt.NDArray[np.complex128], positions: npt.NDArray[np.int64]) -> tuple[Floats, float]:
    """Radians a position of each pair, and the distance of positions that they were measured over.

    Neighbouring positions give each frequency up to whole turns, 0.5 turns at most being taken; ever longer distances
    then sharpen it.
    """
    unit = ratio / np.maximum(np.abs(ratio), 1e-30)
    if len(positions) == 1:
        at = int(positions[0])
        return (np.angle(unit[0]) / at if at else np.zeros(unit.shape[1])), float(at)
    row = {int(p): i for i, p in enumerate(positions)}
    fitted, span, lag = np.zeros(unit.shape[1]), 0.0, 1
    while lag <= int(positions.max() - positions.min()):
        pairs = [(i, row[p + lag]) for p, i in row.items() if p + lag in row]
        if pairs:
            first, last = (unit[list(side)] for side in zip(*pairs, strict=True))
            phase = np.angle((first.conj() * last).sum(0))
            turns = np.round((fitted * lag - phase) / (2 * np.pi)) if span else 0.0
            fitted, span = (phase + 2 * np.pi * turns) / lag, float(lag)
        lag *= 2
    return fitted, span
