"""What was run, for a verdict to state: so that it can be run again."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

COMPUTES = ("firstdiff", "numpy", "numba", "llama-cpp-python")
"""Packages whose version can change a number."""

WHERE = {"--out": 1, "--html": 1, "--format": 1, "--json": 0, "--details": 0, "--jobs": 1}
"""Options that change no result, and how many values follow: the same judgement must give the same bytes."""


def ran(arguments: Sequence[str]) -> dict[str, Any]:
    """The command without the options that say where its results go, and the versions of what computed."""
    versions = {"python": platform.python_version()}
    for name in COMPUTES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    # an argument that is no UTF-8 would be one in no file either
    command = [a.encode("utf-8", "backslashreplace").decode() for a in ("firstdiff", *_judging(arguments))]
    return {"command": command, "versions": versions, "machine": platform.machine()}


def own_version() -> str:
    """Version of the installed package."""
    return version("firstdiff")


def _judging(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments that decide what is judged. argparse has accepted them, so an abbreviation is of one option."""
    skip = 0
    for argument in arguments:
        if skip:
            skip -= 1
            continue
        name, sign, _ = argument.partition("=")
        option = next((o for o in WHERE if len(name) > len("--") and o.startswith(name)), None)
        if option is None:
            yield argument
        elif not sign:
            skip = WHERE[option]
