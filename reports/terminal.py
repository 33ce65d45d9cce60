"""The verdict for a terminal: in a sentence what is the first to go wrong, then a map, a table, the coverage.

Readable in 60 columns and in black and white: colour only repeats what the characters say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from math import inf, isfinite, isnan
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from firstdiff.verdict import Logits, SiteVerdict, Status, Verdict, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Pattern = dict[tuple[int | None, str], Status]

MARKS = {
    Status.AGREES: ("·", "green"),
    Status.INHERITS: ("~", "yellow"),
    Status.DIVERGES: ("X", "bold red"),
    Status.NOT_RECORDED: ("-", "dim"),
    Status.NOT_COMPARABLE: ("?", "magenta"),
}
"""One character and one style for each status."""

NAMED = 6  # sites named one by one in a sentence: two lines of 80 columns
ROWS = 20  # of the table of diverging sites
LAYERS = 40  # rows of the map: a screen, where no two neighbours are alike
NARROW = 72  # columns below which the table leaves out operation and drift, so that `where` keeps its room
REASONS = 3  # of sites that are not comparable, and of steps whose top-1 differs
WHOLE = range(100, 1_000_000)  # numbers written without decimals
ALL = "verdict.json has all"

HEADINGS = {
    **{f"{x}cur": ("cur", x) for x in "QKV"},
    **{f"{x}cur_normed": ("norm", x) for x in "QK"},
    **{f"{x}cur_rope": ("rope", x) for x in "QK"},
    **{f"{x}_cache": ("cache", x) for x in "kv"},
    "kq_soft_max": ("soft", "max"),
    "attn_post_norm": ("attn", "post"),
    "ffn_post_norm": ("ffn", "post"),
    "ffn_swiglu": ("ffn", "glu"),
    "ffn_geglu": ("ffn", "glu"),
}
"""Short headings, so that a layer of 20 points fits 80 columns. Other names are cut at their first "_"."""


def render(verdict: Verdict, *, width: int | None = None, color: bool = False) -> str:
    """Write a verdict for a terminal.

    Parameters
    ----------
    verdict
        What to write.
    width
        Columns; by default those of the terminal, or 80 where there is none.
    color
        Whether to add ANSI codes. Without them, no line ends in a space.
    """
    console = Console(
        file=StringIO(),
        width=width,
        force_terminal=color,
        force_jupyter=False,
        color_system="standard" if color else None,
        no_color=not color,
    )
    with console.capture() as written:
        show(verdict, console)
    lines = written.get().splitlines()
    return "".join(f"{line if color else line.rstrip()}\n" for line in lines)


def show(verdict: Verdict, console: Console) -> None:
    """Print a verdict on a rich console, in ASCII where its encoding is not a Unicode one."""
    page = _Page(console.width, console.encoding)
    sections = (_sentences(verdict, page), _maps(verdict, page), _table(verdict, page), _facts(verdict, page))
    for i, section in enumerate(s for s in sections if s):
        if i:
            console.print()
        for part in section:
            console.print(part, highlight=False)


@dataclass(frozen=True, slots=True)
class _Page:
    """What is written on. Every string passes through :meth:`text`, as names in traces are hostile."""

    width: int
    encoding: str

    def text(self, words: str, style: str = "") -> Text:
        """Text without markup, with control characters made visible, in characters the page can hold."""
        if not self.encoding.startswith("utf"):
            words = words.translate({ord("·"): ".", ord("…"): "...", ord("─"): "-"})
            words = words.encode(self.encoding, "backslashreplace").decode(self.encoding)
        visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
        return Text(visible, style, overflow="fold")


# The sentences.


def _sentences(verdict: Verdict, page: _Page) -> list[RenderableType]:
    if verdict.first is not None:
        head, *rest = _divergence(verdict, verdict.first)
    elif verdict.judged:
        head, *rest = [_agreement(verdict)]
    else:
        head, *rest = ["Nothing could be compared: this is no pass.", _why(verdict)]
    return [page.text(head, "bold"), *(page.text(x) for x in (*rest, _judged(verdict)) if x)]


def _divergence(verdict: Verdict, first: SiteVerdict) -> list[str]:
    kind, of = _claim(verdict)
    among = f" among the {verdict.judged:,} sites {kind}{of}" if of else ""
    error, floor = _apart(first.local_error, first.floor)
    where = ", ".join(f"{axis} {span}" for axis, span in (first.where or {}).items())
    head = f"{first.site} is the first to go wrong{among}: "
    return [
        head + f"{first.op}, local error {error} against a floor of {floor}.",
        (f"Wrong at {where}. " if where else "") + _inputs(verdict, first),
        _element(first),
        _earlier(verdict, first),
        _more(verdict.diverging),
        _doubt(verdict.witness, first),
    ]


def _agreement(verdict: Verdict) -> str:
    kind, of = _claim(verdict)
    judged = [s for s in verdict.sites if s.local_error is not None]
    largest = ""
    if judged:
        worst = max(judged, key=lambda s: s.local_error or 0.0)
        error, floor = _apart(worst.local_error, worst.floor)
        largest = f": largest local error {error} ({worst.site}), floor {floor}"
    sites = "The only {} site" if verdict.judged == 1 else f"Every one of the {verdict.judged:,} {{}} sites"
    return f"{sites.format(kind)}{of} agrees{largest}."


def _claim(verdict: Verdict) -> tuple[str, str]:
    """The sites a claim covers, never more than was seen: of what kind, and of how many if not all."""
    judged, sites = verdict.judged, len(verdict.sites)
    kind = "recorded" if judged == verdict.coverage["recorded"] else "compared"
    return kind, "" if judged == sites else f" (of {sites:,})"


def _why(verdict: Verdict) -> str:
    if not verdict.sites:
        return "The verdict holds no sites."
    missing, reasons = verdict.coverage["sites"] - verdict.coverage["recorded"], _reasons(verdict)
    return f"Of {_count(len(verdict.sites), 'site')}, {missing:,} not recorded" + (f", {reasons}." if reasons else ".")


def _judged(verdict: Verdict) -> str:
    steps, tokens = len(verdict.tokens), sum(map(len, verdict.tokens))
    model = f", on {verdict.model['file']}" if verdict.model.get("file") else ""
    length = f", {_count(tokens, 'token')} in {_count(steps, 'step')}" if steps else ""
    return f"Judged: {verdict.candidate} against {verdict.against}{model}{length}."


def _inputs(verdict: Verdict, site: SiteVerdict) -> str:
    """What is known of the inputs of the first divergence, and what to dump to know more."""
    segment = site.segment
    if not segment:
        return "Its inputs are right." if site.inputs_right else "Its inputs are wrong too."
    statuses = {s.site: s.status for s in verdict.sites}
    kinds = dict.fromkeys(statuses.get(s, Status.NOT_RECORDED) for s in segment)
    missing = " or ".join(kinds)
    dump = ""
    if Status.NOT_RECORDED in kinds:
        these = "this" if len(verdict.dump_next) == 1 else "these"
        dump = f" Dump {these} next: {_listed(verdict.dump_next, most=2 * NAMED)}."
    if len(segment) == 1:
        return f"Its inputs are not judged: {segment[0]} was {missing}.{dump}"
    span = f"{segment[0]} … {segment[-1]}"
    return f"The error arises somewhere in {span}, which were {missing}, or in {site.site} itself.{dump}"


def _element(site: SiteVerdict) -> str:
    at = ""
    if site.worst is not None:
        candidate, reference = _apart(site.worst.candidate, site.worst.reference, digits=4)
        at = f"{list(site.worst.index)}: {candidate}, expected {reference}."
    if site.not_finite:
        broken = f"NaN or infinity in {_count(site.not_finite, 'element')}"
        return f"{broken}; the first at {at}" if at else f"{broken}."
    return at and f"Worst element {at}"


def _earlier(verdict: Verdict, first: SiteVerdict) -> str:
    """That the steps before the first divergence are right is half of a diagnosis."""
    steps = {s.step for s in verdict.sites if s.step < first.step and s.local_error is not None}
    if not steps:
        return ""
    return f"{_steps(steps)} {'agrees' if len(steps) == 1 else 'agree'} at every site judged."


def _more(diverging: Sequence[SiteVerdict]) -> str:
    """The other errors: by name where they are few, else by point."""
    more = len(diverging) - 1
    if not more:
        return ""
    head = f"{more:,} more {'site diverges on its' if more == 1 else 'sites diverge on their'} own inputs"
    if more <= NAMED:
        return f"{head}: {', '.join(s.site for s in diverging[1:])}."
    points: dict[str, list[SiteVerdict]] = defaultdict(list)
    for site in diverging:
        points[site.point].append(site)
    return f"{head}; in all: {_listed([_spread(*p) for p in points.items()], '; ')}."


def _spread(point: str, sites: Sequence[SiteVerdict]) -> str:
    """Say where one point diverges: ``Kcur_rope in layers 0-29 of steps 0-4``."""
    layers, steps = {s.layer for s in sites if s.layer is not None}, {s.step for s in sites}
    whole = len(sites) == max(len(layers), 1) * len(steps)
    within = f" in layer{'s' * (len(layers) > 1)} {_runs(layers)}" if layers else ""
    of = f" of {_steps(steps).lower()}" if steps != {0} else ""
    return f"{point}{within}{of}" + ("" if whole else f" ({_count(len(sites), 'site')})")


def _doubt(witness: Witness | None, first: SiteVerdict) -> str:
    """Who is wrong is settled by the two that agree: say so where it is not the reference and llama.cpp."""
    if witness is None or first.site not in witness.diverges:
        return ""
    return f"{witness.engine} diverges from the reference there too: the reference may be wrong there."


# The map: a row a layer, a column a point, in execution order.


def _maps(verdict: Verdict, page: _Page) -> list[RenderableType]:
    """The map of step 0, that of the first step that differs, and in words which steps look like these."""
    if all(s.status is Status.NOT_RECORDED for s in verdict.sites):
        return []
    patterns: dict[int, Pattern] = defaultdict(dict)
    for site in verdict.sites:
        patterns[site.step][site.layer, site.point] = site.status
    start, *later = patterns
    other = next((step for step in later if patterns[step] != patterns[start]), None)
    shown = [start] if other is None else [start, other]
    like: dict[int | None, list[int]] = {step: [] for step in (*shown, None)}
    for step in patterns:
        like[next((s for s in shown if patterns[s] == patterns[step]), None)].append(step)
    lines = [_legend({status for step in shown for status in patterns[step].values()}, page)]
    for step, same in ((step, like[step][1:]) for step in shown):
        gap = [] if step == start else [page.text("")]
        lines += [*gap, page.text(f"Step {step}", "bold"), *_map(patterns[step], page)]
        lines += [page.text(f"{_steps(same)}: the same.")] if same else []
    if like[None]:
        lines.append(page.text(f"{_steps(like[None])}: other statuses ({ALL})."))
    return list(lines)


def _legend(used: set[Status], page: _Page) -> Text:
    return page.text("  ").join(page.text(f"{MARKS[s][0]} {s}", MARKS[s][1]) for s in Status if s in used)


def _map(pattern: Pattern, page: _Page) -> list[Text]:
    """One step's map; points outside layers stand before or after it, as they are executed."""
    lines: list[Text] = []
    for outside, keys in groupby(pattern, key=lambda key: key[0] is None):
        part = {key: pattern[key] for key in keys}
        if outside:
            lines.append(_outside(part, page))
        else:
            for band in _bands(_columns(part), page.width - len("layer ")):
                lines += _band(part, band, page)
    return lines


def _outside(part: Pattern, page: _Page) -> Text:
    marks = (page.text(f"{point} ").append_text(_mark(status, page)) for (_, point), status in part.items())
    return page.text("  ").join(marks)


def _columns(part: Pattern) -> list[str]:
    """Points of any layer in execution order, where layers differ in what they hold."""
    columns: list[str] = []
    for _, keys in groupby(part, key=lambda key: key[0]):
        after = 0
        for _, point in keys:
            if point not in columns:
                columns.insert(after, point)
            after = columns.index(point) + 1
    return columns


def _bands(points: Iterable[str], room: int) -> list[list[str]]:
    """Cut the columns into as few bands as fit the page."""
    bands: list[list[str]] = []
    for point in points:
        if bands and len(_headings([*bands[-1], point])[0]) <= room:
            bands[-1].append(point)
        else:
            bands.append([point])
    return bands


def _label(point: str) -> tuple[str, str]:
    """The two lines of a point's heading: what it shares with its neighbours, and what is its own."""
    name, _, rest = point.partition("_")
    if rest.startswith("moe_"):
        name, rest = "moe", rest.removeprefix("moe_")
    return HEADINGS.get(point, (name, rest) if rest else ("", name))


def _headings(points: Iterable[str]) -> tuple[str, str, list[int]]:
    """Two heading lines, and the column of each point's mark.

    Neighbours that share the upper line stand under one: ``cur──`` over ``Q K V``.
    """
    upper = lower = ""
    marks: list[int] = []
    for top, group in groupby(map(_label, points), key=lambda label: label[0]):
        leaves = [leaf for _, leaf in group]
        spare = max(0, len(top) - len(" ".join(leaves)))
        gap = 1 + spare // max(1, len(leaves) - 1)
        start = len(lower)
        for leaf in leaves:
            marks.append(len(lower) + (len(leaf) - 1) // 2)
            lower += leaf + " " * gap
        size = max(len(top), len(lower.rstrip()) - start)
        upper += top.ljust(size, "─" if top and len(leaves) > 1 else " ") + " "
        lower = lower[: start + size].ljust(start + size) + " "
    return upper[:-1], lower[:-1], marks


def _band(part: Pattern, points: Sequence[str], page: _Page) -> list[Text]:
    """Headings and rows of some columns; neighbouring layers that look alike share a row."""
    upper, lower, columns = _headings(points)
    lines = [page.text(" " * len("layer ") + upper, "dim"), page.text("layer " + lower, "dim")]
    layers = dict.fromkeys(layer for layer, _ in part)
    rows = [(k, list(g)) for k, g in groupby(layers, lambda n: [part.get((n, point)) for point in points])]
    for statuses, group in rows[:LAYERS]:
        name = f"{group[0]}" if len(group) == 1 else f"{group[0]}-{group[-1]}"
        line = page.text(name.ljust(len("layer ")))
        for status, column in zip(statuses, columns, strict=True):
            line.append(" " * (column + len("layer ") - len(line))).append_text(_mark(status, page))
        lines.append(line)
    if len(rows) > LAYERS:
        lines.append(page.text(f"and {len(rows) - LAYERS} more rows ({ALL})"))
    return lines


def _mark(status: Status | None, page: _Page) -> Text:
    return page.text(*MARKS[status]) if status else page.text(" ")


# The table of diverging sites.


def _table(verdict: Verdict, page: _Page) -> list[RenderableType]:
    diverging = verdict.diverging
    if not diverging:
        return []
    wide = page.width >= NARROW
    columns: dict[str, Callable[[SiteVerdict], str]] = {
        "diverges": lambda s: s.site,
        **({"op": lambda s: s.op} if wide else {}),
        "local error": lambda s: _apart(s.local_error, s.floor)[0],
        "floor": lambda s: _apart(s.local_error, s.floor)[1],
        **({"drift": lambda s: _number(s.drift)} if wide and any(s.drift is not None for s in diverging) else {}),
        "where": _where,
        "inputs": _judgement,
    }
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        numeric = name in {"local error", "floor", "drift"}
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=min(len(name), 8))
    for site in diverging[:ROWS]:
        table.add_row(*(page.text(cell(site)) for cell in columns.values()))
    more = len(diverging) - ROWS
    return [table, *([page.text(f"and {more:,} more ({ALL})")] if more > 0 else [])]


def _where(site: SiteVerdict) -> str:
    """Only the axes that narrow the error down."""
    if not site.where:
        return ""
    return ", ".join(f"{axis} {span}" for axis, span in site.where.items() if span != "all") or "everywhere"


def _judgement(site: SiteVerdict) -> str:
    if not site.inputs_right:
        return "wrong"
    return "not judged" if site.segment else "right"


# Coverage, arithmetic, witness, logits, notes.


def _facts(verdict: Verdict, page: _Page) -> list[RenderableType]:
    """Labelled lines, those with nothing to say left out."""
    facts = [
        ("coverage", _coverage(verdict)),
        ("", _reasons(verdict) if verdict.judged else ""),
        ("preflight", ", ".join(f"{k} {v}" for k, v in verdict.preflight.items())),
        ("arithmetic", ", ".join(f"{k} {v}" for k, v in verdict.arithmetic.items())),
        ("witness", _witness(verdict)),
        ("logits", _logits(verdict.logits)),
        *(("note", note) for note in verdict.notes),
    ]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, words in facts:
        if words:
            grid.add_row(page.text(label, "dim"), page.text(words))
    return [grid]


def _coverage(verdict: Verdict) -> str:
    count = Counter(s.status for s in verdict.sites)
    recorded = verdict.coverage["recorded"]
    statuses = ", ".join(f"{s} {count[s]:,}" for s in Status if count[s])
    return f"{recorded:,} of {_count(len(verdict.sites), 'site')} recorded" + (f": {statuses}" if statuses else "")


def _reasons(verdict: Verdict) -> str:
    """Why sites are not comparable: the three most frequent reasons, each with a site to look at."""
    sites: dict[str, list[str]] = defaultdict(list)
    for s in verdict.sites:
        if s.status is Status.NOT_COMPARABLE:
            sites[s.reason or "no reason given"].append(s.site)
    if not sites:
        return ""
    ranked = sorted(sites.items(), key=lambda item: -len(item[1]))
    told = [f"{why} ({s[0]}{f' and {len(s) - 1:,} more' if len(s) > 1 else ''})" for why, s in ranked[:REASONS]]
    if len(ranked) > REASONS:
        told.append(f"and {_count(len(ranked) - REASONS, 'more reason')}")
    return f"{sum(map(len, sites.values())):,} not comparable: {'; '.join(told)}"


def _witness(verdict: Verdict) -> str:
    witness = verdict.witness
    if witness is None:
        return ""
    candidate = {s.site for s in verdict.diverging}
    both = [s for s in witness.diverges if s in candidate]
    alone = [s for s in witness.diverges if s not in candidate]
    told = [f"{witness.engine} judged on the same tokens: {witness.agrees:,} agree"]
    if both:
        told.append(f"it diverges from the reference where the candidate does at {_listed(both)}")
    if alone:
        told.append(f"it diverges from the reference where the candidate does not at {_listed(alone)}")
    return "; ".join(told)


def _logits(logits: Sequence[Logits]) -> str:
    if not logits:
        return ""
    flips = [x for x in logits if not x.top1_agrees]
    told = [_flip(x) for x in flips[:REASONS]]
    if len(flips) > REASONS:
        told.append(f"and at {_count(len(flips) - REASONS, 'more step')}")
    worst = max(logits, key=lambda x: inf if isnan(x.kl) else x.kl)
    told = told or ["top-1 agrees at every step"]
    return "; ".join([*told, f"KL at most {_number(worst.kl)} nats (step {worst.step})"])


def _flip(x: Logits) -> str:
    told = f"top-1 differs at step {x.step} (token {x.top1} for {x.top1_against}), margin {_number(x.margin)}"
    noise = f"the arithmetics' noise of {_number(x.noise)}"
    if not x.within_noise:
        return f"{told} outside {noise}"
    few = "" if x.margin <= x.noise else "a few times "
    return f"{told} within {few}{noise}: no divergence"


# Numbers and lists for people.


def _number(x: float | None, digits: int = 2) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if isfinite(x) and int(abs(x)) in WHOLE else f"{x:.{digits}g}"


def _apart(a: float | None, b: float | None, digits: int = 2) -> tuple[str, str]:
    """Two numbers, with as many digits as it takes to see that they are not the same."""
    pairs = [(_number(a, n), _number(b, n)) for n in range(digits, 10)]
    return next((p for p in pairs if p[0] != p[1]), pairs[0])


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str], comma: str = ", ", most: int = NAMED) -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - most
    return comma.join(names[:most]) + (f" and {more:,} more ({ALL})" if more > 0 else "")


def _steps(steps: Iterable[int]) -> str:
    runs = _runs(steps)
    return f"Step {runs}" if runs.isdigit() else f"Steps {runs}"


def _runs(numbers: Iterable[int]) -> str:
    """Write ``0, 2, 3, 4`` as ``0, 2-4``."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
