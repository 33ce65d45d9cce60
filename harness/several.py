"""Several candidates side by side: where they part, and which of them is right there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstdiff.verdict import SiteVerdict, Status, Verdict


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

    site: str
    wrong: tuple[str, ...]
    right: tuple[str, ...]

    def sentence(self) -> str:
        """Say it in one line."""
        return f"They part at {self.site}: {' and '.join(self.wrong)} wrong, {' and '.join(self.right)} right."


def names_of(verdicts: Sequence[Verdict], given: Sequence[str]) -> list[str]:
    """What each candidate is called: its own name where that tells them apart, else as it was given."""
    own = [v.candidate for v in verdicts]
    return own if len(set(own)) == len(own) else list(given)


def parting(verdicts: Sequence[Verdict], names: Sequence[str]) -> Parting | None:
    """Find where candidates part; None where none diverges that another one has right."""
    by_site = [{s.site: s for s in v.sites} for v in verdicts]
    for site in verdicts[0].sites:
        each = [sites.get(site.site) for sites in by_site]
        wrong = tuple(n for n, s in zip(names, each, strict=True) if s and s.status is Status.DIVERGES)
        right = tuple(n for n, s in zip(names, each, strict=True) if s and _right(s))
        if wrong and right:
            return Parting(site.site, wrong, right)
    return None


def _right(site: SiteVerdict) -> bool:
    return site.status in (Status.AGREES, Status.INHERITS)


def to_json(verdicts: Sequence[Verdict], names: Sequence[str]) -> str:
    """All verdicts and where they part, ending in a newline."""
    found = parting(verdicts, names)
    record: dict[str, Any] = {
        "format": "firstdiff-verdicts",
        "version": 1,
        "parting": None if found is None else {"site": found.site, "wrong": found.wrong, "right": found.right},
        "candidates": {n: json.loads(v.to_json()) for n, v in zip(names, verdicts, strict=True)},
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"
