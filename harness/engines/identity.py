"""Which engine and model a trace is of, and whether two traces are of the same tokens."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firstdiff.dumps import Trace, TraceError
from firstdiff.engines.digests import digest
from firstdiff.errors import UsageError
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF


@dataclass(frozen=True, slots=True)
class Identity:
    """What is said of a model: its file's name and SHA-256 (of a split model, of its parts' digests)."""

    file: str
    sha256: str

    @property
    def stated(self) -> dict[str, Any]:
        """The same as a trace states it."""
        return asdict(self)


def identity(model: Model | GGUF) -> Identity:
    """Say which model it is."""
    gguf = model if isinstance(model, GGUF) else model.gguf
    digests = [digest(part) for part in gguf.files]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return Identity(gguf.path.name, whole.hex())


def engine_name(trace: Trace) -> str:
    """An engine as reports name it: ``llama.cpp:cpu``."""
    engine, backend = trace.engine.get("name", "candidate"), trace.engine.get("backend")
    return f"{engine}:{backend}" if backend else str(engine)


def named_model(trace: Trace) -> Path:
    """The model's file that a trace names, if it is there.

    Raises
    ------
    UsageError
        If it names none that is.
    """
    path = Path(str(trace.model.get("path") or trace.model.get("file") or ""))
    if not path.is_file():
        raise UsageError(f"{trace.path}: names no model that is here: give it with --model")
    return path


def check_trace(trace: Trace, model: Model, said: Identity) -> None:
    """Refuse a trace that states another model than `said`, or holds tokens that the model cannot run.

    Raises
    ------
    TraceError
        With both checksums, or the token.
    """
    theirs = trace.model.get("sha256")
    if isinstance(theirs, str) and theirs.lower() != said.sha256:
        raise TraceError(
            f"{trace.path}: is a trace of another model ({trace.model.get('file', 'unnamed')!s:.80}, "
            f"sha256 {theirs:.12}…) than {said.file} (sha256 {said.sha256:.12}…): give the model it was made with"
        )
    try:
        model.check_tokens([t for step in trace.steps for t in step.tokens])
    except ModelError as e:
        raise TraceError(f"{trace.path}: its tokens cannot be run: {e}") from None


def check_same_tokens(a: Trace, b: Trace) -> None:
    """Refuse two traces of different tokens.

    Raises
    ------
    TraceError
        With the first difference.
    """
    if len(a.steps) != len(b.steps):
        raise TraceError(
            f"{b.path}: has {len(b.steps)} steps, and {a.path} {len(a.steps)}: record both from the same tokens"
        )
    for index, (x, y) in enumerate(zip(a.steps, b.steps, strict=True)):
        if x.tokens != y.tokens:
            place = next(
                (i for i, (s, t) in enumerate(zip(x.tokens, y.tokens, strict=False)) if s != t),
                min(len(x.tokens), len(y.tokens)),
            )
            raise TraceError(
                f"{b.path}: its tokens differ from those of {a.path} at step {index}, place {place} "
                f"({list(y.tokens[place : place + 3])} for {list(x.tokens[place : place + 3])}): "
                "record both from the same tokens"
            )
