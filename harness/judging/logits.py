"""The last token's logits of each step, against another engine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging import floors
from firstdiff.judging.layouts import Alignment
from firstdiff.model.arithmetic import Array
from firstdiff.verdict import Logits, SiteVerdict, Status


def last_logits(trace: Trace, step: int) -> Array | None:
    """The logits of a step's last token [n_vocab]; None where they are not recorded."""
    site = Site(step, None, "result_output")
    return trace[site][-1] if site in trace else None


def logits_against(
    candidate: Trace, alignment: Alignment, free: list[Array | None], sites: Sequence[SiteVerdict], *, same_input: bool
) -> list[Logits]:
    """The logits of each step, read as they are laid out, against another engine's of a `free` run.

    `sites` are those of both engines, as they were judged. Their difference is the noise of their arithmetics only
    where all of these are right, and both were given the `same_input`.
    """
    pairs: list[tuple[int, Array | None, Array | None]] = []
    for step, other in enumerate(free):
        if other is not None:
            like = np.broadcast_to(other, (len(candidate.steps[step].tokens), len(other)))
            own, _ = alignment.read(candidate, Site(step, None, "result_output"), like)
            pairs.append((step, None if own is None else own[-1], other))
    found = [
        compare_logits(step, own, other)
        for step, own, other in pairs
        if own is not None and other is not None and own.shape == other.shape and np.isfinite(own).all()
    ]
    return [x if same_input and _all_right(sites, x.step) else replace(x, noise=None) for x in found]


def _all_right(sites: Sequence[SiteVerdict], step: int) -> bool:
    """Whether all that was recorded up to the logits of a step was judged, and is right."""
    upstream = [s for s in sites if s.site.step <= step]
    logits = [s for s in upstream if s.point == "result_output" and s.step == step]
    wrong = any(s.status in (Status.DIVERGES, Status.NOT_COMPARABLE) for s in upstream)
    return not wrong and all(s.floor is not None and s.floor < floors.MOST for s in logits)


def compare_logits(step: int, candidate: Array, against: Array) -> Logits:
    """The last token's logits [n_vocab] of a step, compared before any sampler; their difference is called noise."""
    c, a = np.asarray(candidate, np.float64), np.asarray(against, np.float64)
    top, other = int(c.argmax()), int(a.argmax())
    rival = top if top != other else int(np.where(np.arange(len(a)) == other, -np.inf, a).argmax())
    log_p, log_q = a - _log_sum(a), c - _log_sum(c)
    difference = c - a
    return Logits(
        step=step,
        top1=top,
        top1_against=other,
        margin=float(a[other] - a[rival]),
        kl=max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum())),
        noise=float((difference - difference.mean()).std()),
    )


def _log_sum(x: Array) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))
