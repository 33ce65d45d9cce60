"""Layers of a trace judged by themselves, on as many machines as there are, and made one verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from firstdiff.dumps import Site, Trace, TraceError, open_trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.dumps.strict_json import parse_object
from firstdiff.errors import UsageError
from firstdiff.judging.passes import Pass, together
from firstdiff.judging.past import missing_past
from firstdiff.judging.replay import Replay
from firstdiff.judging.rows import Rows
from firstdiff.judging.settling import as_one
from firstdiff.model.layer_bytes import header_of
from firstdiff.model.outline import outline
from firstdiff.runs.admission import Admitted, admitted
from firstdiff.runs.first_pass import FirstPass, Read, as_read
from firstdiff.runs.folder import keep
from firstdiff.runs.judge import judge
from firstdiff.runs.planning import planned
from firstdiff.runs.replays import First, Plan, Replayed
from firstdiff.runs.run import Run
from firstdiff.verdict import SiteVerdict, Verdict
from firstdiff.verdict.records import record_of
from firstdiff.verdict.writing import strict

FILE = "layers.json"
FORMAT, VERSION = "firstdiff-layers", 1
MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class JudgedSites:
    """The sites of some layers of one trace.

    Parameters
    ----------
    trace
        Its path.
    tensors
        A digest of the steps and of the sites and shapes that it holds.
    read_as
        A digest of the layouts and of the arithmetic that it was judged in.
    sites
        Each judged as if nothing before it were wrong.
    cut, close
        As :class:`firstdiff.runs.replays.Replayed` has them.
    """

    trace: str
    tensors: str
    read_as: str
    sites: tuple[SiteVerdict, ...]
    cut: tuple[tuple[Site, int, int, str], ...]
    close: tuple[tuple[Site, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Some layers of a candidate, and of its witness if it has one.

    `header` is a digest of all of the model's file but the tensors' bytes.
    """

    model: str
    header: str
    tier: str
    names: str | None
    layers: tuple[int, ...]
    candidate: JudgedSites
    witness: JudgedSites | None = None


def judge_layers(
    run: Run,
    candidate: Path,
    layers: frozenset[int],
    *,
    witness: Path | None,
    names: str | None,
    partial: bool = False,
) -> Part:
    """Judge some layers of a trace. What comes before the layers goes with the first, what comes behind with the last.

    Of a `partial` file, which holds these layers only, the SHA-256 that a trace states is not asked for.

    Raises
    ------
    UsageError
        For a layer that the model does not have.
    TraceError
        For a trace that cannot be read, or of another model.
    """
    last = run.model.hp.n_layer - 1
    if beyond := sorted(layer for layer in layers if layer > last):
        raise UsageError(f"--layers: there is no layer {beyond[0]}: {run.model.gguf.path.name} has layers 0 to {last}")
    traces = [open_trace(path, names=names) for path in (candidate, *([witness] if witness is not None else []))]
    if partial:
        traces = [replace(t, model={k: v for k, v in t.model.items() if k != "sha256"}) for t in traces]
    plans = [_plan(run, admitted(run, trace).trace) for trace in traces]
    probes = [Replay.of(plan.found, plan.trace, plan.alignment) for plan in plans]

    def wanted(site: Site) -> bool:
        return _layer(site, last) in layers

    run.progress.say(f"judging layers {_told(layers)}")
    passes = [
        Pass(run.model, plan.trace.steps, probe, wanted, missing_past(run.model, plan.trace))
        for plan, probe in zip(plans, probes, strict=True)
    ]
    passes[0].probe.watch = run.progress.layers(run.model.hp.n_layer)
    together(passes)
    judged = [_judged(path, plan, probe, layers, last) for path, plan, probe in zip(traces, plans, probes, strict=True)]
    path, beside = str(run.model.gguf.path), judged[1] if witness is not None else None
    return Part(path, header_of(run.model), run.model.tier, names, tuple(sorted(layers)), judged[0], beside)


def _plan(run: Run, trace: Trace) -> Plan:
    _, read = as_read(run, trace)
    return planned(run.model, read, run.progress, None)


def _layer(site: Site, last: int) -> int:
    """The layer that a site goes with."""
    if site.layer is not None:
        return site.layer
    return 0 if kind_of(site.point) is Kind.EMBEDDING else last


def _told(layers: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def _judged(given: Trace, plan: Plan, probe: Replay, layers: frozenset[int], last: int) -> JudgedSites:
    def of_these(site: Site) -> bool:
        return _layer(site, last) in layers

    return JudgedSites(
        str(given.path),
        _holds(given),
        _read_as(plan),
        tuple(s for s in probe.in_order() if of_these(s.site)),
        tuple((site, rows, tokens, which.value) for site, (rows, tokens, which) in probe.cut.items() if of_these(site)),
        tuple((site, count) for site, count in probe.close.items() if of_these(site)),
    )


def _holds(trace: Trace) -> str:
    steps = [[list(step.tokens), list(step.positions)] for step in trace.steps]
    told = [steps, [[str(site), list(trace.shape(site)), trace.dtype(site)] for site in trace]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _read_as(plan: Plan) -> str:
    told = [plan.found.stated, plan.found.arithmetic.name, plan.alignment.described()]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def keep_part(out: Path, part: Part) -> Path:
    """Write a part into its folder.

    Raises
    ------
    CaptureError
        Where that cannot be.
    """
    record = {"format": FORMAT, "version": VERSION} | {f.name: getattr(part, f.name) for f in fields(part)}
    return keep(out / FILE, json.dumps(strict(record), indent=1, allow_nan=False) + "\n")


def read_part(folder: Path) -> Part:
    """Read a part.

    Raises
    ------
    TraceError
        In one line, where there is none, or one that cannot be read.
    """
    path = folder / FILE
    try:
        told = parse_object(path.read_bytes(), str(path), most=MOST_BYTES)
    except OSError as e:
        raise TraceError(f"{path}: cannot be read ({e.strerror})") from None
    if (told.pop("format", None), told.pop("version", None)) != (FORMAT, VERSION):
        raise TraceError(f"{path}: is no part that this firstdiff reads")
    return record_of(path, Part, told)


def merged(run: Run, parts: Sequence[tuple[Path, Part]]) -> Verdict:
    """Make one verdict of the parts of a trace: to the byte that of one process that judges all layers.

    What diverges is explained here, from the bytes of the layers where it does. The traces are where the parts say.

    Raises
    ------
    UsageError
        For parts of different models or traces, or layers that no part has.
    """
    first_path, first = parts[0]
    _same("the model's file", header_of(run.model), first.header, run.model.gguf.path, first_path)
    for path, part in parts[1:]:
        for what in ("header", "tier", "names"):
            _same(what, getattr(first, what), getattr(part, what), first_path, path)
        _same("whether there is a witness", first.witness is None, part.witness is None, first_path, path)
    if missing := sorted(set(range(run.model.hp.n_layer)) - {layer for _, part in parts for layer in part.layers}):
        raise UsageError(f"layers {', '.join(map(str, missing))} are in no part: judge them with judge-layers, too")
    candidate, read = _whole(run, [(path, part.candidate) for path, part in parts], first.names)
    made = FirstPass({candidate: read})
    witness = None
    theirs = [(path, part.witness) for path, part in parts if part.witness is not None]
    if theirs:
        witness, beside = _whole(run, theirs, first.names)
        made.witnesses[witness] = beside.first
    return judge(run, candidate, witness=witness, first=made)


def _whole(run: Run, parts: Sequence[tuple[Path, JudgedSites]], names: str | None) -> tuple[Admitted, Read]:
    first_path, first = parts[0]
    trace = open_trace(first.trace, names=names)
    subject = admitted(run, trace)
    dump, read = as_read(run, subject.trace)
    plan = planned(run.model, read, run.progress, None)
    for path, part in parts:
        _same("what the trace holds", _holds(trace), part.tensors, Path(first.trace), path)
        _same("how the trace was read", _read_as(plan), part.read_as, first_path, path)
    sites = {s.site: s for _, part in parts for s in part.sites}
    calls = outline(run.model, read.steps, past=missing_past(run.model, read))
    wanted = [Site(a.call.step, a.call.layer, a.call.point) for a in calls if a.call.point and a.call.step >= 0]
    if lost := next((site for site in wanted if site not in sites), None):
        raise UsageError(f"{lost} is in no part, though its layer is: a part was damaged, judge its layers again")
    place = {site: number for number, site in enumerate(wanted)}
    cut = {site: (rows, tokens, Rows(which)) for _, part in parts for site, rows, tokens, which in part.cut}
    close = {site: count for _, part in parts for site, count in part.close}
    done = Replayed(
        plan.found,
        as_one(calls, sites),
        plan.alignment,
        {site: cut[site] for site in sorted(cut, key=place.__getitem__)},
        {site: close[site] for site in sorted(close, key=place.__getitem__)},
    )
    return subject, Read(dump, read, First(replace(plan, done=done), None), None)


def _same(what: str, a: Any, b: Any, first: Path, other: Path) -> None:  # noqa: ANN401 - of one kind
    if a != b:
        raise UsageError(f"{other}: is no part of what {first} is a part of: {what} differs ({a!s:.40} and {b!s:.40})")
