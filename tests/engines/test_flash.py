"""llama.cpp with flash attention on and off and every type of KV cache: emulated, and no site diverges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.command_line import Command, assert_refused
from builders.engines import recorded_by_llama_cpp
from builders.judging import judge, replayed
from builders.models import SMOLLM2, synthetic
from firstdiff.dumps import Site, Trace, open_trace
from firstdiff.engines.llamacpp import Attention
from firstdiff.judging import floors
from firstdiff.model.arithmetic import Arithmetic, arithmetic_named, ggml_cpu
from firstdiff.model.engine import Model, open_model
from firstdiff.model.rounding import ROUNDINGS, turn
from firstdiff.verdict import SiteVerdict, Status

EVERY = [Attention.of(flash=flash, kv=kv) for flash in (False, True) for kv in ("f16", "q8_0", "bf16", "q4_0")]
NAMES = [attention.arithmetic().name for attention in EVERY]
TYPES = {"f16": np.float16}


def prompt(length: int) -> list[int]:
    return [(i * 7919) % 49000 + 20 for i in range(length)]


def agreeing(model: Model, trace: Trace, arithmetic: Arithmetic) -> list[SiteVerdict]:
    """The sites that were judged: all that llama.cpp makes, and every one agrees."""
    sites = [s for s in replayed(model, trace, arithmetic) if s.status is not Status.NOT_RECORDED]
    assert [(s.site, s.local_error) for s in sites if s.status is not Status.AGREES] == []
    hidden = 2 * model.hp.n_layer * len(trace.steps) if arithmetic.flash else 0  # kq and kq_soft_max
    assert len(sites) == (19 * model.hp.n_layer + 3) * len(trace.steps) - hidden == len(trace.sites())
    return sites


def worst(sites: list[SiteVerdict], of: Callable[[SiteVerdict], bool]) -> float:
    return max(s.local_error or 0.0 for s in sites if of(s))


@pytest.mark.llama
@pytest.mark.smollm2
@pytest.mark.parametrize("attention", EVERY, ids=NAMES)
@pytest.mark.parametrize("length", [1, 2, 33])
def test_smollm2_agrees_with_every_option(tmp_path: Path, attention: Attention, length: int) -> None:
    trace, changed = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", prompt(length), decode=2, attention=attention)
    arithmetic = attention.arithmetic()
    assert changed == 0
    sites = agreeing(open_model(SMOLLM2), trace, arithmetic)
    assert worst(sites, lambda s: s.op == "append") == 0  # to the bit
    assert worst(sites, lambda s: not s.segment) <= 1e-6
    if arithmetic.flash:  # the measurements of floors.FLASH_F16, and of what is summed in float32
        assert worst(sites, lambda s: bool(s.segment)) < (3e-4 if arithmetic.values == "f16" else 3e-6)


@pytest.mark.llama
@pytest.mark.parametrize(("length", "threads"), [(70, 1), (600, 1), (600, 2)])
def test_flash_attention_of_long_prompts_works_on_tiles_and_then_in_chunks(
    tmp_path: Path, length: int, threads: int
) -> None:
    attention = Attention.of(flash=True, kv="f16")
    path = synthetic(tmp_path, n_layer=3, n_vocab=49152, n_ctx=1024)
    trace, _ = recorded_by_llama_cpp(
        path, tmp_path / "trace", prompt(length), decode=2, threads=threads, attention=attention
    )
    sites = agreeing(open_model(path), trace, attention.arithmetic(threads))
    assert worst(sites, lambda s: s.point == "kqv_out" and s.step == 0) < 3e-6  # tiles are float32 throughout
    assert 3e-6 < worst(sites, lambda s: s.point == "kqv_out" and s.step > 0) < 3e-4


SHAPES = {
    "odd heads of 32": {"n_embd": 288, "n_head": 9, "n_head_kv": 3, "head_dim": 32, "n_ff": 544},
    "heads of 64": {"n_head": 4, "n_head_kv": 4, "head_dim": 64},
    "heads of 96": {"n_head": 4, "n_head_kv": 2, "head_dim": 96},
    "heads of 128": {"n_head": 4, "n_head_kv": 2, "head_dim": 128},
}


@pytest.mark.llama
@pytest.mark.parametrize("attention", EVERY, ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_agrees_with_every_option(tmp_path: Path, attention: Attention, shape: dict[str, int]) -> None:
    path = synthetic(tmp_path, n_layer=3, **shape)
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "trace", [1, *range(260, 290)], decode=2, attention=attention)
    agreeing(open_model(path), trace, attention.arithmetic())


@pytest.mark.llama
@pytest.mark.smollm2
@pytest.mark.parametrize("attention", [a for a in EVERY if a.keys in ("q8_0", "q4_0")], ids=str)
def test_a_cache_recorded_from_llama_cpp_is_what_was_stored_before_turned_back(
    tmp_path: Path, attention: Attention
) -> None:
    trace, _ = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", prompt(5), decode=1, attention=attention)
    key, cached = trace[Site(0, 3, "Kcur_rope")], trace[Site(0, 3, "k_cache")]
    stored = ROUNDINGS[attention.keys](turn(key, 64))
    np.testing.assert_array_equal(cached, turn(stored, 64))
    np.testing.assert_array_equal(trace[Site(1, 3, "k_cache")][:5], cached)
    plain = ROUNDINGS[attention.keys](key)
    assert np.abs(cached - plain).max() > 1e-3  # rounding in another basis is another rounding


def test_without_flash_attention_a_quantised_cache_is_the_keys_alone() -> None:
    assert Attention.of(flash=False, kv="q8_0") == Attention(flash=False, keys="q8_0", values="f16")
    assert Attention.of(flash=False, kv="bf16").values == "bf16"
    assert Attention.of(flash=True, kv="q4_0").values == "q4_0"


@pytest.mark.llama
@pytest.mark.smollm2
@pytest.mark.parametrize("flash", [True, False])
def test_a_fault_shows_with_flash_attention_and_a_quantised_cache(tmp_path: Path, *, flash: bool) -> None:
    attention = Attention.of(flash=flash, kv="q8_0")
    trace, _ = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", prompt(9), decode=1, attention=attention)
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    tensors[Site(0, 7, "kqv_out")][4, 100:164] *= 1 + 1e-3  # one head of one token
    tensors[Site(1, 9, "k_cache")][3, 1, 5] *= 1.01
    wrong = Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={})
    verdict = judge(open_model(SMOLLM2), wrong)
    reader = "kqv_out-9@1" if flash else "kq-9@1"  # what was made from the numbers before they were changed
    assert [str(s.site) for s in verdict.diverging] == ["kqv_out-7", "attn_out-7", "k_cache-9@1", reader]
    assert verdict.diverging[0].floor is not None
    assert verdict.diverging[0].floor < 5e-5


@pytest.mark.llama
def test_the_command_line_records_and_judges_with_options(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    firstdiff, path = Command(capfd), synthetic(tmp_path, n_layer=2, n_head=4, n_head_kv=2, head_dim=64)
    common = ("--tokens", "1,70,71,72", "--decode", "1", "--flash-attention", "--kv", "q8_0")
    assert firstdiff("record", path, *common, "--out", "trace").code == 0
    engine = open_trace(tmp_path / "trace").engine
    assert engine["arithmetic"] == "ggml-cpu+flash+kv=q8_0"
    assert engine["options"] == {"threads": 1, "flash_attention": True, "kv": "q8_0", "repacked_weights": False}
    assert firstdiff("run", path, "--candidate", "trace", "--out", "again").code == 0
    assert firstdiff("run", path, *common, "--out", "run").code == 0
    ran = firstdiff("run", path, "--tokens", "1,70", "--kv", "q8_0", "--out", "keys")
    assert ran.code == 0
    assert open_trace(tmp_path / "keys" / "llama.cpp").engine["options"]["kv"] == "q8_0 keys, f16 values"


def test_options_that_cannot_be_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    firstdiff, path = Command(capfd), synthetic(tmp_path, n_head=4, n_head_kv=2, head_dim=16)
    out = ("--tokens", "1,70", "--out", tmp_path / "out")
    for more in ((), ("--flash-attention",)):
        ran = firstdiff("run", path, *out, "--kv", "q8_0", *more)
        assert_refused(ran, 2, "--kv q8_0", "blocks of 32", "heads of 16")
    ran = firstdiff("record", path, *out, "--engine", "reference:f32", "--kv", "bf16")
    assert_refused(ran, 2, "--kv", "llama.cpp's", "reference:ggml-cpu+flash+kv=q8_0")
    assert not (tmp_path / "out").exists()


def test_names_of_arithmetics_are_read_back() -> None:
    for attention in EVERY:
        for threads in (1, 2):
            arithmetic = attention.arithmetic(threads)
            assert arithmetic_named(arithmetic.name) == arithmetic
    assert ggml_cpu(flash=2, keys="q8_0").name == "ggml-cpu+flash=2+keys=q8_0"
    assert floors.FLASH_F16 > 3 * 3e-4
