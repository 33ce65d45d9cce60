"""Weights as engines hold them after loading: rounded to a narrower type, for the reference and as a file for others.

The rounding is PyTorch's, no hand of ours: float8 as ``torch.float8_e4m3fn``, a scale for each row.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from firstdiff.model.arithmetic import Arithmetic
from firstdiff.model.arithmetic import Array as Values
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

Floats = npt.NDArray[np.float32]
LARGEST_E4M3 = 448.0


def _dtype(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype).float()


def _fp8_by_row(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST_E4M3
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def _int8_by_row(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round().clamp(-127, 127) * scale


HELD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "f16": (_dtype(torch.float16), "all"),
    "bf16": (_dtype(torch.bfloat16), "all"),
    "f16, norms as they are": (_dtype(torch.float16), "matrices"),
    "bf16, norms as they are": (_dtype(torch.bfloat16), "matrices"),
    "fp8 e4m3 by row": (_fp8_by_row, "products"),
    "int8 by row": (_int8_by_row, "products"),
}
"""How weights are rounded, and which: all, the matrices, or the layers' products."""

ENDS = ("token_embd.weight", "output.weight")


def held(kind: str, name: str, x: Floats) -> Floats:
    """A tensor of a file as an engine holds it that rounds its weights to a kind (``f32``: as they are)."""
    if kind == "f32":
        return x
    rounding, which = HELD[kind]
    if name == "rope_freqs.weight" or (which != "all" and (x.ndim == 1 or (which == "products" and name in ENDS))):
        return x  # factors of frequencies are no weights of the network
    rounded: Floats = rounding(torch.from_numpy(np.array(x, np.float32))).numpy()
    return rounded


def file_of_held(path: Path, twin: Path, kind: str, out: Path) -> Path:
    """Write the weights of a model as they are held, in float32.

    Parameters
    ----------
    path
        The model.
    twin
        A file of the same model with every tensor in F32, whose values are replaced.
    """
    shutil.copy(twin, out)
    values = {
        t.name: held(kind, t.name, np.float32(gguf.dequantize(t.data, t.tensor_type)))
        for t in gguf.GGUFReader(path).tensors
    }
    for tensor in gguf.GGUFReader(out, "r+").tensors:
        tensor.data[...] = values.pop(tensor.name).reshape(tensor.data.shape)
    assert not values, f"{twin} lacks {list(values)}"
    return out


@dataclass(frozen=True, slots=True, eq=False)
class HeldCall(Call):
    """A call whose weights are rounded before they are used: after a fault has done to them what it does."""

    kind: str = "f32"

    @classmethod
    def of(cls, call: Call, kind: str) -> HeldCall:
        return cls(**{f.name: getattr(call, f.name) for f in fields(Call) if f.init}, kind=kind)

    def compute(self, arithmetic: Arithmetic) -> Values:
        if self.kind == "f32":
            return Call.compute(self, arithmetic)
        inputs = tuple(self._held(x) for x in self.inputs)
        attributes = {name: self._held(x) for name, x in self.attributes.items()}
        return Call.compute(replace(self, kind="f32", inputs=inputs, attributes=attributes), arithmetic)

    def _held(self, x: Any) -> Any:
        return replace(x, dense=held(self.kind, x.name, x.values())) if isinstance(x, Weight) else x
