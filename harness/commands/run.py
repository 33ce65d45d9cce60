"""``firstdiff run``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from firstdiff.commands.options import DECODE, TIMEOUT, attention_of, budget_of, source_of, wants_details
from firstdiff.commands.printing import show_verdict, show_verdicts
from firstdiff.commands.watching import watched
from firstdiff.engines.opening import Tier, is_described
from firstdiff.engines.threads import threads_for
from firstdiff.engines.user_engine import Engine
from firstdiff.errors import UsageError
from firstdiff.model.gguf import architecture_of
from firstdiff.progress import Progress
from firstdiff.runs import candidates, certificate
from firstdiff.runs.folder import run_folder
from firstdiff.runs.graph_certificate import certify_graph
from firstdiff.runs.prompt import Input
from firstdiff.runs.run import Run, begun
from firstdiff.runs.tiers import check_described, compared
from firstdiff.verdict import Verdict


def run(options: argparse.Namespace) -> int:
    """Judge llama.cpp, or one or several candidates."""
    source, out = source_of(options), options.out or run_folder(options.model)
    detailed = wants_details(options)
    if options.tier == "both":
        check_described(architecture_of(options.model))
    if _certifies_nodes(options):
        with watched(out) as progress:
            verdict = certify_graph(
                options.model,
                source,
                out,
                decode=DECODE if options.decode is None else options.decode,
                threads=threads_for(options.model, options.threads),
                attention=attention_of(options),
                progress=progress,
            )
        return show_verdict(verdict, options, out)
    if options.engine is None and not options.candidate:
        with watched(out) as progress:
            verdict = _in_tiers(options, out, progress, source, detailed=detailed)[0]
        return show_verdict(verdict, options, out)
    if options.engine is None and options.decode is not None:
        raise UsageError("--decode: a candidate's trace has its own steps; leave it out")
    if options.html is not None and len(options.candidate) + (options.engine is not None) > 1:
        raise UsageError("--html: a page shows one candidate: give one --candidate, or leave --html out")
    with watched(out) as progress:
        verdicts = _in_tiers(options, out, progress, source, detailed=detailed)
    if len(verdicts) == 1:
        return show_verdict(verdicts[0], options, out)
    given = [str(path) for path in options.candidate] + (["engine"] if options.engine is not None else [])
    return show_verdicts(verdicts, given, options, out)


def _in_tiers(
    options: argparse.Namespace, out: Path, progress: Progress, source: Input, *, detailed: bool
) -> list[Verdict]:
    """The verdicts by the tier that is asked for; by the hand-written one with a note of what the other says."""
    if options.tier != "both":
        return _judged(
            options, _begun(options, out, progress, options.tier, detailed=detailed), source, options.candidate
        )
    run_ = _begun(options, out, progress, "hand", detailed=detailed)
    hand = _judged(options, run_, source, options.candidate)
    # An engine is run once: the second tier judges what it has dumped.
    dumped = [out / "engine"] if options.engine is not None else []
    beside = _begun(options, out / "graph", progress, "graph", detailed=False)
    graph = _judged(options, beside, source, [*options.candidate, *dumped], run_engine=False)
    return [compared(*pair) for pair in zip(hand, graph, strict=True)]


def _judged(
    options: argparse.Namespace, run_: Run, source: Input, traces: Sequence[Path], *, run_engine: bool = True
) -> list[Verdict]:
    """The verdicts of one tier: on llama.cpp, or on the candidates."""
    decode = DECODE if options.decode is None else options.decode
    if options.engine is None and not options.candidate:
        return [certificate.certify(run_, source, decode=decode).verdict]
    engine = None
    if options.engine is not None and run_engine:
        engine = Engine(options.engine, decode, options.timeout or TIMEOUT)
    judged = candidates.judge_candidates(run_, traces, source, engine=engine, names=options.names)
    return [one.verdict for one in judged]


def _certifies_nodes(options: argparse.Namespace) -> bool:
    """Whether llama.cpp is judged node by node: where its graph is asked for, or nothing else computes the model."""
    if options.candidate or options.engine is not None or options.tier == "both":
        return False
    if options.tier is None:
        return not is_described(options.model)
    return bool(options.tier == "graph")


def _begun(options: argparse.Namespace, out: Path, progress: Progress, tier: Tier | None, *, detailed: bool) -> Run:
    return begun(
        options.model,
        out=out,
        threads=options.threads,
        attention=attention_of(options),
        detailed=detailed,
        progress=progress,
        budget=budget_of(options),
        tier=tier,
    )
