"""Hypotheses planted: the reference's traces with bugs."""

from __future__ import annotations

from collections.abc import Sequence

from builders.traces import MemoryWriter
from firstdiff.dumps import Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.model.arithmetic import F64, Arithmetic
from firstdiff.model.engine import Model

OF_GRAPHS = {
    "norm-rms": "gpt2",
    "norm-bias-missing": "gpt2",
    "gelu-wrong": "gpt2",
    "window-missing": "gemma3",
    "softcap-missing": "gemma2",
    "softcap-wrong": "gemma2",
    "sink-missing": "gpt-oss",
    "expert-missing": "olmoe",
    "expert-weights-not-normalised": "qwen3moe",
    "expert-weights-normalised": "olmoe",
}
"""Faults that no architecture of ours that is written by hand can have, and one of tests/data/architectures.json that
can."""


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
