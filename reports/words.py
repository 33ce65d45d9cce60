"""The words of every report: sentences, facts, numbers and lists for people, as plain strings.

Whoever prints them makes them fit for its page: names in traces are hostile, and are passed on as they are.

`where` is the name or path of ``verdict.json``, to be named where something is left out; None if there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import inf, isfinite, isnan

from firstdiff.dumps.points import plural
from firstdiff.verdict import Failed, Logits, SiteVerdict, Status, Verdict, Witness

NAMED = 6  # sites named one by one in a sentence: two lines of 80 columns
REASONS = 3  # of sites that are not comparable, and of steps whose top-1 differs
WHOLE = range(100, 1_000_000)  # numbers written without decimals


# The sentences.


def sentences(verdict: Verdict, where: str | None = None) -> list[str]:
    """What is the first to go wrong, or that nothing is: the headline, then a paragraph each.

    What does not hold of the input contract comes before all tensors: they differ because of it.
    """
    if verdict.first is not None:
        told = _divergence(verdict, verdict.first, where)
    elif verdict.judged and (verdict.beside or verdict.broken_beside):
        told = [_beside(verdict, where), _agreement(verdict)]
    elif verdict.judged:
        told = [_agreement(verdict)]
    else:
        told = ["Nothing could be compared: this is no pass.", _why(verdict)]
    return [x for x in (*contract(verdict), *told, untried(verdict.failed, where), _judged(verdict)) if x]


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
    missing, reasons = verdict.coverage["sites"] - verdict.coverage["recorded"], _reasons(verdict)
    return f"Of {counted(len(verdict.sites), 'site')}, {missing:,} not recorded" + (f", {reasons}." if reasons else ".")


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
    if not segment:
        return "Its inputs are right." if site.inputs_right else "Its inputs are wrong too."
    statuses = {s.site: s.status for s in verdict.sites}
    missing = " or ".join(dict.fromkeys(statuses.get(s, Status.NOT_RECORDED) for s in segment))
    dump = _dump(verdict, where)
    if len(segment) == 1:
        return f"Its inputs are not judged: {segment[0]} was {missing}.{dump}"
    span = f"{segment[0]} … {segment[-1]}"
    return f"The error arises somewhere in {span}, which were {missing}, or in {site.site} itself.{dump}"


def _dump(verdict: Verdict, where: str | None) -> str:
    sites = verdict.dump_next
    if not sites:
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
        at = f"{list(site.worst.index)}: {candidate}, expected {reference}."
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


# Cells of the table of diverging sites.


def place(site: SiteVerdict) -> str:
    """Only the axes that narrow the error down."""
    if not site.where:
        return ""
    return ", ".join(along(axis, span) for axis, span in site.where.items() if span != "all") or "everywhere"


def along(axis: str, span: str) -> str:
    """Write ``tokens 0, 3-5`` and ``token 0``."""
    return f"{axis if span.partition(' (')[0].isdigit() else plural(axis)} {span}"


def inputs(site: SiteVerdict) -> str:
    """What is known of a site's inputs, in a word."""
    if not site.inputs_right:
        return "wrong"
    return "not judged" if site.segment else "right"


# Coverage, arithmetic, witness, logits, notes.


def facts(verdict: Verdict, where: str | None = None) -> list[tuple[str, str]]:
    """Labels and what stands beside them, those with nothing to say left out."""
    told = [
        ("coverage", _coverage(verdict)),
        ("", _reasons(verdict) if verdict.judged else ""),
        ("preflight", ", ".join(f"{k} {v}" for k, v in verdict.preflight.items() if k not in verdict.broken)),
        ("layouts", _layouts(verdict.layouts)),
        ("arithmetic", ", ".join(f"{k} {v}" for k, v in verdict.arithmetic.items())),
        ("witness", _witness(verdict, where)),
        ("logits", _logits(verdict.logits)),
        *(("note", note) for note in verdict.notes),
    ]
    return [(label, words) for label, words in told if words]


def _layouts(layouts: dict[str, str]) -> str:
    """Points by the layout that was taken for them."""
    by_layout: dict[str, list[str]] = {}
    for point, says in layouts.items():
        by_layout.setdefault(says, []).append(point)
    return "; ".join(f"{', '.join(points)}: {says}" for says, points in by_layout.items())


def _coverage(verdict: Verdict) -> str:
    count = Counter(s.status for s in verdict.sites)
    recorded = verdict.coverage["recorded"]
    statuses = ", ".join(f"{s} {count[s]:,}" for s in Status if count[s])
    return f"{recorded:,} of {counted(len(verdict.sites), 'site')} recorded" + (f": {statuses}" if statuses else "")


def _reasons(verdict: Verdict) -> str:
    """Why sites are not comparable: the three most frequent reasons, each with a site to look at."""
    sites: dict[str, list[object]] = defaultdict(list)
    for s in verdict.sites:
        if s.status is Status.NOT_COMPARABLE:
            sites[s.reason or "no reason given"].append(s.site)
    if not sites:
        return ""
    ranked = sorted(sites.items(), key=lambda item: -len(item[1]))
    told = [f"{why} ({s[0]}{f' and {len(s) - 1:,} more' if len(s) > 1 else ''})" for why, s in ranked[:REASONS]]
    if len(ranked) > REASONS:
        told.append(f"and {counted(len(ranked) - REASONS, 'more reason')}")
    return f"{sum(map(len, sites.values())):,} not comparable: {'; '.join(told)}"


def _witness(verdict: Verdict, where: str | None) -> str:
    witness = verdict.witness
    if witness is None:
        return ""
    told = [f"{witness.engine} judged on the same tokens: {witness.agrees:,} agree"]
    sites = {s.site: s for s in verdict.sites}
    candidate: dict[str, list[object]] = {}
    for site in witness.diverges:
        candidate.setdefault(_beyond(sites.get(site)), []).append(site)
    for does, of in sorted(candidate.items()):
        told.append(f"it diverges from the reference where the candidate {does} at {listed(of, where)}")
    if not witness.judged_too:
        told += [f"{check}: {says}" for check, says in witness.broken.items()]
    return "; ".join(told)


def _beyond(site: SiteVerdict | None) -> str:
    """Whether a candidate leaves the reference at a site: one that the witness leaves too keeps its local error."""
    if site is None or site.local_error is None or site.floor is None:
        return "is not judged"
    return "does not" if site.local_error <= site.floor else "does too"


def _logits(logits: Sequence[Logits]) -> str:
    if not logits:
        return ""
    flips = [x for x in logits if not x.top1_agrees]
    told = [_flip(x) for x in flips[:REASONS]]
    if len(flips) > REASONS:
        told.append(f"and at {counted(len(flips) - REASONS, 'more step')}")
    worst = max(logits, key=lambda x: inf if isnan(x.kl) else x.kl)
    told = told or ["top-1 agrees at every step"]
    return "; ".join([*told, f"KL at most {number(worst.kl)} nats (step {worst.step})"])


def _flip(x: Logits) -> str:
    told = f"top-1 differs at step {x.step} (token {x.top1} for {x.top1_against}), margin {number(x.margin)}"
    noise = f"the arithmetics' noise of {number(x.noise)}"
    if not x.within_noise:
        return f"{told} outside {noise}"
    few = "" if x.margin <= x.noise else "a few times "
    return f"{told} within {few}{noise}: no divergence"


# Numbers and lists.


def number(x: float | None, digits: int = 2) -> str:
    """A number in two digits; in full where it reads better so, ``-`` where there is none."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if isfinite(x) and int(abs(x)) in WHOLE else f"{x:.{digits}g}"


def apart(a: float | None, b: float | None, digits: int = 2) -> tuple[str, str]:
    """Two numbers, with as many digits as it takes to see that they are not the same."""
    pairs = [(number(a, n), number(b, n)) for n in range(digits, 10)]
    return next((p for p in pairs if p[0] != p[1]), pairs[0])


def counted(n: int, noun: str) -> str:
    """Write ``1 site``, ``1,200 sites``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[object], where: str | None = None, *, comma: str = ", ", most: int = NAMED) -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - most
    return comma.join(map(str, names[:most])) + (f" and {more:,} more{all_in(where)}" if more > 0 else "")


def all_in(where: str | None) -> str:
    """Where to find what was left out, to stand behind a number or a noun; nothing where there is no such file."""
    return f" ({where} has all)" if where else ""


def named_steps(steps: Iterable[int]) -> str:
    """Write ``Step 0``, or ``Steps 0, 2-4``."""
    written = runs(steps)
    return f"Step {written}" if written.isdigit() else f"Steps {written}"


def runs(numbers: Iterable[int]) -> str:
    """Write ``0, 2, 3, 4`` as ``0, 2-4``."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
