"""What is wrong with a recorded rotation: what the table of hypotheses says, or else what its fitted angles show.

Fitted angles show what no hypothesis can say, since each is of one call and these are of no engine in particular: that
nothing was rotated in either pairing, that a single later token stands at another position, bands of frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.explaining.attempt import Attempt
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.together import together
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.judging.case import Case
from firstdiff.judging.measure import measure
from firstdiff.model.arithmetic import Arithmetic
from firstdiff.model.engine import Model
from firstdiff.model.rope_fit import FARTHEST, frequencies_of
from firstdiff.rope.turns import Turn, joined
from firstdiff.verdict.ranges import enumerated

Floats = npt.NDArray[np.float64]

NO_ROTATION = 0.02
"""Residual from which the pairs were not turned: bfloat16 values alone leave 3e-3, a wrong pairing 0.1 and more."""

TOLERANCE = 3e-4
"""Radians, and the relative error that they make: whatever the engine's arithmetic is, its angles are not asked to be
better. float32 angles are off by 3e-5 at position 500 (see :func:`firstdiff.model.rope.angles`)."""

DRIFT = 3e-7
"""What float32 angles may be off per position, relative to a turn of one radian."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said of a rotation.

    Parameters
    ----------
    id
        A hypothesis' (or two, joined by `` + ``), ``agrees`` or ``unexplained``.
    says
        In a phrase.
    values
        The parameters of the hypothesis, or what was measured.
    fix
        What to do about it; empty where nothing explains.
    equals
        Hypotheses that explain as well: id and phrase.
    failed
        Hypotheses that could not be tried, by a defect of firstdiff, with the error.
    """

    id: str
    says: str
    values: dict[str, Any] = field(default_factory=dict)
    fix: str = ""
    equals: tuple[tuple[str, str], ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing is wrong."""
        return self.id == "agrees"

    @property
    def described(self) -> str:
        """All of it in sentences."""
        told = [f"{self.says}{f' ({self.id})' if self.fix else ''}."]
        if self.equals:
            told.append(f"As well explains: {enumerated([f'{says} ({id_})' for id_, says in self.equals])}.")
        if self.fix:
            told.append(f"To do: {self.fix}.")
        told += [f"Not tried, by a defect of firstdiff: {error}." for error in self.failed]
        return " ".join(told)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "says": self.says,
            "id": self.id,
            "values": self.values,
            "fix": self.fix,
            "equals": [{"id": id_, "says": says} for id_, says in self.equals],
            "failed": list(self.failed),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What was fitted over all steps, in the pairing that fits, and what the model's file asks for.

    Parameters
    ----------
    ratio
        Complex ratio of rotated to unrotated pairs [T, pairs].
    positions, steps
        Of each token [T].
    frequencies
        Expected radians per position of each pair [pairs].
    residual
        What rotations of one magnitude leave of the rotated tensor, relative to its norm.
    """

    ratio: npt.NDArray[np.complex128]
    positions: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    frequencies: Floats
    residual: float

    @property
    def noise(self) -> float:
        """What the recorded values and the angles are off without a fault, as a local error."""
        rounded = self.residual if self.residual <= NO_ROTATION else 0.0
        return rounded + DRIFT * float(self.positions.max())

    @property
    def allowed(self) -> float:
        """The local error, and the radians, up to which a rotation is right."""
        return TOLERANCE + 4 * self.noise


def explained(
    model: Model, arithmetic: Arithmetic, turns: Sequence[Turn], fit: Fit, *, table: Mapping[str, Hypothesis] = TABLE
) -> Finding:
    """Say what is wrong with one rotation at all steps: by the table's hypotheses, or else by the fitted angles.

    Parameters
    ----------
    model, arithmetic
        The model, and what the reference's rotation is computed in.
    turns
        The rotation at each step that is recorded, at least one.
    fit
        The angles fitted to them.
    table
        The hypotheses to try.
    """
    if not all(turn.finite for turn in turns):
        return Finding("unexplained", "recorded values are not finite, so no angle can be fitted")
    judged = [(turn, _case(turn, arithmetic, fit)) for turn in turns]
    wrong = [(turn, case) for turn, case in judged if case.error > case.floor]
    if not wrong:
        return Finding("agrees", "the angles are those that the model's file asks for")
    cases = [case for _, case in wrong]
    sought = cases[:1]
    if len(wrong) > 1:
        sought.append(_case(joined([turn for turn, _ in wrong]), arithmetic, fit))
    failures = Failures()
    right = [case for _, case in judged if case.error <= case.floor]
    steady, others = together(sought, cases, right, Scene(model, arithmetic, lambda _: None), table, failures)
    failed = tuple(f"{f.hypothesis} at {f.site}: {f.error}" for f in failures.noted)
    where = _where([case.site.step for case in cases], [case.site.step for _, case in judged])
    if not steady and len(wrong) == 1 and right and (moved := _moved(wrong[0][0], fit)) is not None:
        return moved  # any angle of one token is some scale and some offset: only the position is sure
    if found := steady or others:
        return _told(model, found, where, failed)
    return _shown(fit, where, failed)


def _case(turn: Turn, arithmetic: Arithmetic, fit: Fit) -> Case:
    """Judge a rotation as what it is to have an angle wrong by some 1e-4, whatever arithmetic the engine has."""
    call = turn.call
    computed = call.compute(arithmetic)
    axes = axes_of(call.point, computed.ndim)
    error = measure(turn.after, computed, axes=axes, floor=fit.allowed).error
    site = Site(call.step, call.layer, call.point)
    return Case(site, call, turn.after, computed, error, fit.allowed, fit.noise, None, ())


def _told(model: Model, found: Sequence[Attempt], where: str, failed: tuple[str, ...]) -> Finding:
    first, *others = (attempt.fault for attempt in found)
    equals = tuple((fault.id, fault.says(model)) for fault in others)
    return Finding(first.id, f"{first.says(model)}{where}", first.values, first.fix(model), equals, failed)


def _where(wrong: Sequence[int], steps: Sequence[int]) -> str:
    """At which steps something is wrong, where it is not at all of them."""
    if len(wrong) == len(steps):
        return ""
    if list(wrong) == [step for step in steps if step >= wrong[0]]:
        return f", from step {wrong[0]} on"
    return f", in step{'s' if len(wrong) > 1 else ''} {enumerated([str(step) for step in wrong])}"


def _moved(turn: Turn, fit: Fit) -> Finding | None:
    """One token of a later step, turned as if it stood at another whole position; None for anything else."""
    (row,) = rows = np.flatnonzero(fit.steps == turn.call.step)[:1]
    if len(turn.positions) > 1 or fit.residual > NO_ROTATION:
        return None
    stated = int(fit.positions[row])
    offsets = np.arange(-stated, FARTHEST + 1)
    phase = fit.ratio[rows] * np.exp(-1j * stated * fit.frequencies)
    fits = (np.exp(-1j * np.outer(offsets, fit.frequencies)) * phase / np.maximum(np.abs(phase), 1e-30)).real.sum(1)
    as_if = stated + int(offsets[fits.argmax()])
    if (np.abs(np.angle(fit.ratio[row] * np.exp(-1j * as_if * fit.frequencies))) > fit.allowed).any():
        return None
    values = {"step": turn.call.step, "position": stated, "as_if": as_if}
    return Finding("rope-position", f"step {turn.call.step} at position {stated} is turned as if at {as_if}", values)


def _shown(fit: Fit, where: str, failed: tuple[str, ...]) -> Finding:
    """What the angles show that no hypothesis explains."""
    if not fit.residual <= NO_ROTATION:
        says = f"neither pairing makes it a rotation (residual {fit.residual:.2g})"
        return Finding("unexplained", f"{says}{where}", {"residual": fit.residual}, failed=failed)
    prompt = fit.steps == fit.steps[0]
    rows = prompt if prompt.sum() > 1 else np.ones_like(prompt)
    fitted, span = frequencies_of(fit.ratio[rows], fit.positions[rows])
    off = np.abs(np.angle(np.exp(1j * (fitted - fit.frequencies))))  # up to whole turns per position
    same = off * span <= fit.allowed
    if same.all():
        return Finding("unexplained", f"turned by angles that no hypothesis gives{where}", failed=failed)
    first, last = int(np.argmin(same)), float(fitted[-1] / fit.frequencies[-1])
    if first > 1:  # pair 0 is right under any base
        says = f"pairs 0 to {first - 1} are right and slower ones are not ({last:.4g} times at the last)"
        says = f"{says}: frequency factors are missing, or are others{where}"
        return Finding("rope-factors", says, {"first_pair": first, "ratio": last}, failed=failed)
    worst = int(off.argmax())
    says = f"the angles are others, most at pair {worst}: {fitted[worst]:.6g} radians per position"
    return Finding("unexplained", f"{says}, where the file asks for {fit.frequencies[worst]:.6g}{where}", failed=failed)
