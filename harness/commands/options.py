"""From options of the command line to what runs are asked for."""

from __future__ import annotations

import argparse

from firstdiff.engines.llamacpp import Attention
from firstdiff.errors import UsageError
from firstdiff.explaining.budget import SECONDS
from firstdiff.runs import pages
from firstdiff.runs.prompt import Input

DECODE = 2  # steps after the prompt: one that reads the cache of the prompt, and one that reads its own
TIMEOUT = 600.0  # seconds for an engine: ten minutes is more than any prompt of some tokens takes


def source_of(options: argparse.Namespace) -> Input:
    """What to run, as the options say."""
    if options.tokens is not None and options.chat:
        raise UsageError("--chat is for a text: give --prompt in place of --tokens")
    return Input(options.tokens, options.prompt, options.chat, options.special, options.long)


def attention_of(options: argparse.Namespace) -> Attention:
    """llama.cpp's options of attention."""
    return Attention.of(flash=options.flash_attention, kv=options.kv)


def budget_of(options: argparse.Namespace) -> float:
    """Seconds that explaining may take."""
    return SECONDS if options.budget is None else float(options.budget)


def wants_details(options: argparse.Namespace) -> bool:
    """Whether a closer look at each site is wanted; a page that cannot be written is refused before all work."""
    if options.html is not None:
        pages.check(options.html)
    return options.html is not None or options.format == "html" or bool(options.details)
