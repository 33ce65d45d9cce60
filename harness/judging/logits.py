"""The last token's logits of each step, against another engine's."""

from __future__ import annotations

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layouts import Alignment
from firstdiff.model.arithmetic import Array
from firstdiff.verdict import Logits


def last_logits(trace: Trace, step: int) -> Array | None:
    """The logits of a step's last token [n_vocab]; None where they are not recorded."""
    site = Site(step, None, "result_output")
    return trace[site][-1] if site in trace else None


def logits_against(candidate: Trace, alignment: Alignment, free: list[Array | None]) -> list[Logits]:
    """The logits of each step, read as they are laid out, against another engine's of a `free` run."""
    pairs: list[tuple[int, Array | None, Array | None]] = []
    for step, other in enumerate(free):
        if other is not None:
            like = np.broadcast_to(other, (len(candidate.steps[step].tokens), len(other)))
            own, _ = alignment.read(candidate, Site(step, None, "result_output"), like)
            pairs.append((step, None if own is None else own[-1], other))
    return [
        compare_logits(step, own, other)
        for step, own, other in pairs
        if own is not None and other is not None and own.shape == other.shape and np.isfinite(own).all()
    ]


def compare_logits(step: int, candidate: Array, against: Array) -> Logits:
    """The last token's logits [n_vocab] of a step, compared before any sampler."""
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
