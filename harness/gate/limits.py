"""A verdict held to limits."""

from __future__ import annotations

from firstdiff.gate.config import Limits
from firstdiff.verdict import SiteVerdict, Verdict


def held(verdict: Verdict, limits: Limits) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hold a verdict to limits: why it fails, a sentence each, and what else is to be known."""
    from firstdiff.reports.sentences import sentences

    said = sentences(verdict)
    dump, said = said[: len(verdict.dump)], said[len(verdict.dump) :]
    if verdict.verdict == "incomparable":
        return (*dump, *said[: len(verdict.broken) + 2]), ()
    failures = said[: len(verdict.broken)]
    over = [s for s in verdict.diverging if not _is_within(s, verdict, limits)]
    excused = len(verdict.diverging) - len(over)
    if over:
        failures.append(_over(over[0], limits) if excused else said[len(verdict.broken)])
    failures += [*_coverage(verdict, limits), *_kl(verdict, limits)]
    notes = [f"{sites_are(excused)} diverging, and within the limits"] if excused else []
    if failures:
        return (*dump, *failures), tuple(notes)
    return (), (*(sentence.removesuffix(".") for sentence in dump), *notes)


def _is_within(site: SiteVerdict, verdict: Verdict, limits: Limits) -> bool:
    """Whether a diverging site's error is small enough, or its explanation an allowed one."""
    if site.local_error is not None and site.floor is not None and site.local_error <= limits.floors * site.floor:
        return True
    return any(
        site.site in e.sites and e.hypothesis is not None and set(e.hypothesis.split(" + ")) <= set(limits.allowed)
        for e in verdict.explanations
    )


def _over(site: SiteVerdict, limits: Limits) -> str:
    from firstdiff.reports.words import apart

    error, limit = apart(site.local_error, limits.floors * (site.floor or 0.0))
    return f"{site.site} is the first beyond the limits: {site.op}, local error {error} against a limit of {limit}."


def _coverage(verdict: Verdict, limits: Limits) -> list[str]:
    share = verdict.judged / len(verdict.sites)
    if share >= limits.coverage:
        return []
    judged = f"Only {verdict.judged:,} of {len(verdict.sites):,} sites were judged ({share:.3f})"
    return [f"{judged}, and the limits ask for {limits.coverage:g}: dump more of them."]


def _kl(verdict: Verdict, limits: Limits) -> list[str]:
    if limits.kl is None:
        return []
    if not verdict.logits:
        return ["The limits name a KL divergence, and no logits could be compared: dump result_output."]
    bad = next((x for x in verdict.logits if not x.kl <= limits.kl), None)
    if bad is None:
        return []
    return [f"KL divergence {bad.kl:.2g} nats at step {bad.step}, and the limits allow {limits.kl:g}."]


def sites_are(n: int, of: str = "") -> str:
    """Write ``1 site is``, ``12 sites are``."""
    return f"1 site{of} is" if n == 1 else f"{n:,} sites{of} are"
