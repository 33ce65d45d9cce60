"""Somebody's own engine: the one in C, compiled and dumped once, how it is called, and what is read of its verdict."""

from __future__ import annotations

import shlex
import stat
from functools import cache
from pathlib import Path
from typing import Any

from builders.command_line import Command, Ran, strict
from builders.engines import compile_engine, run_engine

PROMPT = [1, 72, 104, 300, 45, 300, 17, 260, 301, 99, 45, 8]
IDS = ",".join(map(str, PROMPT))
QUICK = ("-O0",)  # small models need no fast code, and compile in half the time
SHAPE = {
    "n_layer": 2, "n_embd": 64, "n_head": 8, "n_head_kv": 4, "head_dim": 8, "n_ff": 96, "n_vocab": 320,
    "rope_base": 50000.0, "rope_factors": True, "rope_scale": 0.5, "biases": True,
}  # fmt: skip
RUN_BY = "--model {model} --tokens {tokens} --decode {decode} --dump {dump}"


@cache
def dumped(bench: Path, model: Path, bug: str | None = None, layer: int | None = None, more: str = "") -> Path:
    """The C engine's own dump."""
    out = bench / "-".join(["dump", str(bug), str(layer), more.replace(" ", "")])
    run_engine(compile_engine(bench, bug, layer, flags=QUICK), model, PROMPT, out, more=more)
    return out


def by_engine(engine: Path, more: str = "") -> str:
    return f"{shlex.quote(str(engine))} {RUN_BY} {more}"


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def judged(firstdiff: Command, model: Path, *arguments: object, code: int | None = None) -> dict[str, Any]:
    ran = firstdiff("run", model, *arguments, "--json")
    assert code is None or ran.code == code, ran.err
    return dict(strict(ran.out))


def statuses(verdict: dict[str, Any]) -> dict[str, str]:
    return {site["site"]: site["status"] for site in verdict["sites"]}


def first(verdict: dict[str, Any]) -> str | None:
    return None if verdict["first"] is None else str(verdict["first"]["site"])


def unwrapped(text: str) -> str:
    """A report as if its lines had no end."""
    return " ".join(text.split())


def narrow(ran: Ran) -> None:
    """Check that a report fits 80 columns and that no line ends in a blank."""
    assert [line for line in ran.out.splitlines() if len(line) > 80 or line != line.rstrip()] == []
