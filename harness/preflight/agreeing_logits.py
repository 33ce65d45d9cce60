"""Logits that are right although tensors before them differ: the dump is suspected before the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firstdiff.dumps import Site
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.verdict import DumpFinding, Logits, SiteVerdict, Status

NEAR = 1e-3
"""Relative difference of logits that no fault of the residual stream is behind: llama.cpp's f16 cache, and float32 sums
in another order, leave 2e-4 on the small models of the tests."""

FAR = 0.1
"""An error of every token's norm or sum that changes the logits by more than `NEAR` if the engine goes on with it."""

WHOLE = ("all", "0")  # tokens that are wrong: all of them, be it one


def suspicion(
    sites: Sequence[SiteVerdict], logits: Sequence[Logits], drifts: Mapping[Site, float], against: str, steps: int
) -> tuple[DumpFinding, ...]:
    """Say that the dump is to be suspected first, where the logits of every step are right all the same.

    Parameters
    ----------
    sites
        The sites judged.
    logits, drifts
        The last tokens' logits, and how far each site is from those of `against`, a right engine.
    steps
        Steps of the run.
    """
    ends = [s.site for s in sites if kind_of(s.point) is Kind.LOGITS]
    diverging = [s for s in sites if s.status is Status.DIVERGES and s.site not in ends]
    loud = [
        s
        for s in diverging
        if kind_of(s.point) in (Kind.SUM, Kind.NORM)
        and (s.local_error or 0) > FAR
        and (s.where or {}).get("token") in WHOLE
    ]
    far = [drifts.get(site, 1.0) for site in ends]
    right = len(logits) == steps and all(x.top1_agrees for x in logits) and max(far, default=1.0) <= NEAR
    if not loud or not right:
        return ()
    worst = max(s.local_error or 0 for s in loud)
    one = len(diverging) == 1
    says = (
        f"the engine's logits agree with those of {against} at every step (they differ by {max(far):.2g} at most), "
        f"although {len(diverging):,} recorded tensor{' differs' if one else 's differ'}, by up to {worst:.2g}"
    )
    fix = f"suspect how {'it was' if one else 'they were'} dumped first, and the engine only then"
    return (DumpFinding("logits-agree", says, fix, tuple(s.site for s in diverging), judged=True),)
