"""A site's values beside those that they are held against: the reference's on the same inputs, or another engine's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, axes_of, kind_of, token_axis
from firstdiff.engines.identity import engine_name
from firstdiff.errors import UsageError
from firstdiff.judging.layouts import stated
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.judging.rows import Mask, both, counted, of_rows
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.runs.replaying import understood
from firstdiff.verdict import Status

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two tensors of one site, laid out alike.

    Parameters
    ----------
    site
        Which.
    candidate, other
        Their values.
    seen
        Entries that count, broadcastable; None for all.
    called, of
        The candidate, and what it is held against, in words.
    floor
        The local error that a correct engine stays below; None for another engine's values.
    """

    site: Site
    candidate: Array
    other: Array
    seen: npt.NDArray[np.bool_] | None
    called: str
    of: str
    floor: float | None

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return axes_of(self.site.point, self.candidate.ndim)

    @property
    def token_axis(self) -> int:
        """The axis along which positions go."""
        return token_axis(self.axes)

    def errors(self, axis: int) -> Floats:
        """Relative error along one axis: the norm of the difference over the norm of the other's values.

        Infinite where the candidate is not finite, or has something in place of exact zeros.
        """
        c, r = (np.asarray(x, np.float64) for x in (self.candidate, self.other))
        if self.seen is not None:
            c, r = np.where(self.seen, c, 0.0), np.where(self.seen, r, 0.0)
        rest = tuple(i for i in range(c.ndim) if i != axis)
        with np.errstate(all="ignore"):
            difference, size = (np.sqrt((x**2).sum(rest)) for x in (c - r, r))
            error = np.where(difference == 0, 0.0, difference / size)
        return np.where(np.isfinite(error), error, np.inf)

    def counted(self) -> tuple[Floats, Floats]:
        """The values that count, flat."""
        c, r = (np.asarray(x, np.float64) for x in (self.candidate, self.other))
        if self.seen is None:
            return c.ravel(), r.ravel()
        seen = np.broadcast_to(self.seen, c.shape)
        return c[seen], r[seen]


@dataclass
class _Kept:
    """Both tensors of a judged site, and which entries of them count, kept as they come by."""

    tensors: dict[Site, tuple[Array, Array, Mask | None]] = field(default_factory=dict)

    def take(
        self, site: Site, _status: Status, candidate: Array, reference: Array, *, seen: Mask | None, **_rest: object
    ) -> None:
        """Keep them."""
        self.tensors[site] = candidate, reference, seen


def local(model: Model, trace: Trace, site: Site) -> Pair:
    """A site's recorded values, and the reference's on the inputs that the trace recorded.

    Only what the site needs is computed.

    Raises
    ------
    UsageError
        Where the trace does not hold the site, or in a shape that does not fit.
    """
    found, alignment = understood(model, trace, logits=kind_of(site.point) is Kind.LOGITS)
    kept = _Kept()
    probe = Replay.of(found, trace, alignment, details=kept)
    run_trace(model, trace, probe, lambda each: each == site, steps=site.step + 1)
    if site not in kept.tensors:
        reason = probe.sites[-1].reason if probe.sites else None
        if reason is None:
            _check(trace, site)
        raise UsageError(f"{site}: {reason or f'its recorded shape {list(trace.shape(site))} does not fit the model'}")
    recorded, computed, seen = kept.tensors[site]
    of = f"the reference ({found.of(len(trace.steps[site.step].tokens)).arithmetic.name}) on the same inputs"
    return _pair(trace, site, recorded, computed, seen, of=of, floor=probe.sites[-1].floor)


def free(trace: Trace, other: Trace, site: Site) -> Pair:
    """A site's values in two traces, each of a free run; the other one is laid out as the reference has it.

    Raises
    ------
    UsageError
        Where one of them does not hold the site, or in shapes that do not fit.
    """
    for each in (trace, other):
        _check(each, site)
    values = other[site]
    recorded, rows, reason = stated(trace).read_rows(trace, site, values)
    if recorded is None or site.point in stated(other).layouts:
        raise UsageError(f"{site}: the two traces lay it out in different ways ({reason or 'as their manifests say'})")
    seen = both(counted(site.point, values), rows)
    return _pair(trace, site, recorded, values, seen, of=f"{engine_name(other)}, run freely", floor=None)


def _pair(
    trace: Trace, site: Site, recorded: Array, other: Array, seen: Mask | None, *, of: str, floor: float | None
) -> Pair:
    """Without the tokens of which nothing counts: their rows were not recorded, and are filled in."""
    axes = axes_of(site.point, recorded.ndim)
    if seen is not None:
        shown, axis = np.broadcast_to(seen, recorded.shape), token_axis(axes)
        rows = np.asarray(shown.any(tuple(i for i in range(shown.ndim) if i != axis)))
        recorded, other = of_rows(recorded, rows, axes), of_rows(other, rows, axes)
        seen = None if shown.all() else np.compress(rows, shown, axis)
    return Pair(site, recorded, other, seen, engine_name(trace), of, floor)


def _check(trace: Trace, site: Site) -> None:
    if site not in trace:
        known = ", ".join(map(str, trace.sites()[:6]))
        raise UsageError(f"{site}: {engine_name(trace)} did not record it (its first sites are {known})")
