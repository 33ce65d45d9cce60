"""The layout of every point of a trace, found from its numbers, before anything is judged.

It is settled by what no single fault can change. The order of each head's dimensions is one order for all of Q and K:
the products say which, at most layers; where they are wrong everywhere, norms, then rotations do, and last the names.
"""

from __future__ import annotations

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layout_fit import PLAUSIBLE
from firstdiff.judging.layout_trials import Trial
from firstdiff.judging.layouts import QUERIES, ROTATED, SCORES, Alignment, is_scaled, stated
from firstdiff.judging.needed import Wanted
from firstdiff.judging.passes import run_trace
from firstdiff.judging.rows import Rows
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.probe import Change, unchanged


@np.errstate(all="ignore")  # a candidate's NaN and infinities are compared, not warned of
def aligned(model: Model, trace: Trace) -> Alignment:
    """Give the layouts that a trace's manifest states, and find those of its other points."""
    return align(model, trace, stated(trace))


def align(
    model: Model, trace: Trace, given: Alignment, wanted: Wanted | None = None, changed: Change = unchanged
) -> Alignment:
    """Find the layout of every point of a trace, from the first step that tells; a `given` one stays.

    With `wanted` it is found from these sites only. Where a fault is known that all products have, `changed` makes
    their calls as the engine does.

    A point that is recorded under no layout that fits stays with the plain one, and is then not comparable. Values are
    taken for scaled where they are so at every step.
    """
    for scaled in ((*QUERIES, *SCORES), SCORES, ()):
        found = _tried(model, trace, given, scaled, wanted, changed)
        if found is not None:
            return found
    raise AssertionError("nothing speaks against layouts of which none is scaled")


def _tried(
    model: Model, trace: Trace, given: Alignment, scaled: tuple[str, ...], wanted: Wanted | None, changed: Change
) -> Alignment | None:
    """Layouts of which those of some points may be `scaled`; None where one then is that cannot be."""
    among = wanted and _at_every_step(wanted, min(site.step for site in trace))

    def tried(step: int, few: Rows) -> Trial:
        trial = Trial(F32, trace, model, given, scaled, changed, few)
        run_trace(model, trace, trial, _of_step(step, among), steps=step + 1)
        return trial

    for step in _telling(trace):
        trial = tried(step, Rows.LAST)
        if not trial.found.turned() and (other := tried(step, Rows.FIRST)).found.turned():
            trial = other
        if trial.found.votes.cast or not trial.found.fitting.keys() & {*ROTATED}:
            break
    chosen = trial.found.chosen()
    alignment = Alignment(given.layouts | chosen, trial.found.placed_rows())
    found = [point for point, layout in chosen.items() if is_scaled(layout)]
    if not found:
        return alignment
    if not trial.found.agree(chosen):
        return None
    whole = Trial(F32, trace, model, alignment, (), changed)
    run_trace(model, trace, whole, among)
    pairs = (
        pair for point in found for pair in zip(whole.found.errors[point][0], whole.found.errors[point][1], strict=True)
    )
    return None if any(unscaled <= PLAUSIBLE < scaled for scaled, unscaled in pairs) else alignment


def _telling(trace: Trace) -> list[int]:
    """The first step that is recorded and the one after it, in which Q and K may be numbers where they are NaN before.

    Of a prompt of one token, which no rotation turns, the step after it comes first.
    """
    steps = sorted({site.step for site in trace})
    turned = [step for step in steps if any(trace.steps[step].positions)]
    return (turned or steps or [0])[:2]


def _at_every_step(wanted: Wanted, first: int) -> Wanted:
    """The sites that are wanted of the first step, at every step."""
    return lambda site: wanted(Site(first, site.layer, site.point))


def _of_step(first: int, wanted: Wanted | None) -> Wanted:
    """The wanted sites of a step."""
    return lambda site: site.step == first and (wanted is None or wanted(site))
