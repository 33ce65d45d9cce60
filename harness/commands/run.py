"""``firstdiff run``."""

from __future__ import annotations

import argparse
from pathlib import Path

from firstdiff.commands.options import DECODE, TIMEOUT, attention_of, budget_of, source_of, wants_details
from firstdiff.commands.printing import show_verdict, show_verdicts
from firstdiff.commands.watching import watched
from firstdiff.engines.threads import threads_for
from firstdiff.engines.user_engine import Engine
from firstdiff.errors import UsageError
from firstdiff.model.engine import ARCHITECTURES
from firstdiff.model.gguf import architecture_of
from firstdiff.progress import Progress
from firstdiff.runs import candidates, certificate
from firstdiff.runs.folder import run_folder
from firstdiff.runs.graph_certificate import certify_graph
from firstdiff.runs.run import Run, begun


def run(options: argparse.Namespace) -> int:
    """Judge llama.cpp, or one or several candidates."""
    source, out = source_of(options), options.out or run_folder(options.model)
    detailed = wants_details(options)
    if _by_graph(options):
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
        decode = DECODE if options.decode is None else options.decode
        with watched(out) as progress:
            certified = certificate.certify(_begun(options, out, progress, detailed=detailed), source, decode=decode)
        return show_verdict(certified.verdict, options, out)
    if options.engine is None and options.decode is not None:
        raise UsageError("--decode: a candidate's trace has its own steps; leave it out")
    if options.html is not None and len(options.candidate) + (options.engine is not None) > 1:
        raise UsageError("--html: a page shows one candidate: give one --candidate, or leave --html out")
    engine = None
    if options.engine is not None:
        decode = DECODE if options.decode is None else options.decode
        engine = Engine(options.engine, decode, options.timeout or TIMEOUT)
    with watched(out) as progress:
        run_ = _begun(options, out, progress, detailed=detailed)
        judged = candidates.judge_candidates(run_, options.candidate, source, engine=engine, names=options.names)
    verdicts = [one.verdict for one in judged]
    if len(verdicts) == 1:
        return show_verdict(verdicts[0], options, out)
    given = [str(path) for path in options.candidate] + (["engine"] if engine else [])
    return show_verdicts(verdicts, given, options, out)


def _by_graph(options: argparse.Namespace) -> bool:
    """Whether llama.cpp is judged by its own graph: where that is asked for, or no other reference runs the model."""
    if options.candidate or options.engine is not None:
        return False
    if options.tier is not None:
        return bool(options.tier == "graph")
    named = architecture_of(options.model)
    return named is not None and named not in ARCHITECTURES


def _begun(options: argparse.Namespace, out: Path, progress: Progress, *, detailed: bool) -> Run:
    return begun(
        options.model,
        out=out,
        threads=threads_for(options.model, options.threads),
        attention=attention_of(options),
        detailed=detailed,
        progress=progress,
        budget=budget_of(options),
        tier=options.tier,
    )
