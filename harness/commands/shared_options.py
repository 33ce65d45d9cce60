"""Options that several commands have. Only argparse is imported, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from pathlib import Path

from firstdiff.commands.values import count, job_count, part_of, thread_count, token_ids

FORMATS = ("text", "json", "markdown", "html", "junit")


def add_input(parser: argparse.ArgumentParser) -> None:
    """What is run: a text, ids, or a long prompt."""
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="a text, tokenised by llama.cpp")
    text.add_argument("--tokens", type=token_ids, metavar="IDS", help="token ids, such as 1,450,7483")
    text.add_argument("--long", action="store_true", help="a prompt of 2,048 tokens, for what shows at none shorter")
    add_text(parser)


def add_text(parser: argparse.ArgumentParser) -> None:
    """How a text becomes token ids."""
    parser.add_argument("--chat", action="store_true", help="put the text into the model's chat template")
    parser.add_argument(
        "--no-special",
        dest="special",
        action="store_false",
        help="add no BOS or EOS, read control tokens as plain text",
    )


def add_common(parser: argparse.ArgumentParser, kept: str = "verdict.json") -> None:
    """What every command that judges has: where it keeps what it records, threads, and the format."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for traces and verdict (default: a new one in firstdiff-runs/)",
    )
    add_threads(parser)
    add_format(parser, kept)


def add_budget(parser: argparse.ArgumentParser) -> None:
    """How long explaining may take."""
    parser.add_argument(
        "--budget",
        type=count,
        metavar="SECONDS",
        help="seconds that the search for what explains may take, per candidate (default: 60)",
    )


def add_html(parser: argparse.ArgumentParser) -> None:
    """Whether a page is written."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one HTML page too")
    parser.add_argument(
        "--details",
        action="store_true",
        help="keep a closer look at each site in verdict.json, for 'report --html' to show later (--html does too)",
    )


def add_names(parser: argparse.ArgumentParser) -> None:
    """How a dump's names are understood."""
    parser.add_argument(
        "--names", metavar="MAP", help="names in the dump: firstdiff, llama.cpp, hf, or a TOML or JSON table"
    )


def add_tier(parser: argparse.ArgumentParser, *tiers: str) -> None:
    """What judges."""
    both = "; both: say where they disagree" if "both" in tiers else ""
    parser.add_argument(
        "--tier",
        choices=tiers,
        help="what judges: firstdiff's own description of the architecture, or llama.cpp's graph (default: the first, "
        f"if there is one){both}",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """llama.cpp's threads."""
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="threads of llama.cpp (default: one a core, and 1 for small models and prompts)",
    )


def add_attention(parser: argparse.ArgumentParser) -> None:
    """llama.cpp's options of attention."""
    parser.add_argument("--flash-attention", action="store_true", help="run llama.cpp with flash attention")
    parser.add_argument(
        "--kv",
        choices=("f16", "bf16", "q8_0", "q4_0"),
        default="f16",
        metavar="TYPE",
        help="type of llama.cpp's KV cache: f16 (default), bf16, q8_0, q4_0; without flash attention the last two "
        "are the keys' alone",
    )


def add_format(parser: argparse.ArgumentParser, kept: str = "verdict.json") -> None:
    """What is printed; `kept` is the file that JSON is the text of."""
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="what is printed, to stdout (default: %(default)s)"
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help=f"the same as --format json: print {kept}"
    )


def add_json(parser: argparse.ArgumentParser, printed: str) -> None:
    """Whether JSON is printed, and what it holds."""
    parser.add_argument("--json", action="store_true", help=f"print {printed} as JSON")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """With how many threads a trace is judged."""
    parser.add_argument(
        "--jobs",
        type=job_count,
        metavar="N",
        help="threads that judge and explain (default: one a core); what comes out does not depend on it",
    )


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """How many cases are judged side by side, and which."""
    parser.add_argument("--jobs", type=job_count, default=1, metavar="N", help="cases judged side by side (default: 1)")
    parser.add_argument(
        "--shard",
        type=part_of,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N parts of the cases, for N machines that share the work: see firstdiff merge",
    )
    parser.add_argument(
        "--on", metavar="dask://HOST:PORT", help="judge the cases on the workers of a dask cluster that share the files"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take the cases that were judged in --out before, with the same files, options and versions, from there",
    )
    add_history(parser)


def add_history(parser: argparse.ArgumentParser) -> None:
    """The file of a gate's runs over time."""
    parser.add_argument(
        "--history", type=Path, metavar="FILE", help="add the run to this file, whose runs index.html shows over time"
    )
