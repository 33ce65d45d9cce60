"""transformers as a candidate: Hugging Face's layouts are found from the data, and no site diverges."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

import firstdiff.torch
from builders.judging import judge
from builders.models import SMOLLM2
from firstdiff.dumps import Trace
from firstdiff.judging.layouts import HALF
from firstdiff.model.engine import open_model

pytestmark = pytest.mark.smollm2

PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]


def recorded(dtype: torch.dtype) -> Trace:
    model = AutoModelForCausalLM.from_pretrained(
        str(SMOLLM2.parent), gguf_file=SMOLLM2.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    return firstdiff.torch.record(model, PROMPT, decode=4)


NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_transformers_is_aligned_without_an_option_and_has_no_diverging_site(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trace = recorded(dtype)
    silent = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace.sites()}, engine={"name": "theirs"}, model={})
    verdict = judge(open_model(SMOLLM2), silent)
    assert [s.site for s in verdict.diverging] == []
    assert verdict.coverage["agrees"] == verdict.coverage["sites"] == 2865
    assert set(verdict.layouts) == {"Qcur", "Kcur", "Qcur_rope", "Kcur_rope", "k_cache"}
    assert set(verdict.layouts.values()) == {HALF}
    assert verdict.arithmetic["linear"] == NAMES[dtype]
