"""A candidate's own weights against the file's: equal within their rounding, or how they are wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.formats.safetensors import read_header
from firstdiff.dumps.tensors import Stored
from firstdiff.model.engine import Model
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.weights import Weight
from firstdiff.preflight.weight_faults import explained, fault_of
from firstdiff.preflight.weight_readers import Reader, readers
from firstdiff.preflight.weight_statistics import Statistics, numbers, parts, statistics_of

FILE = "weights.safetensors"
"""Where in a trace's folder a candidate puts its weights."""

HUGGING_FACE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

# Relative error of one rounding to the stored type, doubled for engines that cut off in place of rounding.
ROUNDING = {"bf16": 2.0**-7, "f16": 2.0**-10}
SMALLEST = {"bf16": 0.0, "f16": 2.0**-23}  # f16 has no smaller steps
FLOAT32 = 1e-6
"""Of the largest value of a tensor: scale times code plus minimum, in another order."""

PART = 1 << 20  # values looked at together


@dataclass(frozen=True, slots=True)
class WeightCheck:
    """One tensor of a candidate against the file's.

    Parameters
    ----------
    name, given
        The file's name and the candidate's.
    says
        ``agrees``, possibly within a rounding, or what is wrong.
    hypothesis
        The hypothesis that names it, where one does.
    agrees
        Whether its values are the file's.
    theirs, ours
        Statistics of both.
    """

    name: str
    given: str
    says: str
    agrees: bool
    hypothesis: str | None
    shape: tuple[int, ...]
    theirs: Statistics
    ours: Statistics


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """Every tensor that a candidate dumped; `unknown` are names that the file's tensors do not have."""

    path: Path
    of: int
    tensors: tuple[WeightCheck, ...]
    unknown: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        return bool(self.tensors) and all(t.agrees for t in self.tensors)

    @property
    def sentence(self) -> str:
        """What a report says: ``agrees``, or the first wrong tensor."""
        if not self.tensors:
            return f"none of the {len(self.unknown)} names in {self.path.name} is known"
        wrong = [t for t in self.tensors if not t.agrees]
        if wrong:
            others = f" (and {len(wrong) - 1} more of {len(self.tensors)} tensors)" if len(wrong) > 1 else ""
            return f"{wrong[0].name} {wrong[0].says}{others}"
        return "agrees"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agrees": self.agrees,
            "says": self.sentence,
            "compared": len(self.tensors),
            "of": self.of,
            "unknown": list(self.unknown),
            "tensors": [asdict(t) for t in self.tensors],
        }


def check_weights(model: Model, path: Path) -> WeightsCheck:
    """Compare the weights in a safetensors file with the model's.

    Parameters
    ----------
    model
        The model.
    path
        The candidate's weights, under GGUF's names or Hugging Face's.

    Raises
    ------
    TraceError
        For a file that is damaged or no safetensors file.
    """
    stored, _ = read_header(path)
    checks, unknown, calls = [], [], readers(model)
    for given, tensor in stored.items():
        name = gguf_name(given, model)
        if name is None or model.gguf.tensors[name].type.name not in SUPPORTED:
            unknown.append(given)
        else:
            checks.append(_check(model, model.weights[name], calls.get(name, ()), given, tensor))
    order = {name: i for i, name in enumerate(model.gguf.tensors)}
    checks.sort(key=lambda c: order[c.name])
    return WeightsCheck(path, len(order), tuple(checks), tuple(unknown))


def gguf_name(given: str, model: Model) -> str | None:
    """The file's name of a candidate's tensor; None where there is none. A tied output is the embedding."""
    name = given
    stem, dot, kind = given.rpartition(".")
    stem, kind = (stem, kind) if dot and kind in ("weight", "bias") else (given, "weight")
    if found := re.fullmatch(r"(?:model\.)?layers\.([0-9]{1,6})\.(.+)", stem):
        name = f"blk.{found[1]}.{HUGGING_FACE.get(found[2], found[2])}.{kind}"
    elif stem in OUTSIDE:
        name = f"{OUTSIDE[stem]}.{kind}"
    elif name not in model.gguf.tensors:
        name = f"{stem}.{kind}"
    if name == "output.weight" and name not in model.gguf.tensors:
        name = "token_embd.weight"
    return name if name in model.gguf.tensors else None


def _check(model: Model, weight: Weight, calls: Sequence[Reader], given: str, tensor: Stored) -> WeightCheck:
    theirs = tensor.read()
    flat = theirs.reshape(-1)
    ours = statistics_of(part for _, part in parts(weight))
    own = statistics_of(flat[i : i + PART] for i in range(0, flat.size, PART))
    says, hypothesis, agrees = None, None, False
    if own.not_finite and not ours.not_finite:
        says = f"has {own.not_finite:,} values that are NaN or infinite, where the file has none"
        if (fault := explained(model, weight, calls, theirs)) is not None:
            says, hypothesis = f"{says}: it {fault.says}", fault.hypothesis
    elif tensor.shape == weight.shape:
        level = _level(weight, flat, tensor.dtype)
        if level is not None:
            agrees, says = True, level
    if says is None:
        fault = fault_of(model, weight, calls, theirs)
        says, hypothesis = fault.says, fault.hypothesis
    return WeightCheck(weight.name, given, says, agrees, hypothesis, tensor.shape, own, ours)


def _level(weight: Weight, flat: npt.NDArray[Any], dtype: str) -> str | None:
    """``agrees``, with the rounding that it takes; None where no rounding explains the difference."""
    rounded = dtype if dtype in ROUNDING else _rounded(flat)
    exact, close = True, True
    for place, part in parts(weight):
        theirs, ours = flat[place].astype(np.float64), part.reshape(-1).astype(np.float64)
        off = np.abs(theirs - ours)
        if not off.any():
            continue
        exact = False
        close = close and bool((off <= FLOAT32 * np.abs(ours).max()).all())
        if rounded is None and not close:
            return None
        if (
            rounded is not None
            and not (off <= ROUNDING[rounded] * np.abs(ours) + SMALLEST[rounded]).all()
            and not close
        ):
            return None
    if exact:
        return "agrees"
    return "agrees within float32 rounding" if close else f"agrees within {rounded} rounding"


def _rounded(flat: npt.NDArray[Any]) -> str | None:
    """The narrower type that float32 values were rounded to: their last bits show it."""
    if flat.dtype != np.float32 or not flat.size:
        return None
    slices = [flat[i : i + PART] for i in range(0, flat.size, PART)]
    if not any((np.ascontiguousarray(part).view(np.uint32) & 0xFFFF).any() for part in slices):
        return "bf16"
    with np.errstate(over="ignore"):
        return "f16" if all(map(_is_half, slices)) else None


def _is_half(flat: npt.NDArray[Any]) -> bool:
    return bool((flat.astype(np.float16).astype(np.float32) == flat).all())


def describe(check: WeightsCheck) -> str:
    """Every tensor with both statistics, the candidate's below the file's."""
    width = max((len(t.name) for t in check.tensors), default=4)
    lines = [f"{'name':{width}} {'':9} {'rms':>11} {'min':>11} {'max':>11} {'mean':>11}"]
    for t in check.tensors:
        lines.append(f"{t.name:{width}} file      {numbers(t.ours)}")
        lines.append(f"{'':{width}} candidate {numbers(t.theirs)}  {t.says}")
    if check.unknown:
        lines.append(f"Not compared, of no known name: {', '.join(check.unknown[:5])}{' …' * (len(check.unknown) > 5)}")  # noqa: PLR2004
    wrong = sum(not t.agrees for t in check.tensors)
    lines.append(f"{len(check.tensors)} of the file's {check.of} tensors compared, {wrong} wrong.")
    return "\n".join(lines)
