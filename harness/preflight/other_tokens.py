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
class _Lookup:
    """A step's embedding as it is recorded, the tokens that are stated, and those whose rows it holds."""

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
    if not any(kind_of(site.point) is Kind.EMBEDDING for site in trace):
        return (), trace
    values = outline(model, trace.steps)
    lookups = [_lookup(model, trace, value) for value in values if value.call.op is embed]
    known = [x for x in lookups if x is not None]
    if _is_lookup_wrong(known):
        return (), trace
    steps, findings = list(trace.steps), []
    for x in known:
        if x.held != x.stated:
            step = x.value.call.step
            ran = _went_on(trace, x, values)
            findings.append(_finding(x, ran=ran))
            if ran:
                steps[step] = Step(x.held, steps[step].positions)
    return tuple(findings), replace(trace, steps=tuple(steps)) if findings else trace


def _lookup(model: Model, trace: Trace, value: Awaited) -> _Lookup | None:
    """The rows of one step; None where they are not all recorded, or rows of no token."""
    call = value.call
    rows = rows_of(trace, Site(call.step, call.layer, call.point), value.shape)
    if rows is None or not np.isfinite(rows).all():
        return None
    stated = tuple(call.argument("tokens"))
    errors = _errors(rows, call.compute(F32))
    wrong = np.flatnonzero(errors > UNLIKE)
    if not wrong.size:
        return _Lookup(value, rows, stated, stated) if errors.max() <= LIKE else None
    if (np.delete(errors, wrong) > LIKE).any():
        return None
    found = _nearest(model, value, rows[wrong])
    theirs = call.with_arguments(tokens=found.tolist()).compute(F32)
    if (_errors(rows[wrong], theirs) > LIKE).any():
        return None
    held = np.array(stated)
    held[wrong] = found
    return _Lookup(value, rows, stated, tuple(held.tolist()))


def _errors(x: Array, y: Array) -> Array:
    """Relative difference of each row."""
    return np.asarray(
        np.linalg.norm(x - y, axis=-1) / np.maximum(np.linalg.norm(y, axis=-1), np.finfo(np.float32).tiny)
    )


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


def _is_lookup_wrong(lookups: Sequence[_Lookup]) -> bool:
    """Whether the ids are those that a wrong lookup of the right tokens takes: it is the engine's then.

    It takes rows that are off by a constant, or each row, or some, in the place of others of the same step.
    """
    moved = set[int]().union(*(x.moved for x in lookups))
    several = sum(len(x.stated) for x in lookups) > 1
    if several and len(moved) == 1:
        return True
    if len(moved - {0}) <= 1 and all(abs(by) <= OFF_BY for by in moved):
        return True
    return any(x.held != x.stated and len(x.held) > 1 and {*x.held} <= {*x.stated} for x in lookups)


def _went_on(trace: Trace, x: _Lookup, values: Sequence[Awaited]) -> bool:
    """Whether the step went on with the rows that are recorded, and not with those of the tokens that are stated."""
    for value in values:
        call = value.call
        if call.op is not rms_norm or not any(source is x.value for source in sources(call)):
            continue
        out = rows_of(trace, Site(call.step, call.layer, call.point), value.shape)
        if out is not None and (known := np.isfinite(out).all(-1)).any():
            held, right = (
                relative(out[known], call.with_inputs({x.value: rows}).compute(F32)[known])
                for rows in (x.rows, x.value.call.compute(F32))
            )
            return held < right
    return True


def _finding(x: _Lookup, *, ran: bool) -> DumpFinding:
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
