"""The options of the commands that run engines which give nothing but logits. Only argparse is imported."""

from __future__ import annotations

import argparse
from pathlib import Path

from firstdiff.commands.shared_options import add_budget, add_common, add_html, add_input, add_json, add_tier
from firstdiff.commands.values import count, seconds


def add_probe(probe: argparse.ArgumentParser) -> None:
    """What ``firstdiff probe`` takes."""
    probe.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    engine = probe.add_mutually_exclusive_group(required=True)
    engine.add_argument(
        "--engine",
        metavar="CMD",
        help="your engine: 'CMD --model {model} --tokens {tokens} --logits {logits}'; it writes the logits of each "
        "token, or of the last one, to the file {logits} (float32, .npy, .safetensors or text); with --parts {parts} "
        "it is told how many tokens to run at a time ('5,1,1'), and decoding is judged too",
    )
    engine.add_argument(
        "--server",
        metavar="CMD",
        help="your engine, a server with OpenAI's HTTP interface: 'CMD --model {model} --port {port}'; it gives the "
        "log probabilities of the most probable tokens at /v1/completions",
    )
    probe.add_argument(
        "--top",
        type=count,
        metavar="N",
        help="with --server: how many of the most probable tokens to ask for (default: 257, or as many as it gives)",
    )
    add_input(probe)
    probe.add_argument(
        "--runs",
        type=count,
        metavar="N",
        help="how often the engine may be run (default: 2 log2(layers) + 12, which is 22 for 30 layers)",
    )
    probe.add_argument("--timeout", type=seconds, metavar="S", help="seconds that a run may take (default: 600)")
    add_tier(probe, "hand", "graph")
    add_budget(probe)
    add_html(probe)
    add_common(probe)


def add_conformance(suite: argparse.ArgumentParser) -> None:
    """What ``firstdiff conformance`` takes."""
    suite.add_argument(
        "--engine",
        required=True,
        metavar="CMD",
        help="your engine: 'CMD --model {model} --tokens {tokens} --logits {logits}', as for firstdiff probe; with "
        "--parts {parts} decoding is tested too",
    )
    suite.add_argument(
        "--level", choices=("core", "full"), default="core", help="core: what most files need (default); full: all"
    )
    suite.add_argument("--only", action="append", default=[], metavar="TEST", help="only this test; repeatable")
    suite.add_argument("--timeout", type=seconds, metavar="S", help="seconds that a run may take (default: 600)")
    suite.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML too")
    suite.add_argument("--badge", type=Path, metavar="FILE", help="write a badge for shields.io too")
    add_json(suite, "the results")
