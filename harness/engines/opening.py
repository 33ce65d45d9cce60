"""Opening a model as a reference: by the file that is written for its architecture, or by llama.cpp's own graph."""

from __future__ import annotations

from os import PathLike
from typing import Literal

from firstdiff.engines.llamacpp import version
from firstdiff.engines.llamacpp_graph import capture_of
from firstdiff.errors import CaptureError
from firstdiff.model.engine import ARCHITECTURES, Model, open_graph, open_model
from firstdiff.model.errors import NotDescribedError
from firstdiff.model.gguf import architecture_of, open_gguf

Tier = Literal["hand", "graph"]


def open_reference(path: str | PathLike[str], *, tier: Tier | None = None, threads: int = 1) -> Model:
    """Open a model as what candidates are judged against.

    Parameters
    ----------
    path
        The GGUF file.
    tier
        ``hand``: by the file of ``model/architectures``; ``graph``: by the graph that llama.cpp runs. None for the
        first where there is one, and else for the second.
    threads
        That llama.cpp shows its graph with.

    Raises
    ------
    ModelError
        For a file that cannot be read, or is not supported.
    CaptureError
        Where the graph is needed, and llama.cpp is not installed.
    """
    why = ""
    if tier != "graph":
        try:
            return open_model(path)
        except NotDescribedError as e:
            if tier == "hand":
                raise
            why = _why(e, path)
    version()  # fails where there is no llama.cpp
    return open_graph(path, capture_of(open_gguf(path), threads=threads), why=why)


def is_described(path: str | PathLike[str]) -> bool:
    """Whether a file of ours describes a model.

    Raises
    ------
    ModelError
        For a file that cannot be read, and for one that only llama.cpp could compute, which is not installed.
    """
    try:
        open_model(path)
    except NotDescribedError as e:
        _why(e, path)
        return False
    return True


def _why(error: NotDescribedError, path: str | PathLike[str]) -> str:
    """Why llama.cpp's graph is taken, in words for a report."""
    try:
        version()
    except CaptureError as none:
        raise NotDescribedError(f"{error}; llama.cpp's own graph would do, but {none}") from None
    named = architecture_of(path)
    if named not in ARCHITECTURES:
        return f"firstdiff does not describe the architecture {named!r:.60} itself"
    reason = str(error).removeprefix(f"{path}: ").partition(", so its result")[0].partition(": take a")[0]
    return f"firstdiff's own description of {named} does not cover this file ({reason})"
