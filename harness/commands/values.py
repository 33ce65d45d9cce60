"""Values of options, read strictly: counts, seconds, threads, token ids."""

from __future__ import annotations

import argparse

from firstdiff.engines.threads import MOST_THREADS


def _is_whole(text: str, *, digits: int) -> bool:
    """Whether a text is a whole number as everybody writes it: int() also takes 1_0 and digits of other scripts."""
    return text.isascii() and text.isdecimal() and len(text) <= digits


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not _is_whole(text, digits=9):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no count: give a whole number from 0 on")
    return int(text)


def seconds(text: str) -> float:
    """Whole seconds, at least one."""
    if not _is_whole(text, digits=6) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no time: give whole seconds from 1 on")
    return float(text)


def thread_count(text: str) -> int:
    """As many threads as llama.cpp takes, at least one."""
    value = int(text) if _is_whole(text, digits=3) else 0
    if not 1 <= value <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no count of threads: give 1 to {MOST_THREADS}")
    return value


def job_count(text: str) -> int:
    """As many processes as are asked for, at least one."""
    value = int(text) if _is_whole(text, digits=4) else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no count of jobs: give a whole number from 1 on")
    return value


def part_of(text: str) -> tuple[int, int]:
    """Which part of how many, as in ``2/4``."""
    words = text.split("/")
    part, parts = (int(w) if _is_whole(w, digits=6) else 0 for w in words) if len(words) == 2 else (0, 0)  # noqa: PLR2004
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no part: give 1/4 for the first of four parts")
    return part, parts


def layer_numbers(text: str) -> frozenset[int]:
    """Layers, such as ``0-7`` or ``0-3,8``."""
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.partition("-")
        last = last if dash else first
        if not (_is_whole(first, digits=6) and _is_whole(last, digits=6)) or int(first) > int(last):
            raise argparse.ArgumentTypeError(f"{text!r:.40} is no range of layers: give 0-7, or 0-3,8")
        found |= set(range(int(first), int(last) + 1))
    return frozenset(found)


def token_ids(text: str) -> tuple[int, ...]:
    """Token ids, separated by commas."""
    words = text.replace(",", " ").split()
    for word in words:
        if not _is_whole(word, digits=10):
            raise argparse.ArgumentTypeError(f"{word!r:.40} is no token id: give whole numbers, such as 1,450,7483")
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r:.40} holds no token id: give whole numbers, such as 1,450,7483")
    return tuple(map(int, words))
