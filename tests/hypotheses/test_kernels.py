"""Kernels that are right for some tokens, heads, keys or inputs: every way is planted, and found with its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.judging import judge
from builders.models import in_blocks, synthetic
from builders.traces import MemoryWriter
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.hypotheses.row_kernels import AROUND, BEHIND
from firstdiff.hypotheses.where import GATED
from firstdiff.model.arithmetic import F32, F64
from firstdiff.model.engine import Model, open_model
from firstdiff.verdict import Explanation

PROMPT = [1, *range(70, 110)]
LEFT_OVER = "what the layer before had there"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("kernels")
    return open_model(synthetic(folder, n_layer=3, n_embd=512, n_head=8, n_head_kv=2, head_dim=64, n_ff=768))


def explained(model: Model, bug: str, decode: int = 0, **values: Any) -> Explanation:
    """The one explanation of a fault with such values, at layer 1."""
    layer = None if TABLE[bug].outside_layers else 1
    writer = MemoryWriter()
    rounding = F32 if bug == "quantised-as-float" else F64  # what float32 does not hold an engine does not have
    planted = [Planted(TABLE[bug], layer, values)]
    record_planted(model, PROMPT, writer, arithmetic=rounding, decode=decode, planted=planted)
    (explanation,) = judge(model, writer.trace(arithmetic="f32")).explanations
    assert explanation.hypothesis == bug
    return explanation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "values", "says"),
    [
        ("online-softmax-rescale", {"keys": 1}, "key by key"),
        ("online-softmax-rescale", {"keys": 32}, "over 32 keys at a time"),
        ("heads-to-group", {"heads": 4, "of": 8, "end": "n_head / n_head_kv", "kept": LEFT_OVER}, "heads 4 to 7 hold"),
        ("heads-to-group", {"heads": 2, "of": 8, "end": "n_head_kv", "kept": "zeros"}, "heads 2 to 7 hold zeros"),
        ("heads-to-group", {"heads": 7, "of": 8, "end": "7", "kept": "zeros"}, "head 7 holds zeros"),
        ("decode-stride", {"threads": 16, "vector": 2}, "a stride of 16 threads"),
        ("decode-stride", {"threads": 8, "vector": 8}, "a vector of 8"),
        ("weight-view-offset", {"token": 9, "by": 64, "beyond": AROUND}, "from token 9 on, the norm's weight"),
        ("weight-view-offset", {"token": 0, "by": 511, "beyond": AROUND}, "the norm's weight read 511 elements"),
        ("weight-view-offset", {"token": 40, "by": 7, "beyond": BEHIND}, "lies behind it"),
        ("weight-view-offset", {"token": 32, "by": 32 * 512, "beyond": BEHIND}, "16384 elements further on"),
        ("half-block", {"block": 256, "half": "second", "counted": "twice"}, "the second half of each 256 inputs"),
        ("half-block", {"block": 32, "half": "first", "counted": "once"}, "the first half of each 32 inputs"),
        ("reduction-remainder", {"last": 32, "counted": "not at all"}, "the last 32 inputs are left out"),
        ("reduction-remainder", {"last": 128, "counted": "twice"}, "the last 128 inputs are counted twice"),
        ("cache-rounded", {"to": "f8_e5m2"}, "are rounded to float8 (e5m2)"),
        ("cache-rounded", {"to": "i8-row"}, "are rounded to int8 with one scale for each head of a token"),
        ("cache-clamped", {"bound": 0.5}, "are clamped at 0.5"),
        ("row-repeated", {"rows": 64, "row": "last"}, "all hold the value of the last one"),
        ("quantised-as-float", {"dtype": "f32", "bytes": 1024, "right": 2048}, "read as f32, rows of 1024 bytes"),
        ("quantised-as-float", {"dtype": "bf16", "bytes": 2048, "right": 2048}, "bf16, rows of the right length"),
    ],
)
def test_every_way_is_found_with_its_numbers(small: Model, bug: str, values: dict[str, Any], says: str) -> None:
    found = explained(small, bug, decode=1 if bug == "decode-stride" else 0, **values)
    assert found.attributes == values
    assert says in found.says


@pytest.mark.parametrize(("dtype", "stride"), [("f16", 288), ("f32", 2048), ("bf16", 1024)])
def test_a_quantised_embedding_read_as_floats_is_found(tmp_path: Path, dtype: str, stride: int) -> None:
    """Its numbers are absurd, infinite or none now and then: the rest tells."""
    model = open_model(in_blocks("Q4_0", tmp_path, n_layer=1, n_embd=512, n_head=8, n_head_kv=2, head_dim=64))
    found = explained(model, "quantised-as-float", dtype=dtype, bytes=stride, right=288)
    assert found.attributes == {"dtype": dtype, "bytes": stride, "right": 288}


def test_a_branch_that_is_lost_in_decode_is_one_fault(small: Model) -> None:
    """Zeros are not taken for the zeros of the layer before."""
    zero = TABLE["output-zero"]
    lost = replace(zero, where=GATED, change=lambda call, *rest: zero.change(call, *rest) if call.step else None)
    writer = MemoryWriter()
    record_planted(small, PROMPT, writer, arithmetic=F64, decode=2, planted=[Planted(lost)])
    (found,) = judge(small, writer.trace(arithmetic="f32")).explanations
    assert found.hypothesis == "output-zero"
    assert found.extent == "ffn_swiglu at every layer in steps of one token"


def test_positions_that_jump_in_the_middle_of_a_run_are_one_fault(small: Model) -> None:
    """Each step by itself would have all angles by a factor of its own."""
    off = TABLE["rope-offset"]
    jump = replace(off, change=lambda call, *rest: off.change(call, *rest) if call.step else None)
    writer = MemoryWriter()
    planted = [Planted(jump, 1, {"offset": 7})]
    record_planted(small, PROMPT, writer, arithmetic=F64, decode=3, planted=planted)
    (found,) = judge(small, writer.trace(arithmetic="f32")).explanations
    assert (found.hypothesis, found.attributes) == ("rope-offset", {"offset": 7})
    assert found.extent == "Qcur_rope and Kcur_rope at layer 1 in steps of one token"
    assert found.equals == ()
