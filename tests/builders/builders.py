"""Small models whole or damaged, traces, and the command line: what several tests build on."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstdiff.cli import main
from firstdiff.dumps import TraceWriter, open_trace
from firstdiff.model import synthetic
from firstdiff.model.synthetic import Llama

TINY = Llama(n_layer=2, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=128, n_vocab=320, n_ctx=64)
TOKENS = "1,70,71,72,73"

Array = np.ndarray[Any, np.dtype[Any]]


# Models


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a GGUF file states it, true or not; `ne` has the row length first."""

    ne: tuple[int, ...]
    kind: int
    raw: bytes
    offset: int | None = None  # where it is said to be, in place of where it is


def stored(x: Array) -> Stored:
    kinds = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
    return Stored(x.shape[::-1], kinds[x.dtype], x.tobytes())


def tensor_of(name: str, shape: Llama = TINY) -> Stored:
    """A tensor of the model that `write_model` writes."""
    return stored(dict(synthetic._tensors(shape))[name])


def write_model(
    path: Path,
    *,
    shape: Llama = TINY,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Stored | None] | None = None,
) -> Path:
    """Write a synthetic llama with some metadata and tensors replaced, added, or (None) left out."""
    keys = synthetic._metadata(shape) | dict(metadata or {})
    keys = {key: value for key, value in keys.items() if value is not None}
    named = {name: stored(x) for name, x in synthetic._tensors(shape)} | dict(tensors or {})
    kept = {name: tensor for name, tensor in named.items() if tensor is not None}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(kept), len(keys))
    head += b"".join(synthetic._string(key) + synthetic._value(value) for key, value in keys.items())
    data = b""
    for name, tensor in kept.items():
        offset = len(data) if tensor.offset is None else tensor.offset
        head += synthetic._string(name) + struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
        head += struct.pack("<IQ", tensor.kind, offset)
        data += tensor.raw + bytes(-len(tensor.raw) % synthetic.ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % synthetic.ALIGNMENT) + data)
    return path


# Traces


def rewrite_trace(
    source: Path,
    out: Path,
    change: Callable[[str, Array], Array | None] = lambda _, x: x,
    *,
    model: dict[str, Any] | None = None,
    steps: int | None = None,
) -> Path:
    """Copy a trace, each tensor changed by its site's name or (None) left out; `steps` cuts it short by a crash."""
    trace = open_trace(source)
    writer = TraceWriter(out, engine=trace.engine, model=trace.model if model is None else model)
    for index, step in enumerate(trace.steps[:steps]):
        changed = {s.key: change(str(s), np.array(trace[s])) for s in trace.sites() if s.step == index}
        writer.step(step, {key: x for key, x in changed.items() if x is not None})
    if steps is None:
        writer.close()
    return out


# The command line


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left: its exit code and the two streams."""

    code: int
    out: str
    err: str


class Command:
    """``firstdiff`` in this process, its streams caught below Python, where llama.cpp writes."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: object) -> Ran:
        """Run a command; an exception that leaves it is a traceback to its user, and fails the test."""
        self._capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse's way out
            code = int(e.code or 0)
        caught = self._capfd.readouterr()
        return Ran(code, caught.out, caught.err)


def assert_refused(ran: Ran, code: int, *words: str) -> None:
    """One line on stderr that holds all the words, nothing on stdout, and the exit code."""
    assert ran.out == ""
    assert ran.err.startswith("firstdiff: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err[:-1].isprintable(), ran.err
    missing = [word for word in words if word not in ran.err]
    assert not missing, f"{missing} not in {ran.err}"
    assert ran.code == code
