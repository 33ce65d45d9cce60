"""Several candidates side by side: where they part, and which of them is right there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstdiff.dumps.site import Site
from firstdiff.verdict.ranges import enumerated
from firstdiff.verdict.sites import SiteVerdict, Status
from firstdiff.verdict.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Parting:
    """The first site at which candidates part.

    Parameters
    ----------
    site
        The first site, in execution order, where one candidate diverges and another does not.
    wrong, right
        Names of the candidates that diverge there, and of those whose operation is right.
    """

    site: Site
    wrong: tuple[str, ...]
    right: tuple[str, ...]

    def sentence(self) -> str:
        """Say it in one line."""
        return f"They part at {self.site}: {enumerated(self.wrong)} wrong, {enumerated(self.right)} right."


def names_of(verdicts: Sequence[Verdict], given: Sequence[str]) -> list[str]:
    """What each candidate is called: its own name where that tells them apart, else as it was given."""
    own = [v.candidate for v in verdicts]
    if len(set(own)) == len(own):
        return own
    names: list[str] = []
    for name in given:  # one may be given twice
        told_apart = (name, *(f"{name} ({n})" for n in range(2, len(given) + 1)))
        names.append(next(n for n in told_apart if n not in names))
    return names


def parting(verdicts: Sequence[Verdict], names: Sequence[str]) -> Parting | None:
    """Find where candidates part; None where none diverges that another one has right."""
    by_site = [{s.site: s for s in v.sites} for v in verdicts]
    longest = max(verdicts, key=lambda v: len(v.sites))  # the same sites as the others, and further steps
    for site in longest.sites:
        each = [sites.get(site.site) for sites in by_site]
        wrong = tuple(n for n, s in zip(names, each, strict=True) if s and s.status is Status.DIVERGES)
        right = tuple(n for n, s in zip(names, each, strict=True) if s and _right(s))
        if wrong and right:
            return Parting(site.site, wrong, right)
    return None


def summary(verdicts: Sequence[Verdict], names: Sequence[str]) -> list[str]:
    """Say what the candidates have to do with each other: a sentence each."""
    found = parting(verdicts, names)
    if found is not None:
        first = found.sentence()
    elif all(v.verdict == "agrees" for v in verdicts):
        first = f"{'Both' if len(verdicts) == 2 else f'All {len(verdicts)}'} candidates agree with the reference."  # noqa: PLR2004
    else:
        first = "No site is wrong in one candidate and right in another."
    step = _other_tokens(verdicts)
    if step is None:
        return [first]
    return [first, f"They did not run the same tokens: their tokens differ from step {step} on."]


def _other_tokens(verdicts: Sequence[Verdict]) -> int | None:
    """The first step in which candidates ran different tokens; those that ended before it do not count."""
    for step in range(max(len(v.tokens) for v in verdicts)):
        if len({v.tokens[step] for v in verdicts if step < len(v.tokens)}) > 1:
            return step
    return None


def _right(site: SiteVerdict) -> bool:
    return site.status in (Status.AGREES, Status.INHERITS)


def to_json(verdicts: Sequence[Verdict], names: Sequence[str]) -> str:
    """All verdicts and where they part, ending in a newline."""
    found = parting(verdicts, names)
    record: dict[str, Any] = {
        "format": "firstdiff-verdicts",
        "version": 1,
        "parting": None if found is None else {"site": str(found.site), "wrong": found.wrong, "right": found.right},
        "candidates": {n: json.loads(v.to_json()) for n, v in zip(names, verdicts, strict=True)},
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"
