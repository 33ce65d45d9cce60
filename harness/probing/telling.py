"""The verdict on a probed engine: the names of its own model, and what the probes do and do not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from firstdiff.dumps import Site
from firstdiff.model.probes.most_probable import Shown
from firstdiff.probing.asking import LOGITS, Asking
from firstdiff.probing.most_probable import as_shown, of_most_probable
from firstdiff.runs.judge import described
from firstdiff.runs.run import Run
from firstdiff.verdict import Explanation, SiteVerdict, Status, Verdict
from firstdiff.verdict.ranges import enumerated

if TYPE_CHECKING:
    from firstdiff.probing.depth import Depth
    from firstdiff.probing.within import Within

READ_BY = ("result_norm", "result_output")
"""Points of a probe model that are none of the model's: its own last norm and output matrix."""


def of_cut(verdict: Verdict, site: Site, run: Run, shown: Shown | None = None) -> Verdict:
    """The verdict on a model that ends after a site, as one on the whole: the logits are what is read of the site.

    `shown` says what these logits are of, where they were made of log probabilities.
    """

    def renamed(of: Site) -> Site:
        return replace(site, step=of.step) if is_end(of) else of

    def is_end(of: Site) -> bool:
        return of.point == LOGITS.point

    def told(text: str) -> str:
        return text.replace(LOGITS.point, str(site))

    def explained(e: Explanation) -> Explanation:
        sites, searched = tuple(map(renamed, e.sites)), None if e.searched is None else renamed(e.searched)
        findings = tuple(map(told, e.findings))
        return replace(
            e,
            site=renamed(e.site),
            sites=sites,
            extent=told(e.extent),
            says=told(e.says),
            findings=findings,
            searched=searched,
        )

    def judged(s: SiteVerdict) -> SiteVerdict:
        if shown is not None and s.site == LOGITS:
            s = as_shown(s, shown)
        if site == LOGITS:
            return s
        segment = tuple(of for of in s.segment if of.point not in READ_BY and of != renamed(s.site))
        return replace(s, site=renamed(s.site), segment=segment, op="add" if is_end(s.site) else s.op)

    check = verdict.counter_check
    own = READ_BY if site != LOGITS else ()
    kept = [
        s for s in verdict.sites if is_end(s.site) or (s.point not in own and s.site != replace(site, step=s.site.step))
    ]
    return replace(
        verdict,
        model=described(run.model) | {"sha256": run.identity.sha256},
        sites=tuple(map(judged, kept)),
        explanations=tuple(map(explained, verdict.explanations)),
        counter_check=None if check is None else replace(check, left=tuple(map(renamed, check.left))),
        logits=(),
        details={} if shown is not None else {renamed(of): detail for of, detail in verdict.details.items()},
    )


def with_judged(verdict: Verdict, judged: Mapping[int, SiteVerdict]) -> Verdict:
    """The verdict with what was found of models that end after a layer, where it holds nothing of that layer's end."""

    def told(s: SiteVerdict) -> SiteVerdict:
        found = None if s.layer is None else judged.get(s.layer)
        if s.point != "l_out" or s.status is not Status.NOT_RECORDED or found is None or s.step != found.step:
            return s
        segment = tuple(of for of in found.segment if of.point not in READ_BY and of != s.site)
        return replace(found, site=s.site, op="add", segment=segment)

    return replace(verdict, sites=tuple(map(told, verdict.sites)))


def summed_up(asking: Asking, depth: Depth, within: Within | None) -> Iterator[str]:
    """What the probes were, and what they do not show."""
    matrix = "the identity" if asking.shows is None else "a matrix of ours"
    yield (
        f"probes: {asking.engine.name} was run {asking.runs} times, mostly on models made of this one. They have a "
        f"small vocabulary, a last norm whose weight is ones, and {matrix} in float32 as output matrix. Your engine "
        "may use other kernels for these than for the model's own, so that a fault of those kernels may not show"
    )
    if asking.shows is not None:
        yield from of_most_probable(len(asking.shows), asking.run.model.hp.n_embd, depth.own_rows)
    yield from _in_parts(asking, depth)
    yield from _layers(depth)
    yield from _within(within)
    if within is not None and within.alone is False:
        yield (
            f"layer {within.layer} is right in a model of one layer: what is wrong depends on the number of the layer, "
            "or on other layers"
        )
    elif within is not None and within.alone:
        yield (
            f"layer {within.layer} is wrong in a model of one layer too: what is wrong goes with its weights or its "
            "input"
        )


def _in_parts(asking: Asking, depth: Depth) -> Iterator[str]:
    """What is known of a prompt that is run in parts."""
    if depth.parts:
        yield (
            f"wrong is the prompt in parts of {enumerated(list(map(str, depth.parts)))} tokens, each of which is run "
            "with the cache of the parts before it; all tokens at once are right"
        )
    elif depth.one_token is not None:
        yield (
            f"decoding was not judged: given several tokens your engine computes in {depth.arithmetic}, and given one "
            f"it computes in {depth.one_token}"
        )
    elif depth.in_parts is not None and (found := depth.in_parts.found) is not None:
        parts, layers = depth.in_parts.parts, sorted(depth.in_parts.judged)
        said = "output of layer" if len(layers) == 1 else "outputs of layers"
        read = f" and the {said} {enumerated(list(map(str, layers)))}"
        yield (
            f"decoding: the prompt in parts of {enumerated(list(map(str, parts)))} tokens is right too. Judged were "
            f"the model's logits (error {found.local_error:.2g}, floor {found.floor:.2g}){read if layers else ''}"
        )
    elif asking.shows is not None:
        yield "decoding was not judged: a server is not told how many tokens to run at a time"
    elif not asking.engine.decodes:
        yield (
            "decoding was not judged: for that the command needs {parts}, which is how many of the tokens to run at a "
            "time ('5,1,1'), part after part in one run, each with the cache of the parts before it"
        )


def _within(within: Within | None) -> Iterator[str]:
    if within is None:
        return
    yield from within.refused
    if within.right_by_means:
        points = sorted({site.point for site in within.right_by_means})
        yield (
            f"{enumerated(points)} of layer {within.layer}: the products of these weights are right where they are "
            "made in the values' place; that the engine uses them so at their own place is not shown"
        )


def _layers(depth: Depth) -> Iterator[str]:
    right = sorted(layer for layer, found in depth.judged.items() if found.status is not Status.DIVERGES)
    wrong = sorted(layer for layer, found in depth.judged.items() if found.status is Status.DIVERGES)
    last = depth.asking.run.model.hp.n_layer - 1
    if wrong and wrong[0] < last:
        yield (
            f"the layers after layer {wrong[0]} (up to {last}) were not judged, because their inputs are wrong: probe "
            "again when this is mended"
        )
    together = [b for a, b in pairwise([-1, *right]) if b - a > 1]
    if together:
        yield (
            f"what leaves layers {', '.join(map(str, right))} was read; the layers between were judged together, so "
            "that a fault which changes less than the floor of such a group does not show"
        )
