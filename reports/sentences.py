"""The sentences of every report: what is the first to go wrong, or that nothing is.

They are plain strings, as those of :mod:`firstdiff.reports.words`.

`where` is the name or path of ``verdict.json``, to be named where something is left out; None if there is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from firstdiff.reports.facts import reasons
from firstdiff.reports.sensitivity import sensitivity
from firstdiff.reports.words import NAMED, REASONS, along, apart, counted, listed, named_steps, runs
from firstdiff.verdict import Failed, SiteVerdict, Status, Verdict, Witness


def sentences(verdict: Verdict, where: str | None = None) -> list[str]:
    """What is the first to go wrong, or that nothing is: the headline, then a paragraph each.

    What is wrong with the dump itself comes first, then what does not hold of the input contract, and both before all
    tensors: they differ because of it.
    """
    if verdict.first is not None:
        told = _divergence(verdict, verdict.first, where)
    elif verdict.judged and (verdict.beside or verdict.broken_beside):
        told = [_beside(verdict, where), _agreement(verdict)]
    elif verdict.judged and not verdict.uncompared:
        told = [_agreement(verdict), *sensitivity(verdict)]
    elif verdict.judged:
        told = [f"This is no pass: {verdict.uncompared}.", _why_not(verdict), _agreement(verdict)]
    else:
        told = ["Nothing could be compared: this is no pass.", _why(verdict)]
    before = *dump(verdict), *contract(verdict)
    return [x for x in (*before, *told, untried(verdict.failed, where), _judged(verdict)) if x]


def dump(verdict: Verdict) -> list[str]:
    """What is wrong with the dump itself, a sentence or two each; nothing where it holds what the engine computed."""
    return [f"Before any tensor, the dump: {f.says}. To do: {f.fix}." for f in verdict.dump]


def contract(verdict: Verdict) -> list[str]:
    """What does not hold of the input contract, a sentence each; nothing where all holds."""
    told = [
        f"{says[:1].upper()}{says[1:]}." if check == "engine" else f"Before any tensor, {check}: {says}."
        for check, says in verdict.broken.items()
    ]
    beside = verdict.broken_beside.items()
    return told + [f"Before any tensor of the second trace, {check}: {says}." for check, says in beside]


def _divergence(verdict: Verdict, first: SiteVerdict, where: str | None) -> list[str]:
    kind, of = _claim(verdict)
    among = f" among the {verdict.judged:,} sites {kind}{of}" if of else ""
    error, floor = apart(first.local_error, first.floor)
    wrong = ", ".join(along(axis, span) for axis, span in (first.where or {}).items())
    head = f"{first.site} is the first to go wrong{among}: "
    return [
        head + f"{first.op}, local error {error} against a floor of {floor}.",
        (f"Wrong at {wrong}. " if wrong else "") + _origin(verdict, first, where),
        _element(first),
        _earlier(verdict, first),
        _more(verdict.diverging, where),
        _doubt(verdict.witness, first),
        _beside(verdict, where),
    ]


def _agreement(verdict: Verdict) -> str:
    kind, of = _claim(verdict)
    judged = [s for s in verdict.sites if s.local_error is not None]
    largest = ""
    if judged:
        worst = max(judged, key=lambda s: s.local_error or 0.0)
        error, floor = apart(worst.local_error, worst.floor)
        largest = f": largest local error {error} ({worst.site}), floor {floor}"
    sites = "The only {} site" if verdict.judged == 1 else f"Every one of the {verdict.judged:,} {{}} sites"
    trace = " of the first trace" if verdict.beside or verdict.broken_beside else ""
    return f"{sites.format(kind)}{trace}{of} agrees{largest}."


def _beside(verdict: Verdict, where: str | None) -> str:
    """Say where the second of two traces diverges: the verdict is of both."""
    if not verdict.beside or verdict.witness is None:
        return ""
    return (
        f"The second trace ({verdict.witness.engine}) diverges from the reference at {listed(verdict.beside, where)}."
    )


def _claim(verdict: Verdict) -> tuple[str, str]:
    """The sites a claim covers, never more than was seen: of what kind, and of how many if not all."""
    judged, sites = verdict.judged, len(verdict.sites)
    kind = "recorded" if judged == verdict.coverage["recorded"] else "compared"
    return kind, "" if judged == sites else f" (of {sites:,})"


def _why(verdict: Verdict) -> str:
    if not verdict.sites:
        return "The verdict holds no sites."
    missing, why = verdict.coverage["sites"] - verdict.coverage["recorded"], reasons(verdict)
    return f"Of {counted(len(verdict.sites), 'site')}, {missing:,} not recorded" + (f", {why}." if why else ".")


def _why_not(verdict: Verdict) -> str:
    why = reasons(verdict)
    return f"{why[:1].upper()}{why[1:]}." if why else ""


def untried(failed: Sequence[Failed], where: str | None = None) -> str:
    """Say which hypotheses could not be tried, where, and why; nothing where all could."""
    if not failed:
        return ""
    errors: dict[str, str] = {}
    for f in failed:
        errors.setdefault(f.hypothesis, f"{f.hypothesis} ({f.error})")
    number = "One hypothesis" if len(errors) == 1 else f"{len(errors):,} hypotheses"
    sites = listed(tuple(dict.fromkeys(f.site for f in failed)), where)
    told = listed(tuple(errors.values()), where, most=REASONS)
    return f"{number} could not be tried at {sites}: {told}. This is a defect of firstdiff: please report it."


def _judged(verdict: Verdict) -> str:
    steps, tokens = len(verdict.tokens), sum(map(len, verdict.tokens))
    model = f", on {verdict.model['file']}" if verdict.model.get("file") else ""
    length = f", {counted(tokens, 'token')} in {counted(steps, 'step')}" if steps else ""
    return f"Judged: {verdict.candidate} against {verdict.against}{model}{length}."


def _origin(verdict: Verdict, site: SiteVerdict, where: str | None) -> str:
    """What is known of the inputs of the first divergence, and what to dump to know more."""
    segment = site.segment
    if site.leans:
        return _unseen_rows(site)
    if not segment:
        return "Its inputs are right." if site.inputs_right else "Its inputs are wrong too."
    statuses = {s.site: s.status for s in verdict.sites}
    missing = " or ".join(dict.fromkeys(statuses.get(s, Status.NOT_RECORDED) for s in segment))
    dump = _dump(verdict, where)
    if len(segment) == 1:
        return f"Its inputs are not judged: {segment[0]} was {missing}.{dump}"
    before = f"one of the {len(segment):,} tensors before it that were {missing}"
    return f"The error arises in {site.site} itself, or in {before}.{dump}"


def _unseen_rows(site: SiteVerdict) -> str:
    """What is known of a site that reads rows of other tokens, where the dump lacks these."""
    layers = {0: "layer 0", None: "all layers"}.get(site.layer, f"layers 0 to {site.layer}")
    return (
        f"It reads rows of other tokens that your dump lacks: the error arises in {site.site} itself, or in those rows "
        f"of a tensor before it. Dump the rows of all tokens of {layers} next."
    )


def _dump(verdict: Verdict, where: str | None) -> str:
    sites = verdict.dump_next
    if not sites or verdict.model.get("probed"):  # nothing can be dumped of an engine that only gives logits
        return ""
    points, layers = {site.point for site in sites}, {site.layer for site in sites}
    if len(layers) > 1 and len(points) == 1:
        return f" Dump {points.pop()} of layers {runs(n for n in layers if n is not None)} next."
    (*inside,) = layers - {None}
    if len(inside) == 1 and len(sites) > 2 * NAMED:  # without the layer's number, all of them are two lines
        outside = [site.point for site in sites if site.layer is None]
        of = ", ".join(site.point for site in sites if site.layer is not None)
        return f" Dump {' and '.join([*outside, 'these'])} of layer {inside[0]} next: {of}."
    these = "this" if len(sites) == 1 else "these"
    return f" Dump {these} next: {listed([site.key for site in sites], where, most=2 * NAMED)}."


def _element(site: SiteVerdict) -> str:
    at = ""
    if site.worst is not None:
        candidate, reference = apart(site.worst.candidate, site.worst.reference, digits=4)
        own, index = site.worst.there, list(site.worst.index)
        place = f"{index}" if own is None else f"{list(own)} of your tensor ({index} in the reference's layout)"
        at = f"{place}: {candidate}, expected {reference}."
    if site.not_finite:
        broken = f"NaN or infinity in {counted(site.not_finite, 'element')}"
        return f"{broken}; the first at {at}" if at else f"{broken}."
    return at and f"Worst element {at}"


def _earlier(verdict: Verdict, first: SiteVerdict) -> str:
    """That the steps before the first divergence are right is half of a diagnosis."""
    steps = {s.step for s in verdict.sites if s.step < first.step and s.local_error is not None}
    if not steps:
        return ""
    return f"{named_steps(steps)} {'agrees' if len(steps) == 1 else 'agree'} at every site judged."


def _more(diverging: Sequence[SiteVerdict], where: str | None) -> str:
    """The other errors: by name where they are few, else by point."""
    more = len(diverging) - 1
    if not more:
        return ""
    head = f"{more:,} more {'site diverges on its' if more == 1 else 'sites diverge on their'} own inputs"
    if more <= NAMED:
        return f"{head}: {', '.join(str(s.site) for s in diverging[1:])}."
    points: dict[str, list[SiteVerdict]] = defaultdict(list)
    for site in diverging:
        points[site.point].append(site)
    return f"{head}; in all: {listed([_spread(*p) for p in points.items()], where, comma='; ')}."


def _spread(point: str, sites: Sequence[SiteVerdict]) -> str:
    """Say where one point diverges: ``Kcur_rope in layers 0-29 of steps 0-4``."""
    layers, steps = {s.layer for s in sites if s.layer is not None}, {s.step for s in sites}
    whole = len(sites) == max(len(layers), 1) * len(steps)
    within = f" in layer{'s' * (len(layers) > 1)} {runs(layers)}" if layers else ""
    of = f" of {named_steps(steps).lower()}" if steps != {0} else ""
    return f"{point}{within}{of}" + ("" if whole else f" ({counted(len(sites), 'site')})")


def _doubt(witness: Witness | None, first: SiteVerdict) -> str:
    """Who is wrong is settled by the two that agree: say so where it is not the reference and llama.cpp."""
    if witness is None or first.site not in witness.diverges:
        return ""
    return f"{witness.engine} diverges from the reference there too: the reference may be wrong there."
