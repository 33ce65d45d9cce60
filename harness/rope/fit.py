"""By which angles an engine turned its queries and keys, fitted from what it recorded before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Trace
from firstdiff.errors import UsageError
from firstdiff.judging.arithmetic import declared
from firstdiff.judging.layout_search import aligned
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.own_layout import own_layout
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.rope import angles
from firstdiff.model.rope_fit import fit_ratios
from firstdiff.rope.says import Finding, Fit, explained
from firstdiff.rope.turns import joined, rotation_of, turn_of, turns

Floats = npt.NDArray[np.float64]

PAIRINGS = ("interleaved", "half")

TURNED = 1e-5
"""Residual of the model's own pairing from which another one is thought of: float32 leaves 4e-8."""

SHOWN_POSITIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class FittedAngles:
    """The rotation that a candidate did at one point of one layer.

    Parameters
    ----------
    point, before, layer
        The rotated point and what it is made of, as the architecture says (``Qcur_rope`` of ``Qcur``, or of
        ``Qcur_normed``), and where.
    positions
        Of every token of every step, as the trace states them [T].
    steps
        Step of every token [T].
    residuals
        What each pairing leaves unexplained, relative to the norm of the rotated tensor, when every pair of every
        token is turned by its best angle and all are scaled by one factor.
    own, pairing
        The model's pairing, and the one that fits: the other one where it fits better by far.
    theta
        Fitted angles in (-pi, pi], with that pairing [T, pairs].
    expected
        Angles that the model's file asks for, in the same range.
    magnitude
        The common factor of lengths: 1 for a rotation.
    finding
        What is wrong, if anything is.
    """

    point: str
    before: str
    layer: int
    positions: tuple[int, ...]
    steps: tuple[int, ...]
    residuals: dict[str, float]
    own: str
    pairing: str
    theta: Floats
    expected: Floats
    magnitude: float
    finding: Finding

    @property
    def agrees(self) -> bool:
        """Whether the candidate turns as the model's file asks."""
        return self.finding.agrees

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agrees": self.agrees,
            **self.finding.plain(),
            "before": self.before,
            "layer": self.layer,
            "pairing": self.pairing,
            "expected_pairing": self.own,
            "residuals": self.residuals,
            "magnitude": self.magnitude,
            "positions": list(self.positions),
            "steps": list(self.steps),
            "fitted": self.theta.tolist(),
            "expected": self.expected.tolist(),
        }


def fitted_angles(
    model: Model, trace: Trace, layer: int, point: str, *, alignment: Alignment | None = None
) -> FittedAngles | None:
    """Fit the angle of every pair at every position, by least squares over the heads, and say what is wrong.

    Parameters
    ----------
    model, trace
        The model, and a candidate's trace.
    layer, point
        A rotated point of the architecture, such as ``Qcur_rope``, at a layer.
    alignment
        How the trace's tensors are laid out; found as judging finds it, if not given.

    Returns
    -------
    None where the trace lacks the point before or after the rotation, or their shapes do not fit.

    Raises
    ------
    UsageError
        For a model that does not rotate.
    """
    alignment = aligned(model, trace) if alignment is None else alignment
    own = own_layout(model, alignment)
    theirs = model if own is None else own.model
    rotation, turn = rotation_of(theirs), turn_of(theirs)
    recorded = turns(theirs, trace, layer, point, alignment, own)
    if not recorded:
        return None
    whole = joined(recorded)
    fits = {pairing: fit_ratios(whole.before, whole.after, pairing) for pairing in PAIRINGS}
    # Both fit where nothing is turned, at position 0: the other pairing must fit better by far.
    right = fits[rotation.pairing][2]
    pairing = min(PAIRINGS, key=lambda p: fits[p][2])
    if not (fits[pairing][2] < right / 2 and right > TURNED):
        pairing = rotation.pairing
    ratio, magnitude, residual = fits[pairing]
    steps = tuple(one.call.step for one in recorded for _ in one.positions)
    fit = Fit(ratio, whole.positions, np.array(steps), angles([1], rotation.dim, **turn)[0], residual)
    return FittedAngles(
        point=point,
        before=rotation.of[point],
        layer=layer,
        positions=tuple(map(int, whole.positions)),
        steps=steps,
        residuals={p: fits[p][2] for p in PAIRINGS},
        own=rotation.pairing,
        pairing=pairing,
        theta=np.angle(ratio),
        expected=np.angle(np.exp(1j * angles(whole.call.inputs[1], rotation.dim, **turn))),
        magnitude=magnitude,
        finding=explained(theirs, declared(model, trace) or F32, recorded, fit),
    )


def describe(fit: FittedAngles, positions: Sequence[int] | None = None, pairs: Sequence[int] | None = None) -> str:
    """What was found, the residual of each pairing, and expected beside fitted angles of some positions."""
    chosen = range(fit.theta.shape[1]) if pairs is None else pairs
    rows = [i for i, p in enumerate(fit.positions) if positions is None or p in positions]
    rows = rows[:SHOWN_POSITIONS] if positions is None else rows
    residuals = ", ".join(f"{p} {r:.2g}" for p, r in fit.residuals.items())
    instead = "" if fit.pairing == fit.own else f", where the model pairs {fit.own},"
    lines = [
        f"{fit.before}-{fit.layer} -> {fit.point}-{fit.layer}: {fit.finding.described}",
        f"Pairing {fit.pairing} fits{instead} (residuals: {residuals}); lengths times {fit.magnitude:.6g}.",
        "",
        f"{'step':>4} {'position':>8} {'pair':>5} {'expected angle':>15} {'fitted angle':>15} {'difference':>11}",
    ]
    for row in rows:
        for i in chosen:
            expected, fitted = fit.expected[row, i], fit.theta[row, i]
            difference = np.angle(np.exp(1j * (fitted - expected)))
            lines.append(
                f"{fit.steps[row]:4} {fit.positions[row]:8} {i:5} {expected:15.8f} {fitted:15.8f} {difference:11.2g}"
            )
    return "\n".join(lines)


def fits_of(model: Model, trace: Trace, layer: int) -> tuple[FittedAngles, ...]:
    """Fit every rotated point of one layer.

    Raises
    ------
    UsageError
        For a model that does not rotate, a layer that there is not, or where no point is recorded before and after the
        rotation.
    """
    rotation = rotation_of(model)
    if not 0 <= layer < model.hp.n_layer:
        raise UsageError(f"--layer {layer}: {model.gguf.path.name} has layers 0 to {model.hp.n_layer - 1}")
    alignment = aligned(model, trace)
    fits = [fitted_angles(model, trace, layer, point, alignment=alignment) for point in rotation.of]
    found = tuple(fit for fit in fits if fit is not None)
    if not found:
        wanted = " nor ".join(f"{before}-{layer} with {point}-{layer}" for point, before in rotation.of.items())
        raise UsageError(
            f"{trace.path}: holds neither {wanted} in shapes that fit: record them before and after the rotation"
        )
    return found
