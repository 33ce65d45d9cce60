"""Right engines of many kinds: each records its run as a trace of plain tensors, heads in the order of the GGUF file.

The reference can also have faults planted in it, in the candidate's own order of head dimensions.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from builders.engines import compile_engine
from builders.held_weights import HeldCall
from builders.hugging_face import INTERLEAVED, by_halves, hugging_face_model
from builders.known_faults import Array, Knowing
from builders.relaid import ROTATED, interleaved
from firstdiff.dumps import Site, Step, Trace, TraceWriter, open_trace
from firstdiff.engines.llamacpp import Attention, LlamaCpp
from firstdiff.engines.llamacpp_capture import capture
from firstdiff.engines.pytorch import _cache_name, _taps
from firstdiff.engines.pytorch_hooks import hooked
from firstdiff.hypotheses.planting import Planted
from firstdiff.judging.own_layout import OwnModel
from firstdiff.model.arithmetic import BF16, BF16_OPERANDS, F16, F16_OPERANDS, F32, TF32, Arithmetic
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import rope
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight, Weights

LONG = 32
"""Tokens of a step from which GPU engines take another kernel."""

COMPUTE: dict[str, Callable[[int], Arithmetic]] = {
    "f32": lambda _: F32,
    "tf32": lambda _: TF32,
    "f16": lambda _: F16,
    "bf16": lambda _: BF16,
    "f16 operands": lambda _: F16_OPERANDS,
    "bf16 operands": lambda _: BF16_OPERANDS,
    "bf16 operands from 32 tokens": lambda tokens: BF16_OPERANDS if tokens >= LONG else F32,
    "tf32 but for one token": lambda tokens: TF32 if tokens > 1 else F32,
    "f16 operands of one token": lambda tokens: F16_OPERANDS if tokens == 1 else F32,
}
"""What a step is computed in, by its number of tokens."""

GGML = {
    "ggml": Attention(flash=False),
    "ggml, keys q8_0": Attention(flash=False, keys="q8_0", values="f16"),
    "ggml, flash": Attention(flash=True),
    "ggml, flash, cache q8_0": Attention(flash=True, keys="q8_0", values="q8_0"),
}
"""llama.cpp's ways."""


def steps_of(lengths: Sequence[int], *, n_vocab: int) -> tuple[Step, ...]:
    """Steps of so many tokens each, the same tokens for the same places."""
    tokens = [1, *((i * 7919) % (n_vocab - 20) + 20 for i in range(1, sum(lengths)))]
    ends = np.cumsum(lengths).tolist()
    return tuple(
        Step(tuple(tokens[end - n : end]), tuple(range(end - n, end))) for n, end in zip(lengths, ends, strict=True)
    )


# The reference, as any engine


@dataclass
class Engine(Knowing):
    """The reference as an engine that holds its weights rounded, and computes each phase in its own way.

    `parents` says which recorded values each was made of; `values` holds what faults changed: wrong and right.
    """

    held: str = "f32"
    compute: Callable[[int], Arithmetic] = COMPUTE["f32"]
    lengths: Sequence[int] = ()
    halves: bool = False
    parents: dict[Site, tuple[Site, ...]] = field(default_factory=dict, init=False)
    _made: dict[Value, tuple[Site, ...]] = field(default_factory=dict, init=False)

    def run(self, call: Call) -> Value:
        self.arithmetic = self.compute(self.lengths[call.step])
        if self.halves and call.op is rope and call.argument("pairing") == "interleaved":
            call = call.with_arguments(pairing="half")
        sources = [self._made[s] for s in call.sources if s is not None]
        parents = tuple(dict.fromkeys(site for of in sources for site in of))
        value = super().run(HeldCall.of(call, self.held))
        if call.point:
            site = Site(call.step, call.layer, call.point)
            self.parents[site] = parents
            parents = (site,)
        self._made[value] = parents
        return value


class InHalves(Weights):
    """The weights of a file whose Q and K are in Hugging Face's order of rows."""

    def __init__(self, weights: Weights, heads: Mapping[str, int]) -> None:
        super().__init__(weights._gguf, weights._prefix)
        self._heads = heads

    def layer(self, index: int) -> InHalves:
        return InHalves(super().layer(index), self._heads)

    def __getitem__(self, name: str) -> Weight:
        weight = super().__getitem__(name)
        heads = self._heads.get((self._prefix + name).split(".")[-2])
        return weight if heads is None else weight.reordered(by_halves(np.arange(weight.shape[0]), heads))


@dataclass(frozen=True)
class Run:
    """What the reference recorded: the trace, and of faults in it what they changed at which site."""

    trace: Trace
    changes: Mapping[Site, float]
    made: Mapping[str, Mapping[Site, float]]
    parents: Mapping[Site, tuple[Site, ...]]
    right: Mapping[Site, Array]


def by_reference(
    model: Model,
    steps: Sequence[Step],
    *,
    held: str = "f32",
    compute: str = "f32",
    halves: bool = False,
    faults: Sequence[Planted] = (),
) -> Run:
    """Run the reference, with faults if any are given; `halves`: in Hugging Face's order of head dimensions.

    The trace is in the order of the engine.
    """
    halves = halves and model.architecture in INTERLEAVED
    if halves:
        heads = {"attn_q": model.hp.n_head, "attn_k": model.hp.n_head_kv}
        own = {each.name: getattr(model, each.name) for each in fields(model)}
        model = OwnModel(**own | {"weights": InHalves(model.weights, heads)})
    lengths = [len(step.tokens) for step in steps]
    probe = Engine(F32, model, faults, held=held, compute=COMPUTE[compute], lengths=lengths, halves=halves)
    tensors: dict[Site, Array] = {}
    with np.errstate(all="ignore"):  # what follows a fault may overflow
        for index, _ in enumerate(model.forward(steps, probe)):
            tensors |= {Site.of_key(key, index): x.astype(np.float32) for key, x in probe.finish().items()}
    made = probe.made or {fault.hypothesis.id: probe.changes for fault in faults}
    trace = Trace.from_arrays(steps, tensors, engine={}, model={})
    return Run(trace, probe.changes, made, probe.parents, probe.right)


# transformers


class _Operands(TorchFunctionMode):
    """Rounds the operands of products, as tensor cores do."""

    PRODUCTS = (torch.nn.functional.linear, torch.matmul)  # the rotation's angles are no product of tensor cores

    def __init__(self, compute: Callable[[int], Arithmetic]) -> None:
        super().__init__()
        self.compute, self.tokens = compute, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = self.compute(self.tokens).products
        if func in self.PRODUCTS and kind is not None:
            args = (_rounded(args[0], kind), _rounded(args[1], kind), *args[2:])
        return func(*args, **(kwargs or {}))


def _rounded(x: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "tf32":
        return (x.contiguous().view(torch.int32) + (1 << 12) & ~0x1FFF).view(torch.float32)
    return x.to({"f16": torch.float16, "bf16": torch.bfloat16}[kind]).float()


@lru_cache(maxsize=2)
def _loaded(path: Path, dtype: torch.dtype) -> Any:
    torch.set_num_threads(1)
    return hugging_face_model(path, dtype)


def by_transformers(path: Path, steps: Sequence[Step], *, compute: str = "f32") -> Trace:
    """Run transformers on the weights of a file, step by step; 16 bits in PyTorch's dtype, and operands rounded."""
    model = _loaded(path, {"f16": torch.float16, "bf16": torch.bfloat16}.get(compute, torch.float32))
    operands = _Operands(COMPUTE["f32" if compute in ("f16", "bf16") else compute])
    tensors: dict[Site, Array] = {}
    name, past = _cache_name(model), None
    with torch.no_grad(), hooked(model, _taps(model, None)) as seen, operands:
        for index, step in enumerate(steps):
            operands.tokens = len(step.tokens)
            output = model(torch.tensor([step.tokens]), use_cache=True, **{name: past})
            tensors |= {Site.of_key(key, index): x.astype(np.float32) for key, x in seen.items()}
            seen.clear()
            past = getattr(output, name)
    if model.config.model_type in INTERLEAVED:
        tensors = {site: interleaved(x) if site.point in ROTATED else x for site, x in tensors.items()}
    return Trace.from_arrays(steps, tensors, engine={}, model={})


# Engines that are not Python


def by_llama_cpp(path: Path, steps: Sequence[Step], out: Path, *, compute: str) -> Trace:
    """Run llama.cpp, step by step."""
    first, *later = (step.tokens for step in steps)
    with LlamaCpp(path, threads=1, attention=GGML[compute]) as llama, TraceWriter(out, engine={}, model={}) as writer:
        capture(llama, first, writer, nodes=open_model(path).nodes, forced=later)
    return open_trace(out)


def by_c(path: Path, steps: Sequence[Step], build: Path, out: Path) -> Trace:
    """Run the engine of tests/engines/c: the first step, then greedily as many as there are."""
    tokens = ",".join(map(str, steps[0].tokens))
    command = [compile_engine(build), "--model", path, "--tokens", tokens, "--decode", str(len(steps) - 1)]
    subprocess.run([*map(str, command), "--dump", str(out)], check=True, capture_output=True)
    return open_trace(out)
