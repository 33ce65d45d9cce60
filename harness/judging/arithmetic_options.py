"""Which arithmetics are tried for which group of operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from firstdiff.model.arithmetic import (
    BF16,
    BF16_OPERANDS,
    F16,
    F16_OPERANDS,
    F32,
    GGML,
    GGML_CPU,
    HELD,
    TF32,
    TF32_CUT,
    Arithmetic,
    ggml_cpu,
)
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.graph.elementwise import geglu, gelu
from firstdiff.model.holding import ELEMENTS
from firstdiff.model.operations import Operation, add, embed, layer_norm, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call
from firstdiff.model.rounding import BLOCK, QUANTISED

GROUPS: dict[Operation, str] = {
    linear: "linear", rms_norm: "norm", layer_norm: "norm", embed: "embedding", scores: "attention",
    attend: "attention", rope: "results", soft_max: "results", swiglu: "results", geglu: "results", gelu: "results",
    add: "results",
}  # fmt: skip
"""The group that each operation is judged with; of the cache, see :func:`group_of`."""

CACHES = ("f16", "bf16", "q8_0", "q4_0", "q8_0-plain", "q4_0-plain")
F16_SUMS = replace(F32, name="f16-sums", products="f16-sums")
_IN_TURN = {f"{a.name}": a for kind in CACHES[:4] for a in (ggml_cpu(flash=1, keys=kind, values=kind),)}
_PLAIN = {a.name: a for kind in CACHES[1:] for a in (ggml_cpu(keys=kind, values=kind),)}
_STORED = {"bf16": BF16, "f16": F16}

_CACHED = {"f32": F32, **{kind: replace(F32, name=kind, keys=kind, values=kind) for kind in CACHES}}

OPTIONS: dict[str, Mapping[str, Arithmetic]] = {
    "linear": {
        "f32": F32, GGML: GGML_CPU, **_STORED, "tf32": TF32, "tf32-truncated": TF32_CUT, "f16-operands": F16_OPERANDS,
        "bf16-operands": BF16_OPERANDS, "f16-sums": F16_SUMS,
    },
    "norm": {"f32": F32, **_STORED},
    "attention": {
        "f32": F32, GGML: GGML_CPU, **_STORED, "tf32": TF32, "tf32-truncated": TF32_CUT, "f16-operands": F16_OPERANDS,
        "bf16-operands": BF16_OPERANDS, **_PLAIN, **_IN_TURN,
    },
    "keys": _CACHED,
    "values": _CACHED,
    "results": {"f32": F32, **_STORED, GGML: GGML_CPU},
    "embedding": {"f32": F32},
}  # fmt: skip
"""What is tried for each group, by name; of several that say the same, the first is taken."""

BASES = ("tf32", "tf32-truncated", "f16-operands", "bf16-operands", "bf16", "f16")
"""Arithmetics of products that weights in any dtype go with, beside float32."""


@lru_cache(maxsize=512)
def held_option(base: str, kind: str) -> Arithmetic:
    """An option for products or norms with the weights held in a kind; its name is ``f32+held=i8-row``."""
    plain = OPTIONS["linear"][base]
    changes: dict[str, Any] = {part: kind for part in HELD if kind in ELEMENTS or part != "norms"}
    return replace(plain, name=f"{base}+held={kind}", **changes)


def option(group: str, name: str) -> Arithmetic:
    """An option of a group by its name."""
    base, _, kind = name.partition("+held=")
    return held_option(base, kind) if kind else OPTIONS[group][name]


def group_of(call: Call) -> str | None:
    """The group of a call; None for an operation that rounds nothing."""
    if call.op is append:
        return "values" if call.argument("values") else "keys"
    return GROUPS.get(call.op)


def possible(group: str, calls: tuple[Call, ...], *, flash: bool) -> Iterator[tuple[str, Arithmetic]]:
    """The options that can be tried: heads that are no whole blocks were not quantised."""
    held = _HELD.get(calls[0].op)
    dim = BLOCK if held is None else calls[0].argument(held).shape[-1]
    for name, arithmetic in OPTIONS[group].items():
        quantised = not {arithmetic.keys, arithmetic.values}.isdisjoint(QUANTISED)
        if (flash or not arithmetic.flash) and not (quantised and dim % BLOCK):
            yield name, arithmetic


_HELD: dict[Operation, str] = {append: "new", scores: "keys", attend: "values"}
"""Operands that a cache holds."""
