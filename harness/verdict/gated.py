"""What a gate says of one case: its verdict, held to limits and to a baseline. Reports are rendered from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstdiff.dumps.site import Site
from firstdiff.verdict.verdict import Verdict
from firstdiff.verdict.writing import strict

FORMAT, VERSION = "firstdiff-gate", 1


@dataclass(frozen=True, slots=True)
class Moved:
    """A site that is not what it was in the baseline: its status and local error, before and now."""

    site: Site
    was: str
    now: str
    error_was: float | None
    error: float | None


@dataclass(frozen=True, slots=True)
class Changes:
    """A verdict beside its baseline.

    Parameters
    ----------
    worsened, improved
        Sites that were right and diverge now, or whose error grew by more than rounding does; and the reverse.
    new
        Sites that are judged now and were not.
    vanished
        Sites that were judged and are not now, each with the status that it has in place of a judgement.
    same, common
        Of the tensors that both have a hash of: those that are the same to the bit, and all.
    """

    worsened: tuple[Moved, ...] = ()
    improved: tuple[Moved, ...] = ()
    new: tuple[Site, ...] = ()
    vanished: tuple[tuple[Site, str], ...] = ()
    same: int = 0
    common: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """One case.

    Parameters
    ----------
    case
        Its name.
    verdict
        What was found; None where there was nothing to judge, and `failures` says why.
    failures
        Why the case does not pass, a sentence each; none where it passes.
    code
        The exit code: 0 passes, 1 fails, 2 to 4 as for every command.
    changes
        What changed since the baseline; None where nothing was compared with one.
    notes
        What else is to be known.
    report
        Path of the page to look at, or of ``verdict.json`` where there is no page.
    resumed
        Whether it was judged in an earlier run, and is taken from there.
    """

    case: str
    verdict: Verdict | None
    failures: tuple[str, ...]
    code: int
    changes: Changes | None = None
    notes: tuple[str, ...] = ()
    report: str | None = None
    resumed: bool = False

    @property
    def passes(self) -> bool:
        """Whether nothing is wrong."""
        return self.code == 0


def to_json(cases: Sequence[Checked], every: Sequence[str] | None = None) -> str:
    """All cases of a gate, ending in a newline; their whole verdicts are in the files that `report` stands beside.

    `every` names all cases of the gate, where these are a part of them.
    """
    record = {
        "format": FORMAT,
        "version": VERSION,
        **({"every": every} if every is not None else {}),
        "passes": all(c.passes for c in cases),
        "cases": {c.case: _plain(c) for c in cases},
    }
    return json.dumps(strict(record), indent=1, allow_nan=False) + "\n"


def _plain(c: Checked) -> dict[str, Any]:
    verdict = c.verdict
    return {
        "passes": c.passes,
        "code": c.code,
        "failures": c.failures,
        "verdict": None if verdict is None else verdict.verdict,
        "first": None if verdict is None or verdict.first is None else verdict.first.site,
        "coverage": None if verdict is None else verdict.coverage,
        "explanations": () if verdict is None else verdict.explanations,
        "changes": c.changes,
        "notes": c.notes,
        "report": c.report,
    }
