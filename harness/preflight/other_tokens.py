"""Tensors of other tokens than a dump states: told by the embedding, whose rows name their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.measure import relative
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import embed, rms_norm
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.preflight.rows import rows_of
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import enumerated

LIKE, UNLIKE = 0.05, 0.3
"""Errors of a row of the embedding that was stored in fp8, at the coarsest, and of the row of another token."""

CHUNK = 4096  # rows of the embedding that are looked at together
OFF_BY = 3  # ids that are off by no more, all by the same, may be a wrong lookup of one phase
NAMED = 4


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A step's embedding as it is recorded, the tokens that are stated, and those whose rows it holds.

    Parameters
    ----------
    value, rows
        The call of the lookup, and its rows as they are recorded, [token, feature].
    stated, held
        The tokens that are stated, and those whose rows are recorded.
    """

    value: Awaited
    rows: Array
    stated: tuple[int, ...]
    held: tuple[int, ...]

    @property
    def moved(self) -> set[int]:
        """By how much the ids are off."""
        return {b - a for a, b in zip(self.stated, self.held, strict=True)}


def of_other_tokens(model: Model, trace: Trace) -> tuple[tuple[DumpFinding, ...], Trace]:
    """Find steps whose embedding holds the rows of other tokens.

    Returns
    -------
    The findings, and the trace with the tokens that its steps ran.
    """
    known = lookups(model, trace)
    if all(x.held == x.stated for x in known) or _is_lookup_wrong(known):
        return (), trace
    values = outline(model, trace.steps)
    steps, findings = list(trace.steps), []
    for x in known:
        if x.held != x.stated:
            step = x.value.call.step
            ran = _went_on(trace, x, values)
            findings.append(_finding(x, ran=ran))
            if ran:
                steps[step] = Step(x.held, steps[step].positions)
    return tuple(findings), replace(trace, steps=tuple(steps)) if findings else trace


def lookups(model: Model, trace: Trace) -> list[Lookup]:
    """The embedding of each step, where all its rows are recorded and each is that of some token."""
    if not any(kind_of(site.point) is Kind.EMBEDDING for site in trace):
        return []
    found = (_lookup(model, trace, value) for value in outline(model, trace.steps) if value.call.op is embed)
    return [x for x in found if x is not None]


def _lookup(model: Model, trace: Trace, value: Awaited) -> Lookup | None:
    """The rows of one step; None where they are not all recorded, or rows of no token."""
    call = value.call
    rows = rows_of(trace, Site(call.step, call.layer, call.point), value.shape)
    if rows is None or not np.isfinite(rows).all():
        return None
    stated = tuple(call.argument("tokens"))
    errors = _errors(rows, call.compute(F32))
    wrong = np.flatnonzero(errors > UNLIKE)
    if not wrong.size:
        return Lookup(value, rows, stated, stated) if errors.max() <= LIKE else None
    if (np.delete(errors, wrong) > LIKE).any():
        return None
    found = _nearest(model, value, rows[wrong])
    theirs = call.with_arguments(tokens=found.tolist()).compute(F32)
    if (_errors(rows[wrong], theirs) > LIKE).any():
        return None
    held = np.array(stated)
    held[wrong] = found
    return Lookup(value, rows, stated, tuple(held.tolist()))


def _errors(x: Array, y: Array) -> Array:
    """Relative difference of each row, but for its size: an engine may multiply all rows."""
    tiny = np.finfo(np.float32).tiny
    of, to = (z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), tiny) for z in (x, y))
    return np.asarray(np.linalg.norm(of - to, axis=-1))


def _nearest(model: Model, value: Awaited, rows: Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each row the token whose row of the embedding points the same way."""
    best, found = np.full(len(rows), -np.inf), np.zeros(len(rows), np.int64)
    for start in range(0, model.hp.n_vocab, CHUNK):
        tokens = list(range(start, min(start + CHUNK, model.hp.n_vocab)))
        table = value.call.with_arguments(tokens=tokens).compute(F32)
        size = np.maximum(np.linalg.norm(table, axis=-1), np.finfo(np.float32).tiny)
        alike = rows @ table.T / size  # [row, token]
        place = alike.argmax(-1)
        most = alike[np.arange(len(rows)), place]
        better = most > best
        best[better], found[better] = most[better], place[better] + start
    return found


def _is_lookup_wrong(known: Sequence[Lookup]) -> bool:
    """Whether the ids are those that a wrong lookup of the right tokens takes: it is the engine's then.

    It takes rows that are off by a constant, or each row, or some, in the place of others of the same step.
    """
    moved = set[int]().union(*(x.moved for x in known))
    several = sum(len(x.stated) for x in known) > 1
    if several and len(moved) == 1:
        return True
    if len(moved - {0}) <= 1 and all(abs(by) <= OFF_BY for by in moved):
        return True
    return any(x.held != x.stated and len(x.held) > 1 and {*x.held} <= {*x.stated} for x in known)


def _went_on(trace: Trace, x: Lookup, values: Sequence[Awaited]) -> bool:
    """Whether the step went on with the rows that are recorded, and not with those of the tokens that are stated."""
    for value in values:
        call = value.call
        looked_up = next((source for source in sources(call) if source.call.op is embed), None)
        if call.step != x.value.call.step or call.op is not rms_norm or looked_up is None:
            continue
        out = rows_of(trace, Site(call.step, call.layer, call.point), value.shape)
        if out is not None and (known := np.isfinite(out).all(-1)).any():
            held, right = (
                relative(out[known], call.with_inputs({looked_up: rows}).compute(F32)[known])
                for rows in (x.rows, x.value.call.compute(F32))
            )
            return held < right
    return True


def _finding(x: Lookup, *, ran: bool) -> DumpFinding:
    call = x.value.call
    site = Site(call.step, call.layer, call.point)
    wrong = [(a, b) for a, b in zip(x.stated, x.held, strict=True) if a != b]
    rows = f"row{'s' * (len(wrong) > 1)} of token{'s' * (len(wrong) > 1)}"
    stated, held = (_listed([pair[i] for pair in wrong]) for i in (0, 1))
    says = f"{site} holds the {rows} {held}, where {stated} {'are' if len(wrong) > 1 else 'is'} stated"
    if ran:
        says += f": the tensors of step {call.step} are those of other tokens"
        return DumpFinding("other-tokens", says, "state the tokens that were run, step by step", (site,))
    says += f", which step {call.step} went on with"
    return DumpFinding("other-tokens", says, "copy the embedding when it is computed", (site,))


def _listed(tokens: Sequence[int]) -> str:
    more = len(tokens) - NAMED
    return enumerated([*map(str, tokens[:NAMED]), *([f"{more:,} more"] if more > 0 else [])])
