"""What fitted angles say: another position, scale, base, factors, or nothing wrong.

A constant ratio of fitted to expected frequencies over pairs is a scale of positions, a ratio that drifts with the pair
is the base, bands are frequency factors, a constant phase is an offset of positions, and lengths that change are YaRN's
magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.model.rope_fit import FARTHEST, frequencies_of

Floats = npt.NDArray[np.float64]

NO_ROTATION = 0.02
"""Residual from which the pairs were not turned: bfloat16 values alone leave 3e-3, a wrong pairing 0.1 and more."""

TOLERANCE = 3e-4
"""Radians. float32 angles are off by 3e-5 at position 500 (see :func:`firstdiff.model.rope.angles`)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the angles say: an id of the hypotheses' (or ``agrees``, ``unexplained``), a sentence, and its numbers."""

    id: str
    says: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Angles:
    """What was fitted, and what the model's file asks for.

    Parameters
    ----------
    ratio
        Complex ratio of rotated to unrotated pairs [T, D / 2].
    positions, steps
        Of each token [T].
    frequencies, unfactored
        Expected radians a position of each pair, and the same without the file's frequency factors [D / 2].
    base, n_embd
        The model's.
    magnitude, residual
        The common factor of lengths, and what rotations leave unexplained.
    pairing
        The pairing that fits, where it is not the model's.
    """

    ratio: npt.NDArray[np.complex128]
    positions: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    frequencies: Floats
    unfactored: Floats
    base: float
    n_embd: int
    magnitude: float
    residual: float
    pairing: str | None


def explained(a: Angles) -> Finding:
    """Say in one sentence what the fitted angles say."""
    if not np.isfinite(a.ratio).all():
        return Finding("unexplained", "recorded values are not finite, so no angle can be fitted")
    if not a.residual <= NO_ROTATION:
        says = f"neither pairing makes it a rotation (residual {a.residual:.2g})"
        return Finding("unexplained", says, {"residual": a.residual})
    parts = []
    if a.pairing == "half":
        says = "pairs are (i, i + head_dim / 2), right only where Q and K weights are in Hugging Face's order"
        parts.append(Finding("rope-pairing", says))
    if (turn := _angles(a)) is not None:
        parts.append(turn)
    if abs(a.magnitude - 1) > max(1e-3, a.residual):
        says = f"lengths are multiplied by {a.magnitude:.6g}, as YaRN's attention factor does"
        parts.append(Finding("rope-yarn-magnitude", says, {"magnitude": a.magnitude}))
    if not parts:
        return Finding("agrees", "the angles are those that the model's file asks for")
    values = {name: value for part in parts for name, value in part.values.items()}
    return Finding(parts[0].id, "; ".join(part.says for part in parts), values)


def _angles(a: Angles) -> Finding | None:
    """What is wrong with the angles; None for nothing."""
    prompt = a.steps == a.steps[0]
    rows = prompt if prompt.sum() > 1 else np.ones_like(prompt)
    fitted, span = frequencies_of(a.ratio[rows], a.positions[rows])
    allowed = TOLERANCE + 4 * a.residual + 3e-7 * float(a.positions.max())
    if span == 0:
        return None  # position 0 alone: nothing is turned there
    if _within(fitted, a.frequencies, span, allowed):
        offset = _offset(a.ratio[rows], a.positions[rows], a.frequencies)
        if offset:
            return Finding("rope-position", f"positions are {_apart(offset)} of those stated", {"offset": offset})
        return _later(a, rows, allowed)
    return _frequencies(a, fitted, span, allowed)


def _within(fitted: Floats, expected: Floats, span: float, allowed: float) -> bool:
    """Whether frequencies agree, up to whole turns a position, by the angle that they make over the span."""
    return bool((_off(fitted, expected) * span <= allowed).all())


def _off(fitted: Floats, expected: Floats) -> Floats:
    return np.asarray(np.abs(np.angle(np.exp(1j * (fitted - expected)))))


def _frequencies(a: Angles, fitted: Floats, span: float, allowed: float) -> Finding:
    """Name what makes other frequencies."""
    expected = a.frequencies
    if _within(fitted, np.zeros_like(fitted), span, allowed):
        return Finding("rope-none", "nothing is turned: the rotation is missing, or every position is the same")
    if _within(fitted, a.unfactored, span, allowed):
        return Finding("rope-factors", "the file's frequency factors are ignored")
    slow = (expected * span > 20 * allowed) & (np.arange(len(expected)) >= len(expected) // 2)
    if not slow.any():
        slow = expected * span > 20 * allowed
    if slow.any():
        ratio = float((fitted[slow] * expected[slow]).sum() / (expected[slow] ** 2).sum())
        if _within(fitted, ratio * expected, span, 3 * allowed):
            return _scaled(ratio)
    if (base := _base(a, fitted, span, allowed)) is not None:
        return base
    if (bands := _bands(fitted / expected, _off(fitted, expected) * span <= allowed)) is not None:
        return bands
    worst = int(_off(fitted, expected).argmax())
    says = (
        f"the angles are others, most at pair {worst}: {fitted[worst]:.6g} radians a position for {expected[worst]:.6g}"
    )
    return Finding("unexplained", says)


def _scaled(ratio: float) -> Finding:
    if abs(ratio + 1) < 1e-3:  # noqa: PLR2004 - the fit's own precision
        return Finding("rope-sign", "every angle has the other sign", {"scale": ratio})
    if abs(ratio - 2) < 1e-3:  # noqa: PLR2004
        return Finding("rope-twice", "every angle is doubled: the rotation is done twice", {"scale": ratio})
    says = f"every angle is {ratio:.6g} times the expected one: positions are scaled"
    return Finding("rope-scale", says, {"scale": ratio})


def _base(a: Angles, fitted: Floats, span: float, allowed: float) -> Finding | None:
    """Another base: the logarithm of the ratio of frequencies is a line through 0 over the pairs."""
    pair = np.arange(len(fitted))
    seen = (fitted > 0) & (fitted * span > 20 * allowed) & (pair > 0)
    if seen.sum() < 2:  # noqa: PLR2004 - one ratio fits any base
        return None
    weight = (fitted[seen] * span) ** 2
    logs = np.log(fitted[seen] / a.frequencies[seen])
    slope = float((weight * pair[seen] * logs).sum() / (weight * pair[seen] ** 2).sum())
    if not _within(fitted, a.frequencies * np.exp(slope * pair), span, 3 * allowed):
        return None
    dim = 2 * len(fitted)
    base = float(a.base * np.exp(-slope * dim / 2))
    says, values = f"the base is {base:.6g}, where the file says {a.base:.7g}", {"base": base}
    for divisor, name in ((dim / 2, "head_dim / 2"), (a.n_embd, "n_embd")):
        if divisor != dim and abs(np.log(base) / (np.log(a.base) * dim / divisor) - 1) < 2e-3:  # noqa: PLR2004
            return Finding("rope-denominator", f"{says}; or the exponent is divided by {name}, not head_dim", values)
    return Finding("rope-base", says, values)


def _bands(ratio: Floats, same: npt.NDArray[np.bool_]) -> Finding | None:
    """Fast pairs right and slow ones not: factors of frequency bands."""
    first = int(np.argmin(same))  # the first pair that is wrong
    if first < 2:  # noqa: PLR2004 - pair 0 alone is right under any base
        return None
    last = float(ratio[-1])
    says = f"pairs 0 to {first - 1} are right and slower ones are not ({last:.4g} times at the last): frequency factors"
    return Finding("rope-factors", f"{says} are missing, or are others", {"first_pair": first, "ratio": last})


def _offset(ratio: npt.NDArray[np.complex128], positions: npt.NDArray[np.int64], frequencies: Floats) -> int:
    """By how many positions all angles are ahead (or, negative, behind), in whole numbers."""
    phase = (ratio * np.exp(-1j * np.outer(positions, frequencies))).sum(0)
    phase /= np.maximum(np.abs(phase), 1e-30)
    offsets = np.arange(-int(positions.max()) - 1, FARTHEST + 1)
    fit = (np.exp(-1j * np.outer(offsets, frequencies)) * phase).real.sum(1)
    best = int(offsets[fit.argmax()])
    return best if fit.max() - fit[offsets == 0][0] > 1e-6 * len(frequencies) else 0


def _later(a: Angles, prompt: npt.NDArray[np.bool_], allowed: float) -> Finding | None:
    """A later step whose tokens are turned as if they stood elsewhere."""
    for i in np.flatnonzero(~prompt):
        stated = int(a.positions[i])
        off = np.abs(np.angle(a.ratio[i] * np.exp(-1j * stated * a.frequencies)))
        if (off <= allowed).all():
            continue
        offset = _offset(a.ratio[i : i + 1], a.positions[i : i + 1], a.frequencies)
        as_if = stated + offset
        if (np.abs(np.angle(a.ratio[i] * np.exp(-1j * as_if * a.frequencies))) > allowed).any():
            return Finding("unexplained", f"step {a.steps[i]} is turned by other angles than the prompt")
        values = {"step": float(a.steps[i]), "position": float(stated), "as_if": float(as_if)}
        again = ": positions start again at 0" if as_if == 0 else ""
        says = f"step {a.steps[i]} at position {stated} is turned as if at {as_if}{again}"
        return Finding("rope-position", says, values)
    return None


def _apart(offset: int) -> str:
    return f"{abs(offset)} {'ahead' if offset > 0 else 'behind'}"
