"""The options of every command. Only argparse is imported, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from firstdiff.commands.black_boxes import add_conformance, add_probe
from firstdiff.commands.shared_options import (
    add_attention,
    add_budget,
    add_common,
    add_format,
    add_history,
    add_html,
    add_input,
    add_jobs,
    add_json,
    add_names,
    add_parallel,
    add_text,
    add_threads,
    add_tier,
)
from firstdiff.commands.values import count, layer_numbers, seconds, token_ids
from firstdiff.errors import USAGE

DESCRIPTION = """\
Which tensor of your inference engine is the first to go wrong, and why.

Runs a GGUF model through a reference engine and llama.cpp, records every intermediate, and judges
each operation on its own recorded inputs.
"""

EPILOG = """\
exit codes: 0 agrees, 1 diverges, 2 wrong usage, 3 unreadable input or failed capture, 4 too little could be compared
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and where help is."""
        self.exit(USAGE, f"firstdiff: {message} (see {self.prog} --help)\n")


def command_line() -> argparse.ArgumentParser:
    """The parser of every command and its options."""
    parser = _Parser(
        "firstdiff", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=name)
        return sub

    _add_judging(add)
    _add_looking(add)
    return parser


def _add_judging(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that run engines."""
    demo = add("demo", "Plant a bug in a real model, and find it.")
    demo.add_argument("--bug", metavar="ID", help="which bug; without, one that surprises")
    demo.add_argument("--layer", type=count, metavar="N", help="at which layer")
    demo.add_argument("--model", type=Path, metavar="GGUF", help="another model than SmolLM2")
    demo.add_argument("--decode", type=count, default=1, metavar="N", help="steps to decode (default: %(default)s)")
    demo.add_argument("--list", action="store_true", help="list the bugs that can be planted, and exit")
    add_html(demo)
    add_common(demo)

    run = add("run", "Judge llama.cpp, or a candidate's trace, against the reference.")
    run.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    add_input(run)
    run.add_argument("--decode", type=count, metavar="N", help="steps to decode after the prompt (default: 2)")
    run.add_argument(
        "--candidate",
        type=Path,
        action="append",
        default=[],
        metavar="TRACE",
        help="your engine's dump: it is judged, with llama.cpp as a witness; repeatable",
    )
    run.add_argument(
        "--engine",
        metavar="CMD",
        help="your engine, to be run: 'CMD --model {model} --tokens {tokens} --decode {decode} --dump {dump}'",
    )
    run.add_argument("--timeout", type=seconds, metavar="S", help="seconds that the engine may take (default: 600)")
    add_tier(run, "hand", "graph", "both")
    add_names(run)
    add_attention(run)
    add_budget(run)
    add_jobs(run)
    add_html(run)
    add_common(run)

    add_probe(add("probe", "Judge an engine that only gives logits, by models made so that these show its tensors."))

    add_conformance(add("conformance", "Run an engine through tiny models, each of which isolates one thing."))

    gate = add("gate", "Judge a matrix of cases, and hold it to limits and to committed baselines.")
    gate.add_argument(
        "config", type=Path, nargs="?", default=Path("firstdiff.toml"), metavar="TOML", help="(default: %(default)s)"
    )
    gate.add_argument("--case", action="append", default=[], metavar="NAME", help="only this case; repeatable")
    gate.add_argument(
        "--force-regen",
        action="store_true",
        help="write the baselines anew, whatever they were: commit them afterwards",
    )
    add_parallel(gate)
    add_budget(gate)
    add_common(gate, "gate.json")

    _add_layers(add("judge-layers", "Judge some layers of a trace, so that several machines can share the work."))

    merge = add("merge", "Join what gate --shard or judge-layers found on several machines.")
    merge.add_argument("part", type=Path, nargs="+", metavar="PART", help="the folder of a part (its --out)")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the whole")
    for name in ("model", "trace", "witness"):
        said = f"the {name} of judged layers, where it lies elsewhere on this machine"
        merge.add_argument(f"--{name}", type=Path, metavar=name.upper(), help=said)
    add_history(merge)
    add_budget(merge)
    add_jobs(merge)
    merge.add_argument("--html", type=Path, metavar="FILE", help="write the report on the layers as one HTML page too")
    add_format(merge, "gate.json")

    _add_record(add("record", "Record every intermediate of one engine's run."))


def _add_looking(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that look at what is there."""
    diff = add("diff", "Judge two recorded traces of the same tokens, the second as witness of the first.")
    diff.add_argument("candidate", type=Path, metavar="TRACE_A", help="the trace to judge")
    diff.add_argument(
        "witness", type=Path, metavar="TRACE_B", help="the trace beside it: exit code 1 if either diverges"
    )
    diff.add_argument("--model", type=Path, metavar="MODEL", help="the GGUF file (default: the one that TRACE_A names)")
    add_jobs(diff)
    add_budget(diff)
    add_format(diff)

    _add_explain(add("explain", "Say why a site diverges, with every hypothesis that was tried."))

    hypotheses = add("hypotheses", "List the hypotheses: the ways of being wrong that are tried.")
    hypotheses.add_argument("id", nargs="?", metavar="ID", help="one of them, in full")
    add_json(hypotheses, "the hypotheses")
    _add_report(add("report", "Print the report of a verdict.json again, or make its HTML page."))

    names = add("names", "Show how the tensors of a trace were understood.")
    names.add_argument("trace", type=Path, metavar="TRACE", help="a dump of any engine")
    names.add_argument("--model", type=Path, metavar="MODEL", help="the GGUF file that it is of, which says more")
    add_names(names)
    add_json(names, "every name and how it was understood")

    points = add("points", "Show what can be dumped of a model, and under which name.")
    points.add_argument("model", type=Path, metavar="MODEL")
    add_tier(points, "hand", "graph")
    add_json(points, "the points")

    tokens = add("tokens", "Print a text's token ids with their pieces, or compare ids with llama.cpp's.")
    tokens.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    tokens.add_argument("--prompt", required=True, metavar="TEXT", help="a text, tokenised by llama.cpp")
    tokens.add_argument("--ids", type=token_ids, metavar="IDS", help="your engine's token ids, to compare")
    add_text(tokens)
    add_json(tokens, "the ids with their pieces, or the comparison,")

    rope = add("rope", "Print the rope table, or the angles that a trace was turned by.")
    rope.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    rope.add_argument("--positions", type=token_ids, metavar="POSITIONS", help="such as 0,1,2")
    rope.add_argument("--pairs", type=token_ids, metavar="PAIRS", help="which pairs (default: all)")
    rope.add_argument("--trace", type=Path, metavar="TRACE", help="your dump: its angles beside the expected ones")
    rope.add_argument("--tokens", type=token_ids, metavar="IDS", help="token ids, where the dump has none")
    rope.add_argument("--layer", type=count, default=0, metavar="N", help="layer of the trace (default: %(default)s)")
    add_names(rope)
    add_json(rope, "the table, or the fitted angles,")

    weights = add("weights", "Print statistics of the file's weights, or compare your engine's with them.")
    weights.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    weights.add_argument("names", nargs="*", metavar="NAME", help="names, parts of names, or patterns")
    weights.add_argument(
        "--against", type=Path, metavar="FILE", help="your weights (safetensors), or a trace with weights.safetensors"
    )
    add_json(weights, "the statistics, or the comparison,")

    _add_log(add("log", "Hold what an engine printed against the reference."))
    add("doctor", "Check that this installation is sound.")


def _add_record(record: argparse.ArgumentParser) -> None:
    record.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    record.add_argument(
        "--engine",
        default="llama.cpp:cpu",
        metavar="ENGINE",
        help="llama.cpp:cpu (default), or reference:f64, f32, ggml-cpu, bf16, f16, tf32, f16-operands, bf16-operands",
    )
    add_input(record)
    record.add_argument("--decode", type=count, metavar="N", help="steps to decode after the prompt (default: 2)")
    record.add_argument(
        "--bug",
        action="append",
        default=[],
        metavar="ID[@LAYER]",
        help="plant a bug in the reference (see demo --list); repeatable",
    )
    record.add_argument("--out", type=Path, required=True, metavar="TRACE", help="folder of the trace")
    add_attention(record)
    add_threads(record)


def _add_layers(layers: argparse.ArgumentParser) -> None:
    layers.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    layers.add_argument("trace", type=Path, nargs="?", metavar="TRACE", help="your engine's dump, or llama.cpp's")
    layers.add_argument(
        "--layers",
        type=layer_numbers,
        metavar="A-B",
        help="such as 0-7 or 0-3,8 (default: all); embd goes with layer 0, what is behind the layers with the last one",
    )
    layers.add_argument("--witness", type=Path, metavar="TRACE", help="another engine's trace of the same tokens")
    layers.add_argument("--out", type=Path, metavar="PART", help="folder for the part")
    layers.add_argument(
        "--partial",
        action="store_true",
        help="the file holds these layers only: it is not compared with the SHA-256 that the trace states",
    )
    layers.add_argument("--bytes", action="store_true", help="print which bytes of the file each layer needs, and exit")
    add_tier(layers, "hand", "graph")
    add_names(layers)
    add_jobs(layers)


def _add_log(log: argparse.ArgumentParser) -> None:
    log.add_argument("log", type=Path, metavar="FILE", help="what your engine printed")
    log.add_argument("--model", type=Path, required=True, metavar="MODEL", help="the GGUF file it ran")
    log.add_argument("--tokens", type=token_ids, required=True, metavar="IDS", help="the prompt's token ids")
    log.add_argument("--decode", type=count, default=0, metavar="N", help="steps decoded after the prompt (default: 0)")
    log.add_argument(
        "--decoded", type=token_ids, default=(), metavar="IDS", help="the tokens it decoded, in place of --decode"
    )
    log.add_argument("--patterns", type=Path, metavar="FILE", help="a TOML file with more spellings")
    add_json(log, "every observation and what was found of it")


def _add_explain(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("path", type=Path, metavar="VERDICT_OR_TRACE", help="verdict.json, a run's folder, or a trace")
    explain.add_argument("site", nargs="?", metavar="SITE", help="such as Kcur_rope-3 (default: every explanation)")
    explain.add_argument("--model", type=Path, metavar="MODEL", help="the GGUF file of a trace")
    add_budget(explain)
    add_jobs(explain)
    add_names(explain)
    add_json(explain, "the explanations")


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("verdict", type=Path, metavar="VERDICT", help="the verdict.json of a run")
    report.add_argument("--html", type=Path, metavar="FILE", help="write the HTML page in place of printing")
    add_format(report)
