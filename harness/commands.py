"""What each command does: from its options to what is printed and the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from firstdiff import demo as demos
from firstdiff import diff as differing
from firstdiff import explaining_command, pages
from firstdiff import run as running
from firstdiff.cli import fail
from firstdiff.doctor import examine, threads_for
from firstdiff.dumps import names_in
from firstdiff.engine_trace import Engine
from firstdiff.errors import UNREADABLE, UsageError
from firstdiff.formats import alone, written
from firstdiff.gate_command import gate_command
from firstdiff.hypotheses import TABLE, listing
from firstdiff.interruption import watched
from firstdiff.llamacpp import Attention
from firstdiff.name_table import name_table
from firstdiff.observe import observe
from firstdiff.provenance import ran
from firstdiff.reading import read_verdict
from firstdiff.rope_table import rope_command
from firstdiff.run import Input
from firstdiff.several import names_of, summary, to_json
from firstdiff.tokens import tokens_command
from firstdiff.verdict import Verdict, strict
from firstdiff.weights_check import weights_command

DECODE = 2  # steps after the prompt: one that reads the cache of the prompt, and one that reads its own
TIMEOUT = 600.0  # seconds for an engine: ten minutes is more than any prompt of some tokens takes
LONGEST_LAYER = 10  # digits


def _source(options: argparse.Namespace) -> Input:
    if options.tokens is not None and options.chat:
        raise UsageError("--chat is for a text: give --prompt in place of --tokens")
    return Input(options.tokens, options.prompt, options.chat, options.special, options.long)


def _attention(options: argparse.Namespace) -> Attention:
    return Attention.of(flash=options.flash_attention, kv=options.kv)


def run(options: argparse.Namespace) -> int:
    """Judge llama.cpp, or one or several candidates."""
    source, out = _source(options), options.out or running.run_folder(options.model)
    detailed = _detailed(options)
    if options.engine is None and not options.candidate:
        decode = DECODE if options.decode is None else options.decode
        with watched(out) as progress:
            verdict = running.certify(
                options.model,
                source,
                decode=decode,
                threads=threads_for(options.model, options.threads),
                out=out,
                attention=_attention(options),
                detailed=detailed,
                progress=progress,
            )
        return _report(verdict, options, out)
    if options.engine is None and options.decode is not None:
        raise UsageError("--decode: a candidate's trace has its own steps; leave it out")
    if options.html is not None and len(options.candidate) + (options.engine is not None) > 1:
        raise UsageError("--html: a page shows one candidate: give one --candidate, or leave --html out")
    engine = None
    if options.engine is not None:
        decode = DECODE if options.decode is None else options.decode
        engine = Engine(options.engine, decode, options.timeout or TIMEOUT)
    with watched(out) as progress:
        verdicts = running.judge_candidates(
            options.model,
            options.candidate,
            source,
            engine=engine,
            names=options.names,
            threads=threads_for(options.model, options.threads),
            out=out,
            attention=_attention(options),
            detailed=detailed,
            progress=progress,
        )
    if len(verdicts) == 1:
        return _report(verdicts[0], options, out)
    given = [str(path) for path in options.candidate] + (["engine"] if engine else [])
    return _report_several(verdicts, given, options, out)


def demo(options: argparse.Namespace) -> int:
    """Plant a bug and find it; 0 if it is found at its place and named as what it is."""
    if options.list:
        width = max(map(len, TABLE))
        print("\n".join(f"{id_:{width}}  {h.says}" for id_, h in TABLE.items()))
        return 0
    bug = options.bug or demos.BUG
    demos.planted(bug, options.layer)
    detailed = _detailed(options)
    path = options.model or demos.smollm2()
    out = options.out or running.run_folder(path or Path("synthetic"))
    if path is None:
        sys.stderr.write(
            "firstdiff: SmolLM2 is not installed (pip install 'firstdiff[demo]'): this is a small synthetic model\n"
        )
    with watched(out) as progress:
        done = demos.demo(
            bug=bug,
            layer=options.layer,
            model=options.model,
            decode=options.decode,
            threads=threads_for(options.model, options.threads),
            out=out,
            detailed=detailed,
            progress=progress,
        )
    _report(done.verdict, options, out)
    if options.format == "text":
        hypothesis, layer = done.planted.hypothesis, done.planted.layer
        print(f"\nPlanted on purpose: {hypothesis.id} at layer {layer}, {hypothesis.says}.")
        print("Your own engine: firstdiff run MODEL --candidate YOUR_DUMP")
    return 0 if done.missed is None else fail(f"the planted bug was not found: {done.missed}", 1)


def gate(options: argparse.Namespace) -> int:
    """Judge every case of a firstdiff.toml, and hold it to limits and baselines."""
    out = options.out or running.run_folder(options.config)
    with watched(out) as progress:
        text, cases, code = gate_command(
            options.config,
            out=out,
            only=options.case,
            regen=options.force_regen,
            threads=options.threads,
            kind=options.format,
            progress=progress,
        )
    if text is not None:
        sys.stdout.write(text)
        return code
    from rich.console import Console

    from firstdiff.reports.gate import show

    show(cases, Console())
    print(f"\nTraces, verdicts, summary.md and junit.xml: {out}")
    return code


def record(options: argparse.Namespace) -> int:
    """Record one engine's run."""
    plants = []
    for text in options.bug:
        bug, at, layer = text.partition("@")
        plants.append(demos.planted(bug, _layer(layer) if at else None))
    decode = DECODE if options.decode is None else options.decode
    with watched(options.out) as progress:
        trace = running.record(
            options.model,
            _source(options),
            options.out,
            engine=options.engine,
            decode=decode,
            threads=threads_for(options.model, options.threads),
            attention=_attention(options),
            planted=plants,
            progress=progress,
        )
    print(f"{options.out}: {len(trace.sites()):,} sites in {len(trace.steps)} steps")
    return 0


def _layer(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < LONGEST_LAYER):
        raise UsageError(f"--bug: {text!r:.40} is no layer: give a whole number from 0 on")
    return int(text)


def diff(options: argparse.Namespace) -> int:
    """Judge one recorded trace beside another."""
    with watched() as progress:
        verdict = differing.diff(options.candidate, options.witness, options.model, progress=progress)
    return _report(verdict, options, None)


def tokens(options: argparse.Namespace) -> int:
    """Print a text's tokens, or compare ids with them."""
    return _print(
        options,
        tokens_command(
            model=options.model, prompt=options.prompt, chat=options.chat, special=options.special, ids=options.ids
        ),
    )


def rope(options: argparse.Namespace) -> int:
    """Print the rope table, or a trace's angles."""
    return _print(
        options,
        rope_command(
            model=options.model,
            positions=options.positions,
            pairs=options.pairs,
            trace=options.trace,
            names=options.names,
            layer=options.layer,
        ),
    )


def weights(options: argparse.Namespace) -> int:
    """Print statistics of weights, or compare an engine's with the file's."""
    return _print(options, weights_command(model=options.model, names=options.names, against=options.against))


def log(options: argparse.Namespace) -> int:
    """Hold a log's numbers against the reference's."""
    with watched() as progress:
        result = observe(
            log=options.log,
            model=options.model,
            tokens=options.tokens,
            decode=options.decode,
            decoded=options.decoded,
            patterns=options.patterns,
            progress=progress.say,
        )
    return _print(options, result)


def _print(options: argparse.Namespace, result: tuple[str, dict[str, Any], int]) -> int:
    text, record, code = result
    print(json.dumps(strict(record), indent=1, allow_nan=False) if options.json else text)
    return code


def doctor(_: argparse.Namespace) -> int:
    """Say whether this installation is sound."""
    text, sound = examine()
    print(text)
    return 0 if sound else UNREADABLE


def report(options: argparse.Namespace) -> int:
    """Print a verdict's report again, or write its page."""
    if options.html is not None:
        pages.check(options.html)
    verdict = read_verdict(options.verdict)
    if options.html is not None:
        pages.write(options.html, verdict)
        print(f"Page: {options.html}")
        return verdict.exit_code
    if options.format != "text":
        text = verdict.to_json()
        report = str(options.verdict)
        sys.stdout.write(text if options.format == "json" else written([alone(verdict, report)], options.format))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show

    show(verdict, Console(), where=str(options.verdict))
    return verdict.exit_code


def _detailed(options: argparse.Namespace) -> bool:
    """Whether a closer look at each site is wanted; a page that cannot be written is refused before all work."""
    if options.html is not None:
        pages.check(options.html)
    return options.html is not None or options.format == "html" or bool(options.details)


def _report(verdict: Verdict, options: argparse.Namespace, out: Path | None) -> int:
    """Write the verdict and its page, print the report (or the verdict), and return the exit code."""
    verdict = replace(verdict, run=ran(options.arguments))
    text = verdict.to_json()
    if out is not None:
        pages.keep_verdict(out, text)
    page = getattr(options, "html", None)
    if page is not None:
        pages.write(page, verdict)
    if options.format != "text":
        report = None if out is None else str(out / "verdict.json")
        sys.stdout.write(text if options.format == "json" else written([alone(verdict, report)], options.format))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show

    show(verdict, Console(), where=None if out is None else "verdict.json")
    if out is not None:
        print(f"\nTraces and verdict: {out}")
    if page is not None:
        print(f"Page: {page}")
    return verdict.exit_code


def explain(options: argparse.Namespace) -> int:
    """Say why sites diverge."""
    with watched() as progress:
        verdict = explaining_command.verdict_of(options.path, options.model, options.names, progress=progress)
    chosen = explaining_command.chosen(verdict, options.site)
    if options.json:
        print(json.dumps(strict([asdict(e) for e in chosen]), indent=1, allow_nan=False))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show_explanations

    show_explanations(verdict, chosen, options.site, Console())
    return verdict.exit_code


def hypotheses(options: argparse.Namespace) -> int:
    """List the hypotheses."""
    rows = listing.listed(options.id)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(listing.one(rows[0]) if options.id else listing.table(rows, get_terminal_size().columns))
    return 0


def names(options: argparse.Namespace) -> int:
    """Show how the names of a dump were understood."""
    rows = names_in(options.trace, names=options.names)
    if options.json:
        record = [
            {"name": r.name, "step": r.step, "point": r.point, "layer": r.layer, "nearest": r.nearest, "shape": r.shape}
            for r in rows
        ]
        print(json.dumps(record, indent=1))
        return 0
    from firstdiff.reports.words import runs

    print(name_table(rows, runs))
    return 0


def _report_several(verdicts: Sequence[Verdict], given: Sequence[str], options: argparse.Namespace, out: Path) -> int:
    """Print where the candidates part and the report of each that is not right; the worst exit code."""
    called = names_of(verdicts, given)
    text = to_json(verdicts, called)
    pages.keep_verdict(out, text)
    code = max(v.exit_code for v in verdicts)
    if options.format != "text":
        cases = [alone(v, str(out / "verdict.json"), name) for v, name in zip(verdicts, called, strict=True)]
        sys.stdout.write(text if options.format == "json" else written(cases, options.format))
        return code
    from rich.console import Console

    from firstdiff.reports.several import show

    show(verdicts, called, summary(verdicts, called), Console(), where="verdict.json")
    print(f"\nTraces and verdict: {out}")
    return code
