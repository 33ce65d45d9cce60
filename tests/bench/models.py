"""The models that are measured: SmolLM2, and a synthetic one of TinyLlama's size."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import run

from firstdiff.model.engine import open_model
from firstdiff.model.synthetic import Llama, write_llama

TINYLLAMA = Llama(
    n_layer=22,
    n_embd=2048,
    n_head=32,
    n_head_kv=4,
    head_dim=64,
    n_ff=5632,
    n_vocab=32000,
    n_ctx=2048,
    dtype=np.float16,
)
Q8_0 = 7  # LLAMA_FTYPE_MOSTLY_Q8_0


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure on, with the bytes of its file and of its largest weight as float32.

    `tokeniser` says whether it has one for texts; the synthetic model's is of single bytes.
    """

    name: str
    path: Path
    size: int
    largest: int
    tokeniser: bool


def subject(name: str, path: Path, *, tokeniser: bool) -> Subject:
    """Describe a model file."""
    tensors = open_model(path).gguf.tensors.values()
    largest = 4 * max(int(np.prod(info.shape)) for info in tensors)
    return Subject(name, path, path.stat().st_size, largest, tokeniser)


def tinyllama(folder: Path) -> Path:
    """Make the synthetic model, in a process of its own: on the way it takes some 3 GB of memory and of disk."""
    path = folder / "tinyllama-shaped.Q8_0.gguf"
    run([sys.executable, __file__, folder / "f16.gguf", path])
    return path


def quantise(source: Path, target: Path) -> None:
    """Turn a F16 model into Q8_0, by llama.cpp."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q8_0, os.cpu_count() or 1
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise RuntimeError(f"{source}: llama.cpp does not quantise this file")


if __name__ == "__main__":
    f16, out = Path(sys.argv[1]), Path(sys.argv[2])
    quantise(write_llama(f16, TINYLLAMA), out)
    f16.unlink()
