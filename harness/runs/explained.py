"""``firstdiff explain``: from a verdict, or a trace that is judged first, to the explanations asked for."""

from __future__ import annotations

import difflib
from pathlib import Path

from firstdiff.dumps import open_trace
from firstdiff.engines.identity import named_model
from firstdiff.errors import UsageError
from firstdiff.explaining.budget import SECONDS
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.folder import FILE
from firstdiff.runs.judge import judge
from firstdiff.runs.run import begun
from firstdiff.verdict import Explanation, Verdict
from firstdiff.verdict.reading import read_verdict


def verdict_of(
    path: Path,
    model: Path | None,
    names: str | None = None,
    *,
    site: str | None = None,
    budget: float | None = None,
    progress: Progress = QUIET,
) -> Verdict:
    """Read a verdict (a file, or one in a run's folder), or judge a trace.

    With a `budget` of seconds for the search, only `site` is searched, if one is given.

    Raises
    ------
    TraceError
        For a file that is neither, or is damaged.
    UsageError
        For a trace without its model, or a budget for a verdict.
    """
    if path.suffix == ".json" or (model is None and (path / FILE).is_file()):
        if budget is not None:
            raise UsageError(f"--budget: {path} is a verdict, which is read and not searched again: give the trace")
        return read_verdict(path if path.suffix == ".json" else path / FILE)
    trace = open_trace(path, names=names)
    seconds, only = (SECONDS, None) if budget is None else (budget, site)
    return judge(begun(model or named_model(trace), progress=progress, budget=seconds, only=only), trace)


def chosen(verdict: Verdict, site: str | None) -> tuple[Explanation, ...]:
    """The explanations of a site, or all.

    Raises
    ------
    UsageError
        For a site that the verdict does not have.
    """
    if site is None:
        return verdict.explanations
    known = {str(s.site): s.site for s in verdict.sites}
    if site not in known:
        near = difflib.get_close_matches(site, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "sites are written as Kcur_rope-3, or Kcur_rope-3@1 at step 1"
        raise UsageError(f"{site!r:.80} is no site among the verdict's {len(known):,}: {hint}")
    return tuple(e for e in verdict.explanations if known[site] in e.sites)
