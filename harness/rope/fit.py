"""By which angles an engine turned its queries and keys, fitted from what it recorded before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace
from firstdiff.errors import UsageError
from firstdiff.judging.layout_search import aligned
from firstdiff.judging.layouts import Alignment
from firstdiff.model.architecture import Rotation
from firstdiff.model.engine import Model
from firstdiff.model.rope import angles
from firstdiff.model.rope_fit import fit_ratios
from firstdiff.rope.says import Angles, Finding, explained

Floats = npt.NDArray[np.float64]

PAIRINGS = ("interleaved", "half")

TURNED = 1e-5
"""Residual of the model's own pairing from which another one is thought of: float32 leaves 4e-8."""

SHOWN_POSITIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class FittedAngles:
    """The rotation that a candidate did to one point at one layer.

    Parameters
    ----------
    point, before, layer
        ``Qcur`` or ``Kcur``, the point that is rotated (with a norm, ``Qcur_normed``), and where.
    positions
        Of every token of every step, as the trace states them [T].
    steps
        Step of every token [T].
    residuals
        What each pairing leaves unexplained, relative to the norm of the rotated tensor, when every pair of every
        token is turned by its best angle and all are scaled by one factor.
    pairing
        The one that fits better.
    theta
        Fitted angles in (-pi, pi], with that pairing [T, head_dim / 2].
    expected
        Angles that the model's file asks for, in the same range.
    magnitude
        The common factor of lengths: 1 for a rotation.
    finding
        What the fitted angles say.
    """

    point: str
    before: str
    layer: int
    positions: tuple[int, ...]
    steps: tuple[int, ...]
    residuals: dict[str, float]
    pairing: str
    theta: Floats
    expected: Floats
    magnitude: float
    finding: Finding

    @property
    def agrees(self) -> bool:
        """Whether the candidate turns as the model's file asks."""
        return self.finding.id == "agrees"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agrees": self.agrees,
            "says": self.finding.says,
            "id": self.finding.id,
            "values": self.finding.values,
            "layer": self.layer,
            "pairing": self.pairing,
            "residuals": self.residuals,
            "magnitude": self.magnitude,
            "positions": list(self.positions),
            "steps": list(self.steps),
            "fitted": self.theta.tolist(),
            "expected": self.expected.tolist(),
        }


def fitted_angles(
    model: Model, trace: Trace, layer: int, point: str = "Qcur", *, alignment: Alignment | None = None
) -> FittedAngles | None:
    """Fit the angle of every pair at every position, by least squares over the heads.

    Parameters
    ----------
    model, trace
        The model, and a candidate's trace.
    layer, point
        ``Qcur`` or ``Kcur`` at a layer.
    alignment
        How the trace's tensors are laid out; found as judging finds it, if not given.

    Returns
    -------
    None where the trace lacks the point before or after the rotation, or their shapes do not fit.
    """
    layouts = aligned(model, trace) if alignment is None else alignment
    before, after, positions, steps = [], [], [], []
    for index, step in enumerate(trace.steps):
        pair = _recorded(model, trace, index, layer, point, layouts)
        if pair is not None:
            before.append(pair[0])
            after.append(pair[1])
            positions += list(step.positions)
            steps += [index] * len(step.positions)
    if not before:
        return None
    x, y = np.concatenate(before), np.concatenate(after)  # [T, H, D]
    rotation, turn = turn_of(model)
    fits = {pairing: fit_ratios(x, y, pairing) for pairing in PAIRINGS}
    # Both fit where nothing is turned, at position 0: the other pairing must fit better by far.
    right = fits[rotation.pairing][2]
    pairing = min(PAIRINGS, key=lambda p: fits[p][2])
    if not (fits[pairing][2] < right / 2 and right > TURNED):
        pairing = rotation.pairing
    ratio, magnitude, residual = fits[pairing]
    unfactored = angles([1], rotation.dim, base=rotation.base, scale=rotation.scale)[0]
    measured = Angles(
        ratio=ratio,
        positions=np.array(positions),
        steps=np.array(steps),
        frequencies=angles([1], rotation.dim, **turn)[0],
        unfactored=unfactored,
        base=rotation.base,
        n_embd=model.hp.n_embd,
        magnitude=magnitude,
        residual=residual,
        pairing=None if pairing == rotation.pairing else pairing,
    )
    return FittedAngles(
        point=point,
        before=rotation.of[f"{point}_rope"],
        layer=layer,
        positions=tuple(positions),
        steps=tuple(steps),
        residuals={p: fits[p][2] for p in PAIRINGS},
        pairing=pairing,
        theta=np.angle(ratio),
        expected=np.angle(np.exp(1j * angles(positions, rotation.dim, **turn))),
        magnitude=magnitude,
        finding=explained(measured),
    )


def _recorded(
    model: Model, trace: Trace, step: int, layer: int, point: str, alignment: Alignment
) -> tuple[Floats, Floats] | None:
    """A step's tensor before and after, [T, H, D] float64."""
    heads = model.hp.n_head if point == "Qcur" else model.hp.n_head_kv
    like = np.zeros((len(trace.steps[step].tokens), heads, model.hp.head_dim), np.float32)
    rotated = f"{point}_rope"
    before, _ = alignment.read(trace, Site(step, layer, turn_of(model)[0].of[rotated]), like)
    after, _ = alignment.read(trace, Site(step, layer, rotated), like)
    return None if before is None or after is None else (before.astype(np.float64), after.astype(np.float64))


def turn_of(model: Model) -> tuple[Rotation, dict[str, Any]]:
    """How a model rotates, and the base, scale and factors of its angles.

    Raises
    ------
    UsageError
        For a model that does not rotate.
    """
    rotation = model.rotation
    if rotation is None:
        raise UsageError(f"{model.gguf.path}: the architecture {model.architecture} does not rotate queries and keys")
    weight = None if rotation.factors is None else model.weights.get(rotation.factors)
    factors = None if weight is None else weight.values()
    return rotation, {"base": rotation.base, "scale": rotation.scale, "factors": factors}


def describe(fit: FittedAngles, positions: Sequence[int] | None = None, pairs: Sequence[int] | None = None) -> str:
    """What was found, the residual of each pairing, and expected beside fitted angles of some positions."""
    chosen = range(fit.theta.shape[1]) if pairs is None else pairs
    rows = [i for i, p in enumerate(fit.positions) if positions is None or p in positions]
    rows = rows[:SHOWN_POSITIONS] if positions is None else rows
    residuals = ", ".join(f"{p} {r:.2g}" for p, r in fit.residuals.items())
    lines = [
        f"{fit.before}-{fit.layer} -> {fit.point}_rope-{fit.layer}: {fit.finding.says}.",
        f"Pairing {fit.pairing} fits (residuals: {residuals}); lengths times {fit.magnitude:.6g}.",
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
    """The fits of Q and K at one layer.

    Raises
    ------
    UsageError
        For a layer that there is not, or where neither Q nor K is recorded before and after the rotation.
    """
    if not 0 <= layer < model.hp.n_layer:
        raise UsageError(f"--layer {layer}: {model.gguf.path.name} has layers 0 to {model.hp.n_layer - 1}")
    alignment = aligned(model, trace)
    fits = [fitted_angles(model, trace, layer, point, alignment=alignment) for point in ("Qcur", "Kcur")]
    found = tuple(fit for fit in fits if fit is not None)
    if not found:
        raise UsageError(
            f"{trace.path}: holds neither Qcur-{layer} with Qcur_rope-{layer} nor Kcur-{layer} with Kcur_rope-{layer} "
            "in shapes that fit: record them before and after the rotation"
        )
    return found
