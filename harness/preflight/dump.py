"""The dump before the engine: what a trace does not hold is found and left out before any tensor is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from firstdiff.dumps import Site, Trace
from firstdiff.model.engine import Model
from firstdiff.preflight.exchanged_steps import exchanged_steps
from firstdiff.preflight.norm_inputs import norm_inputs
from firstdiff.preflight.other_tokens import of_other_tokens
from firstdiff.preflight.residual_stream import wrong_sums
from firstdiff.preflight.row_order import row_orders
from firstdiff.preflight.stale import stale_steps
from firstdiff.preflight.stale_layers import stale_layers
from firstdiff.verdict import DumpFinding, SiteVerdict, Status

Find = Callable[[Model, Trace], tuple[Iterable[DumpFinding], Trace]]
"""What is found in a trace, and the trace with what it really ran."""

FINDERS: tuple[Find, ...] = (
    lambda _, trace: (stale_steps(trace), trace),
    lambda model, trace: (stale_layers(model, trace), trace),
    of_other_tokens,
    lambda model, trace: (row_orders(model, trace), trace),
    lambda model, trace: (wrong_sums(model, trace), trace),
    lambda model, trace: (norm_inputs(model, trace), trace),
)
"""Each is asked of what those before it leave: two findings of one site are one too many."""


def readings(model: Model, trace: Trace) -> Iterator[tuple[tuple[DumpFinding, ...], Trace]]:
    """The ways to read a dump: with steps in the places of each other where tokens say so, and as it stands.

    Yields
    ------
    Findings, and the trace without the sites that they cover, as :func:`dump_findings` returns them.
    """
    exchanged = exchanged_steps(model, trace)
    if exchanged is not None:
        finding, ordered = exchanged
        found, left = dump_findings(model, ordered)
        yield (finding, *found), left
    yield dump_findings(model, trace)


def dump_findings(model: Model, trace: Trace) -> tuple[tuple[DumpFinding, ...], Trace]:
    """Find where a trace does not hold what the engine computed.

    Returns
    -------
    The findings, and the trace without the sites that they cover, of the tokens that it ran: what the engine had at
    these sites is computed.
    """
    findings: list[DumpFinding] = []
    for find in FINDERS:
        found, trace = find(model, trace)
        new = tuple(found)
        findings += new
        trace = without(trace, new)
    return tuple(findings), trace


def without(trace: Trace, findings: Sequence[DumpFinding]) -> Trace:
    """The trace without the sites that findings cover."""
    covered = covering(findings)
    return trace.without(covered.__contains__) if covered else trace


def covering(findings: Sequence[DumpFinding]) -> dict[Site, DumpFinding]:
    """The finding that covers each site."""
    return {site: finding for finding in findings if not finding.judged for site in finding.sites}


def not_judged(sites: Sequence[SiteVerdict], findings: Sequence[DumpFinding]) -> list[SiteVerdict]:
    """Say of the sites that findings cover why they are not judged."""
    covered = covering(findings)
    return [
        replace(s, status=Status.NOT_COMPARABLE, reason=covered[s.site].reason) if s.site in covered else s
        for s in sites
    ]
