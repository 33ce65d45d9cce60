"""Opening a model as a reference: by the file that is written for its architecture, or by llama.cpp's own graph."""

from __future__ import annotations

from os import PathLike
from typing import Literal

from firstdiff.engines.llamacpp import version
from firstdiff.engines.llamacpp_graph import capture_of
from firstdiff.model.engine import ARCHITECTURES, Model, open_graph, open_model
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
    if tier is None:
        named = architecture_of(path)
        tier = "hand" if named is None or named in ARCHITECTURES else "graph"
    if tier == "hand":
        return open_model(path)
    version()  # fails where there is no llama.cpp
    return open_graph(path, capture_of(open_gguf(path), threads=threads))
