"""Recordings from PyTorch: the points of a layer as they are computed, and logits that recording leaves as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from builders.logits import CACHE
from firstdiff.dumps import Site, Trace

ATTENTION = [
    *("attn_norm", "Qcur", "Kcur", "Vcur", "Qcur_rope", "Kcur_rope", "k_cache", "v_cache"),
    *("kq", "kq_soft_max", "kqv_out", "attn_out", "ffn_inp"),
]
FEED_FORWARD = ["ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out", "l_out"]


def points(trace: Trace, layer: int | None, step: int = 0) -> list[str]:
    return [site.point for site in trace if (site.layer, site.step) == (layer, step)]


def eager(model: Any, trace: Trace) -> list[np.ndarray]:
    """Return the logits [T, n_vocab] of the trace's steps from the model's own eager attention, without hooks."""
    before, past, logits = model.config._attn_implementation, None, []
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for step in trace.steps:
            out = model(torch.tensor([step.tokens]), **{CACHE: past}, use_cache=True)
            past = out[CACHE]
            logits.append(out.logits[0].double().numpy())  # exact, and numpy has no bfloat16
    model.set_attn_implementation(before)
    return logits


def assert_logits_are_unchanged(model: Any, trace: Trace) -> None:
    for step, logits in enumerate(eager(model, trace)):
        np.testing.assert_array_equal(trace[Site(step, None, "result_output")], logits)
