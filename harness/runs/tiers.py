"""Both tiers on the same traces: firstdiff's description of an architecture, and the graph that llama.cpp runs."""

from __future__ import annotations

from dataclasses import replace

from firstdiff.errors import UsageError
from firstdiff.model.engine import ARCHITECTURES, HARMLESS
from firstdiff.model.graph.reference import GraphArchitecture
from firstdiff.verdict import SiteVerdict, Status, Verdict

JUDGED = (Status.AGREES, Status.INHERITS, Status.DIVERGES)
SHOWN = 3  # sites that are named
BELIEVED = (
    "llama.cpp's own list of operations, its graph, was taken as right; an operation, order or parameter that"
    " llama.cpp has wrong is not seen"
)


def believed(graph: GraphArchitecture) -> str:
    """Say that the graph is llama.cpp's, why it was taken, and which tensors of the file it does not read."""
    said = f"{graph.why}: {BELIEVED}" if graph.why else BELIEVED
    unread = [name for name in graph.unread if not name.endswith(HARMLESS)]
    if not unread:
        return said
    count = "1 tensor" if len(unread) == 1 else f"{len(unread):,} tensors"
    return f"{said}; it does not read {count} of the file, such as {unread[0]!r:.80}: perhaps it should"


def check_described(architecture: str | None) -> None:
    """Refuse an architecture of which there is one tier only.

    Raises
    ------
    UsageError
        For one that firstdiff does not describe.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"--tier both: firstdiff does not describe the architecture {architecture or 'unnamed'!r:.60} itself (it "
            f"describes {', '.join(ARCHITECTURES)}): leave --tier out, and llama.cpp's graph is taken"
        )


def disagreements(hand: Verdict, graph: Verdict) -> list[tuple[SiteVerdict, SiteVerdict]]:
    """The sites that both tiers judged, and that are right by one and wrong by the other."""
    other = {s.site: s for s in graph.sites if s.status in JUDGED}
    both = [(s, other[s.site]) for s in hand.sites if s.status in JUDGED and s.site in other]
    return [(a, b) for a, b in both if (a.status is Status.DIVERGES) != (b.status is Status.DIVERGES)]


def compared(hand: Verdict, graph: Verdict) -> Verdict:
    """The verdict by the description, with a note on whether the graph says the same of every site."""
    other = {s.site for s in graph.sites if s.status in JUDGED}
    common = sum(s.site in other for s in hand.sites if s.status in JUDGED)
    apart = disagreements(hand, graph)
    if not apart:
        said = (
            f"both tiers, firstdiff's description of the architecture and llama.cpp's graph, judged {common:,} sites, "
            "and agree about every one of them"
        )
    else:
        shown = "; ".join(
            f"{a.site} {a.status} by the description (error {a.local_error:.2g}) and {b.status} by the graph "
            f"({b.local_error:.2g})"
            for a, b in apart[:SHOWN]
        )
        more = f"; and {len(apart) - SHOWN:,} more" if len(apart) > SHOWN else ""
        said = (
            f"the tiers disagree at {len(apart):,} of the {common:,} sites that both judged: {shown}{more}. Either "
            "firstdiff's description of the architecture or llama.cpp's graph is wrong there: please report it"
        )
    return replace(hand, notes=(*hand.notes, said))
