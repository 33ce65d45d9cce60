"""llama.cpp judged by its own graph: every node of every architecture is right, and what is not is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.every_architecture import ARCHITECTURES, ENCODER_AND_DECODER, toy
from builders.models import MIXED, SMOLLM2, quantised, synthetic
from builders.tiny_models import tiny
from firstdiff.engines.llamacpp import PLAIN, Attention
from firstdiff.engines.llamacpp_graph import Ran
from firstdiff.errors import CaptureError
from firstdiff.judging.nodes import NodeJudge, sites_of
from firstdiff.model.arithmetic import GGML_CPU
from firstdiff.model.errors import ModelError
from firstdiff.model.graph import table
from firstdiff.model.graph.nodes import Node, Tensor
from firstdiff.model.quants import BY_NAME
from firstdiff.runs.graph_certificate import NO_LOGITS, certify_graph
from firstdiff.runs.prompt import Input
from firstdiff.runs.tiers import BELIEVED
from firstdiff.verdict import Status, Verdict

pytestmark = pytest.mark.llama

PROMPT = (3, 5, 9, 11, 20, 40, 7, 8, 21)


def certified(path: Path, out: Path, *, attention: Attention = PLAIN, tokens: tuple[int, ...] = PROMPT) -> Verdict:
    return certify_graph(path, Input(tokens=tokens), out, decode=2, threads=1, attention=attention)


def assert_every_node_agrees(verdict: Verdict) -> None:
    assert [(str(s.site), s.op, s.local_error, s.reason) for s in verdict.sites if s.status is not Status.AGREES] == []
    assert verdict.verdict == "agrees"
    generates = any(s.point == "result_output" for s in verdict.sites)
    assert verdict.notes == ((BELIEVED,) if generates else (BELIEVED, NO_LOGITS))  # recording changed no logit
    assert len({s.site for s in verdict.sites}) == len(verdict.sites)


@pytest.mark.sweep
@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if a not in ENCODER_AND_DECODER])
def test_every_node_of_every_architecture_agrees(tmp_path: Path, arch: str) -> None:
    assert_every_node_agrees(certified(toy(arch, tmp_path), tmp_path / "out"))


COVERING = (
    *("rwkv6", "rwkv6qwen2", "rwkv7", "mamba2", "gemma3", "gemma3n"),
    *("smallthinker", "qwen4exp", "glm5-next", "deepseek4", "gpt-oss", "apertus"),
)
"""Architectures that run every operation between them, but flash attention."""


def test_every_operation_that_is_written_is_right_in_some_architecture(tmp_path: Path) -> None:
    met = set()
    for arch in COVERING:
        verdict = certified(toy(arch, tmp_path), tmp_path / "out")
        assert_every_node_agrees(verdict)
        met |= {s.op.upper() for s in verdict.sites}
    assert met == table.KERNELS.keys() - {"FLASH_ATTN_EXT"}


@pytest.mark.parametrize("arch", ["gemma3", "gpt-oss", "mamba2", "deepseek2"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_every_node_agrees_with_quantised_weights(tmp_path: Path, arch: str, kind: str) -> None:
    path = quantised(toy(arch, tmp_path), MIXED.get(kind, 15), tmp_path / "quantised.gguf", pure=False)
    assert_every_node_agrees(certified(path, tmp_path / "out"))


@pytest.mark.parametrize("kv", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("flash", [False, True])
def test_every_node_agrees_with_any_cache(tmp_path: Path, *, flash: bool, kv: str) -> None:
    verdict = certified(toy("gemma3", tmp_path), tmp_path / "out", attention=Attention.of(flash=flash, kv=kv))
    assert_every_node_agrees(verdict)
    assert ("flash_attn_ext" in {s.op for s in verdict.sites}) == flash


@pytest.mark.smollm2
@pytest.mark.parametrize("attention", [PLAIN, Attention.of(flash=True, kv="f16"), Attention.of(flash=True, kv="q8_0")])
def test_every_node_of_a_real_model_agrees(tmp_path: Path, attention: Attention) -> None:
    tokens = tuple((i * 7919) % 49000 + 20 for i in range(70))  # from 64 on, flash attention works on tiles
    assert_every_node_agrees(certified(SMOLLM2, tmp_path / "out", attention=attention, tokens=tokens))


def test_nodes_go_by_the_names_that_others_have(tmp_path: Path) -> None:
    verdict = certified(tiny("qwen3", tmp_path), tmp_path / "out")
    points = {s.point for s in verdict.sites if s.layer == 1}
    usual = {"attn_norm", "Qcur", "Kcur", "Vcur", "Qcur_normed", "Qcur_rope", "kq", "kq_soft_max", "kqv", "kqv_out"}
    assert points >= usual | {
        "attn_output",
        "ffn_inp",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_swiglu",
        "ffn_out",
        "l_out",
    }
    assert {s.point for s in verdict.sites if s.layer is None} >= {"embd", "result_norm", "result_output"}


# Faults


def spoilt(monkeypatch: pytest.MonkeyPatch, which: Callable[[Ran], bool], by: Callable[[Ran], Ran]) -> None:
    """Have llama.cpp seem to go wrong at some nodes."""
    visit = NodeJudge.visit
    monkeypatch.setattr(NodeJudge, "visit", lambda self, ran: visit(self, by(ran) if which(ran) else ran))


@pytest.mark.parametrize("op", ["MUL_MAT", "ROPE", "SOFT_MAX", "RMS_NORM", "SET_ROWS", "SWIGLU", "MUL_MAT_ID", "ADD"])
def test_a_node_that_is_off_by_a_hundredth_is_the_one_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    met: list[str] = []

    def second(ran: Ran) -> bool:
        if ran.node.op == op:
            met.append(ran.node.tensor.name)
        return len(met) == 2 and ran.node.op == op

    spoilt(monkeypatch, second, lambda ran: replace(ran, output=ran.output * np.float32(1.01)))
    verdict = certified(tiny("qwen3moe", tmp_path, n_layer=2), tmp_path / "out")
    (only,) = verdict.diverging
    assert (verdict.verdict, verdict.exit_code, only.op) == ("diverges", 1, op.lower())
    assert only.local_error == pytest.approx(0.01, rel=0.01)
    assert only.worst is not None


def test_another_choice_of_experts_diverges_and_another_order_of_equal_ones_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(
        monkeypatch, lambda ran: ran.node.op == "ARGSORT", lambda ran: replace(ran, output=ran.output[..., ::-1].copy())
    )
    verdict = certified(tiny("qwen3moe", tmp_path, n_layer=2), tmp_path / "out")
    assert {s.op for s in verdict.diverging} == {"argsort"}


def test_an_operation_that_is_not_known_is_named_and_passes_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Mapping[str, table.Kernel] = {op: kernel for op, kernel in table.KERNELS.items() if op != "ROPE"}
    monkeypatch.setattr(table, "KERNELS", known)
    verdict = certified(tiny("qwen3", tmp_path, n_layer=2), tmp_path / "out")
    left = [s for s in verdict.sites if s.status is Status.NOT_COMPARABLE]
    assert {(s.op, s.reason) for s in left} == {("rope", "firstdiff does not compute llama.cpp's operation ROPE yet")}
    assert len(left) == 2 * 2 * 3  # queries and keys of two layers, in three steps


# What is refused


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="an encoder and a decoder"):
        certified(toy("t5", tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("tokens", "why"),
    [((), "no token to run"), ((5, 9999), "token id 9999 is outside the vocabulary"), ((5,) * 600, "do not fit")],
)
def test_tokens_that_cannot_be_run_are_refused(tmp_path: Path, tokens: tuple[int, ...], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        certified(synthetic(tmp_path, n_layer=1, n_ctx=512), tmp_path / "out", tokens=tokens)


# Names


def node(name: str, op: str, *reads: str) -> Node:
    def tensor(of: str) -> Tensor:
        return Tensor(of, BY_NAME["F32"], (1, 1, 1, 1), (4, 4, 4, 4))

    return Node(op, tensor(name), tuple(tensor(of) for of in reads), (0,) * 16)


def test_every_node_has_a_site_of_its_own() -> None:
    nodes = [
        node("norm", "RMS_NORM", "embd"),
        node("attn_norm-0", "MUL", "norm", "blk.0.attn_norm.weight"),
        node("Qcur-0", "MUL_MAT", "blk.0.attn_q.weight"),
        node("Qcur-0", "ADD", "Qcur-0", "blk.0.attn_q.bias"),
        node("Qcur-0", "ADD", "Qcur-0"),
        node("Qcur-0", "ROPE", "Qcur-0"),
        node("node_12", "MUL_MAT", "blk.0.attn_output.weight"),
        node("node_13", "ADD", "node_12"),
        node("l_out-0", "ADD", "node_13"),
        node("", "SCALE", "l_out-0"),
        node("result\n/norm-07@2", "MUL", "x"),
        node("result_output", "MUL_MAT", "output.weight"),
    ]
    assert list(map(str, sites_of(1, nodes))) == [
        "norm-0@1",
        "attn_norm-0@1",
        "Qcur_mul_mat-0@1",
        "Qcur-0@1",
        "Qcur_2-0@1",
        "Qcur_rope-0@1",
        "attn_output-0@1",
        "add-0@1",
        "l_out-0@1",
        "scale@1",
        "result__norm-07_2@1",
        "result_output@1",
    ]


# What is not a plain number, and long prompts


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_long_caches_are_attended_to_as_threads_divide_them(tmp_path: Path, threads: int) -> None:
    tokens = tuple((i * 7919) % 300 + 20 for i in range(300))
    verdict = certify_graph(
        tiny("gemma3", tmp_path, n_layer=2, keys={"attention.sliding_window": 600}),
        Input(tokens=tokens),
        tmp_path / "out",
        decode=2,
        threads=threads,
        attention=Attention.of(flash=True, kv="f16"),
    )
    assert_every_node_agrees(verdict)
    worst = max(s.local_error or 0 for s in verdict.sites if s.op == "flash_attn_ext" and s.step)
    assert worst < 5e-4


@pytest.mark.parametrize("arch", ["mamba2", "falcon-h1", "qwen3next", "rwkv7"])
def test_states_that_are_carried_far_agree(tmp_path: Path, arch: str) -> None:
    tokens = tuple((i * 7919) % 100 + 20 for i in range(240))
    verdict = certify_graph(
        toy(arch, tmp_path), Input(tokens=tokens), tmp_path / "out", decode=1, threads=1, attention=PLAIN
    )
    assert_every_node_agrees(verdict)


def test_a_mask_that_hides_nothing_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(ran: Ran) -> Ran:
        masked = ran.inputs[1]
        assert isinstance(masked, np.ndarray)
        return replace(ran, output=np.where(ran.output == 0, np.float32(0.1), ran.output))

    spoilt(monkeypatch, lambda ran: ran.node.op == "SOFT_MAX" and ran.node.tensor.name.endswith("-1"), unmasked)
    verdict = certified(tiny("qwen3", tmp_path, n_layer=2), tmp_path / "out")
    assert {str(s.site) for s in verdict.diverging} == {"kq_soft_max-1", "kq_soft_max-1@1", "kq_soft_max-1@2"}


def ran_of(op: str, output: object, *inputs: object, params: tuple[int, ...] = (0,) * 16) -> Ran:
    arrays = [np.asarray(x).reshape((1,) * (4 - np.ndim(x)) + np.shape(x)) for x in (output, *inputs)]

    def tensor(x: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        kind = BY_NAME["F32" if x.dtype.kind == "f" else "I32"]
        return Tensor("x", kind, x.shape, x.strides)

    made = Node(op, tensor(arrays[0]), tuple(map(tensor, arrays[1:])), params)
    return Ran(made, tuple(arrays[1:]), arrays[0])


HIDDEN, NAN = np.float32(-np.inf), np.float32(np.nan)


@pytest.mark.parametrize(
    ("ran", "status"),
    [
        (ran_of("ADD", np.float32([1, HIDDEN]), np.float32([1, 1]), np.float32([0, HIDDEN])), Status.AGREES),
        (ran_of("ADD", np.float32([1, 1]), np.float32([1, 1]), np.float32([0, HIDDEN])), Status.DIVERGES),
        (ran_of("ADD", np.float32([1, NAN]), np.float32([1, 1]), np.float32([0, HIDDEN])), Status.DIVERGES),
        (ran_of("ADD", np.float32([1, NAN]), np.float32([1, NAN]), np.float32([0, 0])), Status.AGREES),
        (ran_of("RELU", np.float32([1, 0]), np.float32([1, NAN])), Status.NOT_COMPARABLE),
        (ran_of("TOP_K", np.int32([2, 0]), np.float32([3, 1, 3])), Status.AGREES),  # in an order that is left open
        (ran_of("TOP_K", np.int32([0, 0]), np.float32([3, 1, 3])), Status.DIVERGES),
        (ran_of("TOP_K", np.int32([0, 7]), np.float32([3, 1, 3])), Status.DIVERGES),
        (ran_of("ARGSORT", np.int32([1, 2, 0]), np.float32([3, 1, 3])), Status.AGREES),  # equal numbers
        (ran_of("ARGSORT", np.int32([0, 2, 1]), np.float32([3, 1, 3])), Status.DIVERGES),
        (ran_of("ADD", np.float32([[1, 1]]), np.float32([[1, 1]]), np.float32([1, 1, 1])), Status.NOT_COMPARABLE),
        (ran_of("ROPE", np.float32([[1, 1]]), np.float32([[1, 1]]), np.int32([0]), params=(0, 2, 24) + (0,) * 13),
         Status.NOT_COMPARABLE),
    ],
)  # fmt: skip
def test_what_is_no_plain_number_is_judged_too(ran: Ran, status: Status) -> None:
    judge = NodeJudge(GGML_CPU)
    judge.visit(ran)
    judge.finish()
    assert [s.status for s in judge.sites] == [status]


def test_the_floor_of_flash_attention_is_finite_whatever_it_reads() -> None:
    q = np.full((1, 1, 1, 32), 3e38, np.float32)
    params = (int(np.float32(1).view(np.int32)),) + (0,) * 15
    judge = NodeJudge(GGML_CPU)
    for bad in (q, q * NAN):
        judge.visit(ran_of("FLASH_ATTN_EXT", np.full((1, 1, 1, 32), 7, np.float32), bad, q, q, params=params))
    judge.finish()
    assert all(s.status is not Status.AGREES for s in judge.sites)
