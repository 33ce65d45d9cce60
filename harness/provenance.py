"""What was run, for a verdict to state: so that it can be run again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

COMPUTES = ("firstdiff", "numpy", "numba", "llama-cpp-python")
"""Packages whose version can change a number."""


def ran(arguments: Sequence[str]) -> dict[str, Any]:
    """The command, and the versions of what computed."""
    versions = {"python": platform.python_version()}
    for name in COMPUTES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    # an argument that is no UTF-8 would be one in no file either
    command = [a.encode("utf-8", "backslashreplace").decode() for a in ("firstdiff", *arguments)]
    return {"command": command, "versions": versions, "machine": platform.machine()}
