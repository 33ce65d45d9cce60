"""Somebody's own engine through the command line: run, dumped in any form, compared, crashed, and asked about."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from builders.command_line import Command, Ran, assert_refused, strict
from builders.engines import compile_engine, run_engine
from builders.models import SMOLLM2, in_blocks, synthetic
from builders.traces import rewrite_trace
from firstdiff.dumps import Site, Step, Trace, open_trace
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.user_engine import tokens_ran

PROMPT = [1, 72, 104, 300, 45, 300, 17, 260, 301, 99, 45, 8]
IDS = ",".join(map(str, PROMPT))
QUICK = ("-O0",)  # small models need no fast code, and compile in half the time
SHAPE = {
    "n_layer": 2, "n_embd": 64, "n_head": 8, "n_head_kv": 4, "head_dim": 8, "n_ff": 96, "n_vocab": 320,
    "rope_base": 50000.0, "rope_factors": True, "rope_scale": 0.5, "biases": True,
}  # fmt: skip
RUN_BY = "--model {model} --tokens {tokens} --decode {decode} --dump {dump}"

Tensors = list[tuple[Site, np.ndarray]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bring-your-own")


@pytest.fixture(scope="module")
def model(bench: Path) -> Path:
    return synthetic(bench, **SHAPE)


@pytest.fixture(scope="module")
def q4_1(bench: Path) -> Path:
    return in_blocks("Q4_1", bench, **SHAPE)


@cache
def dumped(bench: Path, model: Path, bug: str | None = None, layer: int | None = None, more: str = "") -> Path:
    """The C engine's own dump."""
    out = bench / "-".join(["dump", str(bug), str(layer), more.replace(" ", "")])
    run_engine(compile_engine(bench, bug, layer, flags=QUICK), model, PROMPT, out, more=more)
    return out


@pytest.fixture(scope="module")
def clean(compiler: str, bench: Path, model: Path) -> Path:
    return dumped(bench, model)


@pytest.fixture(scope="module")
def wrong(compiler: str, bench: Path, model: Path) -> Path:
    """The dump of an engine whose layer 1 pairs the wrong dimensions in rope."""
    return dumped(bench, model, "rope-pairing", 1)


def by_engine(engine: Path, more: str = "") -> str:
    return f"{shlex.quote(str(engine))} {RUN_BY} {more}"


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def judged(firstdiff: Command, model: Path, *arguments: object, code: int | None = None) -> dict[str, Any]:
    ran = firstdiff("run", model, *arguments, "--json")
    assert code is None or ran.code == code, ran.err
    return dict(strict(ran.out))


def statuses(verdict: dict[str, Any]) -> dict[str, str]:
    return {site["site"]: site["status"] for site in verdict["sites"]}


def first(verdict: dict[str, Any]) -> str | None:
    return None if verdict["first"] is None else str(verdict["first"]["site"])


def unwrapped(text: str) -> str:
    """A report as if its lines had no end."""
    return " ".join(text.split())


def narrow(ran: Ran) -> None:
    """Check that a report fits 80 columns and that no line ends in a blank."""
    assert [line for line in ran.out.splitlines() if len(line) > 80 or line != line.rstrip()] == []


# An engine that firstdiff runs


@pytest.mark.compiler
def test_a_clean_engine_agrees(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = compile_engine(bench, flags=QUICK)
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", by_engine(engine), "--out", "run")
    assert ran.code == 0
    assert ran.out.startswith("Every one of the 123 recorded sites agrees")
    assert "preflight tokens agrees, positions agrees" in unwrapped(ran.out)
    assert "14 tokens in 3 steps" in ran.out
    narrow(ran)
    assert Path("run/engine/trace.json").exists()
    assert strict(Path("run/verdict.json").read_text())["verdict"] == "agrees"


BUGS = (
    ("token-of-before", "F32", "embd"),
    ("rope-position", "F32", "Qcur_rope-0@1"),
    ("weight-reinterpreted", "F32", "Qcur-0"),
    ("weight-of-other-layer", "F32", "ffn_out-0"),
    ("bias-missing", "F32", "Qcur-0"),
    ("nibble-order", "Q4_1", "embd"),
    ("min-missing", "Q4_1", "embd"),
    ("norm-eps", "F32", "attn_norm-0"),
    ("final-norm-missing", "F32", "result_norm"),
    ("rope-base", "F32", "Qcur_rope-0"),
    ("gqa-map", "F32", "kq-0"),
    ("mask-missing", "F32", "kq_soft_max-0"),
    ("cache-stale", "F32", "k_cache-0@1"),
    ("gelu-for-silu", "F32", "ffn_swiglu-0"),
    ("residual-missing", "F32", "ffn_inp-0"),
    ("logits-of-wrong-row", "F32", "result_output"),
)


@pytest.mark.compiler
@pytest.mark.parametrize(("bug", "kind", "site"), BUGS)
def test_an_engine_with_a_bug_diverges_where_it_is(
    firstdiff: Command, bench: Path, model: Path, q4_1: Path, bug: str, kind: str, site: str
) -> None:
    engine = by_engine(compile_engine(bench, bug, flags=QUICK))
    ran = firstdiff(
        "run", {"F32": model, "Q4_1": q4_1}[kind], "--tokens", IDS, "--decode", 1, "--engine", engine, "--out", "run"
    )
    assert ran.code == 1
    assert ran.out.startswith(f"{site} is the first to go wrong")
    narrow(ran)
    assert first(strict(Path("run/verdict.json").read_text())) == site


@pytest.mark.compiler
@pytest.mark.llama
@pytest.mark.smollm2
def test_a_clean_engine_agrees_on_a_real_model(firstdiff: Command, bench: Path) -> None:
    engine = by_engine(compile_engine(bench))
    ran = firstdiff("run", SMOLLM2, "--prompt", "To be, or not", "--decode", 1, "--engine", engine, "--json")
    verdict = strict(ran.out)
    assert ran.code == 0, verdict["first"]
    assert verdict["preflight"]["tokens"] == "agrees"
    assert verdict["coverage"]["agrees"] == verdict["coverage"]["sites"] > 1000


@pytest.mark.compiler
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_an_engine_prints_appears_on_stderr_alone(
    firstdiff: Command, bench: Path, model: Path, options: tuple[str, ...]
) -> None:
    engine = by_engine(compile_engine(bench, flags=QUICK), "--print")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", engine, *options)
    assert ran.err.count(" rms=") == 123
    assert ran.err.count("next token: ") == 3
    assert "rms=" not in ran.out
    assert "next token" not in ran.out
    if options:
        assert strict(ran.out)["verdict"] == "agrees"


def test_what_an_engine_prints_is_live_and_on_lines_of_its_own(model: Path, clean: Path, tmp_path: Path) -> None:
    """The engine goes on only once its first line has come out at the other end."""
    go = tmp_path / "go"
    lines = ("echo loading", f"while [ ! -e {go} ]; do sleep 0.02; done", f'cp -r {clean} "$1"')
    engine = script(tmp_path / "engine.sh", *lines)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "firstdiff", "run", str(model), "--tokens", IDS]
    process = subprocess.Popen(
        [*command, "--engine", f"{engine} {{dump}}", "--timeout", "60", "--out", str(tmp_path / "run"), "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"loading\r\n" not in seen:
        seen += os.read(master, 4096)
    go.touch()
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    assert strict(out.decode())["verdict"] == "agrees"
    assert seen.endswith(b"\x1b[2Kloading\r\n"), seen  # the line of progress is wiped before it


@pytest.mark.compiler
def test_tokens_that_an_engine_did_not_get_are_named(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = script(bench / "doubles.sh", f'{compile_engine(bench, flags=QUICK)} --tokens 1,"$1" --model $2 --dump $3')
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", f"{engine} {{tokens}} {{model}} {{dump}}")
    assert ran.code == 1
    said = "Before any tensor, tokens: the engine ran 13 tokens where 12 were given: token 1 is 1 where 72 was given."
    assert unwrapped(ran.out).startswith(said)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([[5, 6, 7]], "agrees"),
        ([[5, 6, 7], [8], [9]], "agrees"),
        ([[5], [6], [7], [8]], "agrees"),
        ([[5, 6], [7], [8]], "agrees"),
        ([[5, 9, 7]], "token 1 is 9 where 6 was given"),
        ([[1, 5, 6, 7]], "the engine ran 4 tokens where 3 were given: token 0 is 1 where 5 was given"),
        ([[5, 6, 7, 2], [8]], "the engine ran 4 tokens where 3 were given: 2 follows the last one"),
        ([[5, 6]], "the engine ran 2 tokens where 3 were given: those from token 2 on are missing"),
    ],
)
def test_the_prompt_may_be_run_in_any_steps_and_no_other_tokens(steps: list[list[int]], said: str) -> None:
    ran = [Step(tuple(ids), tuple(range(len(ids)))) for ids in steps]
    assert tokens_ran(Trace.from_arrays(ran, {}, engine={}, model={}), [5, 6, 7]) == said


def test_an_engine_need_not_say_its_tokens(firstdiff: Command, model: Path, clean: Path, tmp_path: Path) -> None:
    trace = open_trace(clean)
    dump = as_npy("{name}", saying=False)(tmp_path / "npy", [one for one in held(trace) if one[0].step == 0], trace)
    engine = script(tmp_path / "engine.sh", f'cp -r {dump} "$1"')
    verdict = judged(firstdiff, model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--decode", 0, code=0)
    assert verdict["tokens"] == [PROMPT]
    assert verdict["preflight"]["tokens"] == "not recorded"


# A dump in any format


def held(trace: Trace) -> Tensors:
    return [(site, np.array(trace[site])) for site in trace]


Convert = Callable[[Path, Tensors, Trace], Path]


def manifest(folder: Path, trace: Trace, **more: Any) -> Path:
    """What a foreign dump says: its tokens, and nothing of names, layouts or arithmetic."""
    steps = [{"tokens": list(step.tokens)} for step in trace.steps]
    (folder / "trace.json").write_text(json.dumps({"steps": steps, **more}))
    return folder


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def as_npy(spelling: str, *, saying: bool = True, dtype: str = "<f4") -> Convert:
    """One .npy a tensor, its site spelled some way; `saying` what the tokens are, or leaving it to --tokens."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        for site, x in tensors:
            name = spelling.format(name=site.key, point=site.point, layer=site.layer, step=site.step)
            if site.layer is None and "{layer}" in spelling:
                name = f"{site.point}@{site.step}"
            np.save(made(folder / f"{name}.npy"), x.astype(dtype))
        return manifest(folder, trace) if saying else folder

    return convert


def as_npz(dtype: str) -> Convert:
    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        for index in range(len(trace.steps)):
            arrays: dict[str, Any] = {site.key: x.astype(dtype) for site, x in tensors if site.step == index}
            np.savez_compressed(made(folder / f"step-{index:03}.npz"), **arrays)
        return manifest(folder, trace)

    return convert


def bf16(x: np.ndarray) -> np.ndarray:
    """The upper half of each float32: exact for what was rounded to bf16 already."""
    bits = x.astype("<f4").view("<u4")
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF).astype("<u2")


def as_raw(dtype: str) -> Convert:
    """All values in one file, one tensor after the other, with a manifest that says where."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        data, listed = b"", []
        for site, x in tensors:
            raw = bf16(x).tobytes() if dtype == "bf16" else x.astype({"f32": "<f4", "f16": "<f2"}[dtype]).tobytes()
            at = {"step": site.step, "point": site.point} | ({} if site.layer is None else {"layer": site.layer})
            listed.append({"file": "dump.bin", "offset": len(data), "dtype": dtype, "shape": list(x.shape)} | at)
            data += raw
        made(folder / "dump.bin").write_bytes(data)
        return manifest(folder, trace, tensors=listed)

    return convert


def as_texts(folder: Path, tensors: Tensors, trace: Trace) -> Path:
    """Nine digits, of which a float32 comes back."""
    for site, x in tensors:
        lines = [" ".join(f"{v:.9g}" for v in row) for row in x.reshape(x.shape[0], -1)]
        shape = f"# shape: {list(x.shape)}\n" if x.ndim > 2 else ""
        made(folder / f"{site.key}_step_{site.step}.txt").write_text(shape + "\n".join(lines) + "\n")
    return manifest(folder, trace)


def as_safetensors(dtype: str) -> Convert:
    """One file a layer, and one for what is outside the layers."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for site, x in tensors:
            part = "rest" if site.layer is None else f"layer-{site.layer:02}"
            stored = bf16(x) if dtype == "bf16" else x.astype({"f32": "<f4", "f16": "<f2"}[dtype])
            parts.setdefault(f"step-{site.step:03}.{part}", {})[site.key] = np.ascontiguousarray(stored)
        for name, arrays in parts.items():
            made(folder / f"{name}.safetensors").write_bytes(relabelled(save(arrays)))
        return manifest(folder, trace)

    return convert


def relabelled(raw: bytes) -> bytes:
    """The same file with its 16-bit integers, if any, called what they are; the header's length changes with it."""
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


FORMATS: Mapping[str, Convert] = {
    "npy, name@step": as_npy("{name}@{step}"),
    "npy, step/name": as_npy("step{step}/{name}"),
    "npy, step.name": as_npy("step-{step:03}.{name}"),
    "npy, step/layer/point": as_npy("step_{step}/layer{layer}/{point}"),
    "npy, blk.layer.point_step": as_npy("blk.{layer}.{point}_step_{step}"),
    "npz": as_npz("<f4"),
    "npz, big-endian": as_npz(">f4"),
    "raw": as_raw("f32"),
    "texts": as_texts,
    "safetensors by layer": as_safetensors("f32"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_verdict_is_the_same_in_every_format(
    firstdiff: Command, bench: Path, model: Path, wrong: Path, tmp_path: Path, form: str
) -> None:
    trace = open_trace(wrong)
    dump = FORMATS[form](tmp_path / "dump", held(trace), trace)
    verdict = judged(firstdiff, model, "--candidate", dump, code=1)
    assert first(verdict) == "Qcur_rope-1"
    assert verdict["sites"] == verdict_of(bench, model, wrong)["sites"]  # to the last bit


@cache
def verdict_of(bench: Path, model: Path, trace: Path) -> dict[str, Any]:
    out = bench / f"verdict-{trace.name}"
    command = [sys.executable, "-m", "firstdiff", "run", model, "--candidate", trace, "--out", out, "--json"]
    ran = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode in (0, 1), ran.stderr
    return dict(strict(ran.stdout))


def test_tokens_can_be_given_where_a_dump_has_none(
    firstdiff: Command, model: Path, wrong: Path, tmp_path: Path
) -> None:
    trace = open_trace(wrong)
    dump = as_npy("{name}@{step}", saying=False)(tmp_path / "dump", held(trace), trace)
    assert_refused(firstdiff("run", model, "--candidate", dump), 3, "has no tokens", "--tokens")
    ids = ",".join(str(token) for step in trace.steps for token in step.tokens)
    verdict = judged(firstdiff, model, "--candidate", dump, "--tokens", ids, code=1)
    assert first(verdict) == "Qcur_rope-1"
    assert verdict["tokens"] == [list(step.tokens) for step in trace.steps]


HALVES: tuple[tuple[str, Convert], ...] = (
    ("f16", as_npy("step{step}/{name}", dtype="<f2")),
    ("f16", as_npz("<f2")),
    ("f16", as_raw("f16")),
    ("f16", as_safetensors("f16")),
    ("bf16", as_raw("bf16")),
    ("bf16", as_safetensors("bf16")),
    ("bf16", as_texts),
)


@pytest.mark.slow
@pytest.mark.parametrize(("arithmetic", "convert"), HALVES)
@pytest.mark.parametrize("bug", [None, "rope-pairing"])
def test_a_half_precision_engine_is_judged_as_one_in_every_format(
    firstdiff: Command, model: Path, tmp_path: Path, arithmetic: str, convert: Convert, bug: str | None
) -> None:
    planted = [] if bug is None else ["--bug", f"{bug}@1"]
    engine = f"reference:{arithmetic}"
    ran = firstdiff("record", model, "--engine", engine, "--tokens", IDS, *planted, "--out", "own")
    assert ran.code == 0, ran.err
    own = judged(firstdiff, model, "--candidate", "own")
    trace = open_trace("own")
    dump = convert(tmp_path / "dump", held(trace), trace)
    verdict = judged(firstdiff, model, "--candidate", dump)
    assert first(verdict) == first(own) == (None if bug is None else "Qcur_rope-1")
    assert statuses(verdict) == statuses(own)
    assert own["arithmetic"] == dict.fromkeys(("linear", "norm", "attention", "cache"), arithmetic)  # as it states
    sure = {group: says.removesuffix(" (weak evidence)") for group, says in verdict["arithmetic"].items()}
    assert sure == own["arithmetic"]  # found from the numbers: two layers say little of all but products
    assert verdict["arithmetic"]["linear"] == arithmetic


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_float32_engine_that_dumps_in_half_precision_agrees_and_is_not_said_to_compute_in_it(
    firstdiff: Command, model: Path, clean: Path, tmp_path: Path, dtype: str
) -> None:
    trace = open_trace(clean)
    dump = as_safetensors(dtype)(tmp_path / "dump", held(trace), trace)
    verdict = judged(firstdiff, model, "--candidate", dump, code=0)
    assert {says.removesuffix(" (weak evidence)") for says in verdict["arithmetic"].values()} == {"f32"}


# Names of its own

GGUF_LIKE = {
    "embd": "token_embd", "attn_norm": "blk.{layer}.attn_norm.out", "Qcur": "blk.{layer}.attn_q",
    "Kcur": "blk.{layer}.attn_k", "Vcur": "blk.{layer}.attn_v", "Qcur_rope": "blk.{layer}.attn_q.rope",
    "Kcur_rope": "blk.{layer}.attn_k.rope", "k_cache": "blk.{layer}.cache_k", "v_cache": "blk.{layer}.cache_v",
    "kq": "blk.{layer}.attn_scores", "kq_soft_max": "blk.{layer}.attn_probs", "kqv_out": "blk.{layer}.attn_heads",
    "attn_out": "blk.{layer}.attn_output", "ffn_inp": "blk.{layer}.residual_1", "ffn_norm": "blk.{layer}.ffn_norm.out",
    "ffn_gate": "blk.{layer}.ffn_gate.out", "ffn_up": "blk.{layer}.ffn_up.out", "ffn_swiglu": "blk.{layer}.ffn_act",
    "ffn_out": "blk.{layer}.ffn_down", "l_out": "blk.{layer}.residual_2", "result_norm": "output_norm",
    "result_output": "output",
}  # fmt: skip
HF_LIKE = {
    "embd": "model.embed_tokens", "attn_norm": "model.layers.{layer}.input_layernorm",
    "Qcur": "model.layers.{layer}.self_attn.q_proj", "Kcur": "model.layers.{layer}.self_attn.k_proj",
    "Vcur": "model.layers.{layer}.self_attn.v_proj", "Qcur_rope": "model.layers.{layer}.self_attn.q_rotary",
    "Kcur_rope": "model.layers.{layer}.self_attn.k_rotary", "k_cache": "model.layers.{layer}.past_key",
    "v_cache": "model.layers.{layer}.past_value", "kq": "model.layers.{layer}.self_attn.scores",
    "kq_soft_max": "model.layers.{layer}.self_attn.softmax", "kqv_out": "model.layers.{layer}.self_attn.context",
    "attn_out": "model.layers.{layer}.self_attn.o_proj", "ffn_inp": "model.layers.{layer}.residual_attn",
    "ffn_norm": "model.layers.{layer}.post_attention_layernorm", "ffn_gate": "model.layers.{layer}.mlp.gate_proj",
    "ffn_up": "model.layers.{layer}.mlp.up_proj", "ffn_swiglu": "model.layers.{layer}.mlp.swiglu",
    "ffn_out": "model.layers.{layer}.mlp.down_proj", "l_out": "model.layers.{layer}.hidden_states",
    "result_norm": "model.norm", "result_output": "lm_head",
}  # fmt: skip
CAMEL = {
    point: ("" if point in ("embd", "result_norm", "result_output") else "Layer{layer}") + name
    for point, name in {
        "embd": "TokenEmbedding", "attn_norm": "InputNorm", "Qcur": "QueryProjection", "Kcur": "KeyProjection",
        "Vcur": "ValueProjection", "Qcur_rope": "QueryRotated", "Kcur_rope": "KeyRotated", "k_cache": "KeyCache",
        "v_cache": "ValueCache", "kq": "AttentionScores", "kq_soft_max": "AttentionWeights", "kqv_out": "HeadsMerged",
        "attn_out": "AttentionOutput", "ffn_inp": "AfterAttention", "ffn_norm": "PostAttentionNorm",
        "ffn_gate": "GateProjection", "ffn_up": "UpProjection", "ffn_swiglu": "GatedActivation",
        "ffn_out": "DownProjection", "l_out": "BlockOutput", "result_norm": "FinalNorm", "result_output": "Logits",
    }.items()
}  # fmt: skip


def renamed(trace: Path, out: Path, names: Mapping[str, str]) -> Path:
    """The dump with another engine's names, which does not say whose they are."""
    own = open_trace(trace)
    for index in range(len(own.steps)):
        arrays = {names[site.point].format(layer=site.layer): np.array(own[site]) for site in own if site.step == index}
        save_file(arrays, made(out / f"step-{index:03}.safetensors"))
    return manifest(out, own)


def table(path: Path, names: Mapping[str, str]) -> Path:
    entries = {name: point for point, name in names.items()}
    lines = [f"{json.dumps(name)} = {json.dumps(point)}" for name, point in entries.items()]
    path.write_text(json.dumps(entries) if path.suffix == ".json" else "\n".join(lines))
    return path


NAMES = {"gguf": GGUF_LIKE, "hf": HF_LIKE, "camel": CAMEL}


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("whose", NAMES)
def test_the_verdict_is_the_same_under_any_names(
    firstdiff: Command, bench: Path, model: Path, wrong: Path, tmp_path: Path, whose: str, suffix: str
) -> None:
    dump = renamed(wrong, tmp_path / "dump", NAMES[whose])
    names = table(tmp_path / f"names{suffix}", NAMES[whose])
    verdict = judged(firstdiff, model, "--candidate", dump, "--names", names, code=1)
    assert verdict["sites"] == verdict_of(bench, model, wrong)["sites"]
    assert verdict["notes"] == []
    ran = firstdiff("names", dump, "--names", names)
    assert ran.code == 0
    assert "not understood" not in ran.out
    for point, name in NAMES[whose].items():
        assert any(line.split()[:2] == [name, point] for line in ran.out.splitlines()), (name, point)
    rows = strict(firstdiff("names", dump, "--names", names, "--json").out)
    assert {(row["point"], row["layer"], row["step"]) for row in rows} == {
        (site.point, site.layer, site.step) for site in open_trace(wrong)
    }


def test_names_are_shown_of_a_dump_without_tokens(firstdiff: Command, wrong: Path, tmp_path: Path) -> None:
    dump = tmp_path / "silent"
    dump.mkdir()
    for file in wrong.glob("*.safetensors"):
        (dump / file.name).write_bytes(file.read_bytes())
    ran = firstdiff("names", dump)
    assert (ran.code, ran.err) == (0, "")
    assert "Kcur_rope" in ran.out
    assert_refused(firstdiff("names", dump, "--tokens", "1,2"), 2, "--tokens")  # nothing would read them


def test_the_table_that_names_suggests_can_be_used(firstdiff: Command, wrong: Path, tmp_path: Path) -> None:
    dump = renamed(wrong, tmp_path / "dump", CAMEL)
    ran = firstdiff("names", dump)
    listing, _, suggested = ran.out.partition("--names TABLE.toml:\n")
    assert any(line.split()[:2] == ["Layer{layer}QueryProjection", "Qcur?"] for line in listing.splitlines())
    assert '  "Layer{layer}QueryProjection" = "Qcur"\n' in suggested
    Path("names.toml").write_text(suggested)
    again = firstdiff("names", dump, "--names", "names.toml")
    assert any(line.split()[:3] == ["Layer{layer}QueryProjection", "Qcur", "0-1"] for line in again.out.splitlines())


def test_a_dump_of_names_that_nobody_knows_is_no_pass(
    firstdiff: Command, model: Path, clean: Path, tmp_path: Path
) -> None:
    dump = renamed(clean, tmp_path / "dump", CAMEL).relative_to(tmp_path)  # a long path would be folded
    ran = firstdiff("run", model, "--candidate", dump)
    assert ran.code == 4
    told = unwrapped(ran.out)
    assert told.startswith("Nothing could be compared: this is no pass.")
    assert "41 names are not understood, such as " in told
    assert f"'firstdiff names {dump}' lists them" in told


# Orders of axes


@pytest.mark.compiler
@pytest.mark.parametrize(("bug", "site"), [(None, None), ("rope-pairing", "Qcur_rope-1"), ("gqa-map", "kq-1")])
def test_the_verdict_is_the_same_for_either_order_of_axes(
    firstdiff: Command, bench: Path, model: Path, bug: str | None, site: str | None
) -> None:
    layer = None if bug is None else 1
    plain = judged(firstdiff, model, "--candidate", dumped(bench, model, bug, layer))
    turned = dumped(bench, model, bug, layer, "--order feature-token")
    verdict = judged(firstdiff, model, "--candidate", turned)
    assert first(verdict) == first(plain) == site
    assert statuses(verdict) == statuses(plain)
    assert plain["layouts"] == {}
    assert verdict["layouts"]["l_out"] == "[feature, token]"
    assert verdict["layouts"]["Kcur"] == "[head_dim, head, token]"
    assert verdict["layouts"]["kq"] == "[key, query, head]"
    ran = firstdiff("run", model, "--candidate", turned)
    assert "result_output: [feature, token]; Qcur, Kcur, " in unwrapped(ran.out[ran.out.index("layouts") :])
    narrow(ran)


# Only a few points


def only(*points: str, last_row_of_logits: bool = False) -> Callable[[str, np.ndarray], np.ndarray | None]:
    def change(site: str, x: np.ndarray) -> np.ndarray | None:
        point = site.partition("@")[0].partition("-")[0]
        if point == "result_output" and last_row_of_logits:
            return x[-1]
        return x if point in points else None

    return change


@pytest.mark.compiler
@pytest.mark.parametrize("logits", ["every row", "the last row"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("bug", ["rope-pairing", "head-merge", "gate-up-swapped", "scale-missing"])
def test_outputs_of_layers_and_logits_name_the_layer_and_what_to_dump_next(
    firstdiff: Command, bench: Path, model: Path, tmp_path: Path, bug: str, layer: int, logits: str
) -> None:
    keep = only("l_out", "result_output", last_row_of_logits=logits == "the last row")
    dump = rewrite_trace(dumped(bench, model, bug, layer), tmp_path / "few", keep)
    ran = firstdiff("run", model, "--candidate", dump, "--out", "run")
    assert ran.code == 1
    told = unwrapped(ran.out)
    assert told.startswith(f"l_out-{layer} is the first to go wrong among the 9 sites recorded (of 123)")
    assert f"Dump {'' if layer else 'embd and '}these of layer {layer} next: attn_norm, Qcur, " in told
    narrow(ran)
    verdict = strict(Path("run/verdict.json").read_text())
    assert {f"attn_norm-{layer}", f"ffn_gate-{layer}"} <= set(verdict["dump_next"])
    assert statuses(verdict)["result_output"] == "inherits"
    assert {site["layer"] for site in verdict["diverging"]} == {layer}


def test_logits_of_the_last_token_alone_are_compared(
    firstdiff: Command, bench: Path, model: Path, clean: Path, tmp_path: Path
) -> None:
    keep = only("l_out", last_row_of_logits=True)
    fine = judged(firstdiff, model, "--candidate", rewrite_trace(clean, tmp_path / "fine", keep), code=0)
    assert statuses(fine)["result_output"] == "agrees"
    assert len(fine["logits"]["steps"]) == 3
    bug = dumped(bench, model, "final-norm-missing")
    verdict = judged(firstdiff, model, "--candidate", rewrite_trace(bug, tmp_path / "bug", keep), code=1)
    assert first(verdict) == "result_output"
    assert verdict["dump_next"] == ["result_norm"]


# Several candidates


def test_two_candidates_part_where_one_of_them_is_wrong(
    firstdiff: Command, model: Path, clean: Path, wrong: Path
) -> None:
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", wrong, "--out", "run")
    assert ran.code == 1
    assert unwrapped(ran.out).startswith(f"They part at Qcur_rope-1: {wrong} wrong, {clean} right.")
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("candidate ")] == ["candidate"]
    assert "Qcur_rope-1 is the first to go wrong" in ran.out
    assert "Every one of" not in ran.out  # the table is enough for what agrees
    narrow(ran)
    record = strict(Path("run/verdict.json").read_text())
    assert record["parting"] == {"site": "Qcur_rope-1", "wrong": [str(wrong)], "right": [str(clean)]}
    assert {name: one["verdict"] for name, one in record["candidates"].items()} == {
        str(clean): "agrees",
        str(wrong): "diverges",
    }
    again = firstdiff("run", model, "--candidate", clean, "--candidate", wrong, "--json")
    assert again.code == 1
    assert strict(again.out) == record


def test_two_candidates_that_are_fine_agree(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    turned = dumped(bench, model, None, None, "--order feature-token")
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", turned)
    assert ran.code == 0
    assert ran.out.startswith("Both candidates agree with the reference.\n")
    assert "They part" not in ran.out
    record = strict(firstdiff("run", model, "--candidate", clean, "--candidate", turned, "--json").out)
    assert record["parting"] is None


def test_three_candidates_stand_in_one_table(
    firstdiff: Command, bench: Path, model: Path, clean: Path, wrong: Path
) -> None:
    for path, name in ((clean, "clean"), (wrong, "wrong"), (dumped(bench, model, "scale-missing"), "unscaled")):
        Path(name).symlink_to(path)
    ran = firstdiff(
        "run", model, "--candidate", "clean", "--candidate", "wrong", "--candidate", "unscaled", "--out", "run"
    )
    assert ran.code == 1
    assert unwrapped(ran.out).startswith("They part at kq_soft_max-0: unscaled wrong, clean and wrong right.")
    rows = [line.split()[:3] for line in ran.out.splitlines() if line.endswith("123 of 123")]
    assert rows == [
        ["clean", "agrees", "-"],
        ["wrong", "diverges", "Qcur_rope-1"],
        ["unscaled", "diverges", "kq_soft_max-0"],
    ]
    narrow(ran)
    assert list(strict(Path("run/verdict.json").read_text())["candidates"]) == ["clean", "wrong", "unscaled"]


def test_a_broken_contract_is_what_goes_wrong_first_in_the_table(
    firstdiff: Command, model: Path, clean: Path, tmp_path: Path
) -> None:
    Path("fine").symlink_to(clean)
    with_manifest(clean, tmp_path / "restarted", restart)
    ran = firstdiff("run", model, "--candidate", "fine", "--candidate", "restarted")
    assert ran.code == 1
    rows = [line.split()[:3] for line in ran.out.splitlines() if line.endswith("123 of 123")]
    assert rows == [["fine", "agrees", "-"], ["restarted", "diverges", "positions"]]


def test_a_candidate_given_twice_is_there_twice(firstdiff: Command, model: Path, clean: Path) -> None:
    Path("dump").symlink_to(clean)
    ran = firstdiff("run", model, "--candidate", "dump", "--candidate", "dump", "--json")
    assert list(strict(ran.out)["candidates"]) == ["dump", "dump (2)"]


def test_candidates_of_other_tokens_are_said_to_be(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    other = bench / "other-tokens"
    run_engine(compile_engine(bench, flags=QUICK), model, [*PROMPT[:-1], 9], other, decode=3)
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", other)
    assert ran.code == 0
    assert "They did not run the same tokens: their tokens differ from step 0 on." in unwrapped(ran.out)


def test_candidates_part_in_a_step_that_the_first_one_does_not_have(
    firstdiff: Command, bench: Path, model: Path, clean: Path
) -> None:
    short = rewrite_trace(clean, bench / "short", steps=1)
    stale = dumped(bench, model, "cache-stale")
    three = ("--candidate", short, "--candidate", stale, "--candidate", clean)
    record = strict(firstdiff("run", model, *three, "--json").out)
    assert record["parting"] == {"site": "k_cache-0@1", "wrong": [str(stale)], "right": [str(clean)]}


def test_an_engine_is_judged_beside_a_candidate(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    engine = by_engine(compile_engine(bench, "rope-pairing", 1, flags=QUICK))
    ran = firstdiff("run", model, "--tokens", IDS, "--candidate", clean, "--engine", engine)
    assert ran.code == 1
    assert unwrapped(ran.out).startswith(f"They part at Qcur_rope-1: engine wrong, {clean} right.")


def test_a_hostile_name_is_shown_escaped(firstdiff: Command, model: Path, clean: Path, wrong: Path) -> None:
    for path, name in ((clean, "a\x1b[31m"), (wrong, "[bold]b")):
        shutil.copytree(path, name)
        said = json.loads(Path(name, "trace.json").read_text())
        said["engine"]["name"] = name
        Path(name, "trace.json").write_text(json.dumps(said))
    ran = firstdiff("run", model, "--candidate", "a\x1b[31m", "--candidate", "[bold]b")
    assert "\x1b" not in ran.out
    assert "They part at Qcur_rope-1: [bold]b wrong, a\\x1b[31m right." in unwrapped(ran.out)


# Before any tensor


def with_manifest(trace: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(trace, out)
    said = json.loads((out / "trace.json").read_text())
    change(said)
    (out / "trace.json").write_text(json.dumps(said))
    return out


def restart(said: dict[str, Any]) -> None:
    for position, step in enumerate(said["steps"][1:]):
        step["positions"] = [position]


@pytest.mark.compiler
@pytest.mark.parametrize("bug", [None, "rope-position"])
def test_positions_that_restart_are_the_first_thing_said(
    firstdiff: Command, bench: Path, model: Path, tmp_path: Path, bug: str | None
) -> None:
    dump = with_manifest(dumped(bench, model, bug), tmp_path / "dump", restart)
    ran = firstdiff("run", model, "--candidate", dump)
    assert ran.code == 1
    said = "positions: step 1 has position 0 where 12 tokens are cached: restarted at 0; so is 1 later step."
    assert unwrapped(ran.out).startswith(f"Before any tensor, {said}")
    assert "positions agrees" not in ran.out
    narrow(ran)


TEXT = "tell me more"


@pytest.fixture(scope="module")
def tokenised(llama: None, model: Path) -> list[int]:
    with LlamaCpp(model, vocabulary_only=True) as vocabulary:
        return vocabulary.tokenize(TEXT)


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        (None, lambda ids: ids),
        ("token-double-bos", lambda ids: [1, *ids]),
        ("token-appended-eos", lambda ids: [*ids, 2]),
        ("token-missing-bos", lambda ids: ids[1:]),
    ],
)
def test_tokens_that_a_text_does_not_have_are_named_first(
    firstdiff: Command,
    bench: Path,
    model: Path,
    tokenised: list[int],
    cause: str | None,
    change: Callable[[list[int]], list[int]],
) -> None:
    run_engine(compile_engine(bench, flags=QUICK), model, change(tokenised), Path("dump"), decode=1)
    ran = firstdiff("run", model, "--prompt", TEXT, "--candidate", "dump", "--out", "run")
    verdict = strict(Path("run/verdict.json").read_text())
    assert first(verdict) is None  # each operation is right
    assert ran.code == (0 if cause is None else 1)
    if cause is None:
        assert verdict["preflight"]["tokens"] == "agrees"
    else:
        assert unwrapped(ran.out).startswith("Before any tensor, tokens: token ")
        assert f"({cause})" in ran.out
    narrow(ran)


def test_tokens_lists_ids_or_compares_them(firstdiff: Command, model: Path, tokenised: list[int]) -> None:
    ran = firstdiff("tokens", model, "--prompt", TEXT)
    assert ran.code == 0
    assert [int(line.split()[1]) for line in ran.out.splitlines()] == tokenised
    assert strict(firstdiff("tokens", model, "--prompt", TEXT, "--json").out)["ids"] == tokenised
    doubled = ",".join(map(str, [1, *tokenised]))
    ran = firstdiff("tokens", model, "--prompt", TEXT, "--ids", doubled)
    assert ran.code == 1
    assert "token-double-bos" in ran.out
    record = strict(firstdiff("tokens", model, "--prompt", TEXT, "--ids", doubled, "--json").out)
    assert [cause["id"] for cause in record["causes"]] == ["token-double-bos"]


def test_weights_lists_statistics_or_compares(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    ran = firstdiff("weights", model, "attn_q")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [
        f"blk.{layer}.attn_q.{part}" for layer in (0, 1) for part in ("weight", "bias")
    ]
    record = strict(firstdiff("weights", model, "--json").out)
    assert len(record["tensors"]) > 20
    save_file({"output_norm.weight": np.full(64, 3, np.float32)}, tmp_path / "mine.safetensors")
    ran = firstdiff("weights", model, "--against", tmp_path / "mine.safetensors")
    assert ran.code == 1
    assert "output_norm.weight" in ran.out
    strict(firstdiff("weights", model, "--against", tmp_path / "mine.safetensors", "--json").out)


def test_rope_prints_the_table_or_a_traces_angles(firstdiff: Command, model: Path, clean: Path, wrong: Path) -> None:
    ran = firstdiff("rope", model, "--positions", "0,5", "--pairs", "0,3")
    assert ran.code == 0
    assert [line.split()[:2] for line in ran.out.splitlines()[-4:]] == [["0", "0"], ["0", "3"], ["5", "0"], ["5", "3"]]
    strict(firstdiff("rope", model, "--positions", "0,5", "--json").out)
    assert firstdiff("rope", model, "--trace", clean, "--layer", 1).code == 0
    ran = firstdiff("rope", model, "--trace", wrong, "--layer", 1)
    assert ran.code == 1
    assert "Pairing half fits, where the model pairs interleaved," in ran.out
    record = strict(firstdiff("rope", model, "--trace", wrong, "--layer", 1, "--json").out)
    assert record["Qcur_rope"]["id"] == record["Kcur_rope"]["id"] == "rope-pairing"


# Trouble with an engine


@pytest.mark.compiler
def test_what_an_engine_dumped_before_it_crashed_is_judged(firstdiff: Command, bench: Path, model: Path) -> None:
    for bug in (None, "gelu-for-silu"):
        engine = by_engine(compile_engine(bench, bug, flags=(*QUICK, "-DCRASH_AT=1")))
        ran = firstdiff("run", model, "--tokens", IDS, "--engine", engine, "--out", f"run-{bug}")
        assert ran.code == 1  # a crash is no pass
        told = unwrapped(ran.out)
        assert "12 tokens in 1 step." in told
        assert "41 of 41 sites recorded" in told
        assert told.startswith("The engine crashed (SIGABRT) after ")
        assert "its last words: next token: " in told
        assert "| engine: about to crash" in told
        narrow(ran)
        verdict = strict(Path(f"run-{bug}/verdict.json").read_text())
        assert first(verdict) == (None if bug is None else "ffn_swiglu-0")


@pytest.mark.compiler
def test_an_exit_code_does_not_hide_a_good_dump(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = script(bench / "ends-with-3.sh", f'{compile_engine(bench, flags=QUICK)} "$@"', "exit 3")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", by_engine(engine))
    assert ran.code == 1
    assert "123 of 123 sites recorded" in ran.out
    assert unwrapped(ran.out).startswith("The engine ended with exit code 3; its last words: next token: ")


def test_what_a_hanging_engine_dumped_is_judged(firstdiff: Command, model: Path, clean: Path, tmp_path: Path) -> None:
    engine = script(tmp_path / "engine.sh", f'cp -r {clean} "$1"', "sleep 60")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--timeout", 2)
    assert ran.code == 1
    assert unwrapped(ran.out).startswith("The engine did not end within 2 s")


TROUBLE = {
    "hangs": (("echo loading", "sleep 60"), ("the engine did not end within 1 s, and wrote no dump", "loading")),
    "writes nothing": (("echo done",), ("the engine wrote no dump", "its last words: done")),
    "is silent": (("exit 0",), ("the engine printed nothing and wrote nothing",)),
    "fails": (("echo no such quant >&2", "exit 7"), ("ended with exit code 7, and wrote no dump", "no such quant")),
    "crashes": (("kill -SEGV $$",), ("crashed (SIGSEGV)", "wrote no dump")),
    "writes rubbish": (
        ('mkdir "$1"', 'echo rubbish > "$1/step-000.safetensors"'),
        ("its dump cannot be read", "step-000.safetensors"),
    ),
    "crashes over rubbish": (
        ('mkdir "$1"', 'echo rubbish > "$1/step-000.safetensors"', "kill -SEGV $$"),
        ("crashed (SIGSEGV)", "and its dump cannot be read", "step-000.safetensors"),
    ),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_an_engine_that_leaves_nothing_is_told_in_one_line(
    firstdiff: Command, model: Path, tmp_path: Path, what: str
) -> None:
    lines, words = TROUBLE[what]
    engine = script(tmp_path / "engine.sh", *lines)
    timeout = 1 if what == "hangs" else 60
    ran = firstdiff(
        "run", model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--timeout", timeout, "--out", "run"
    )
    own = ran.err[ran.err.index("firstdiff: ") :]  # the engine's output is before it
    assert_refused(Ran(ran.code, ran.out, own), 3, "--engine: ", *words)
    assert Path("run").exists() == ("rubbish" in what)  # no folder is left with nothing in it


def test_an_engine_that_is_not_there_is_told_in_one_line(firstdiff: Command, model: Path) -> None:
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", "./no-such-engine {dump}", "--out", "run")
    assert_refused(ran, 3, "--engine: not found: ./no-such-engine")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "words"), [("engine", "has no {dump}"), ("engine {dump} {what}", "{what} is not known")]
)
def test_a_command_that_cannot_be_is_wrong_usage_and_leaves_no_folder(
    firstdiff: Command, model: Path, command: str, words: str
) -> None:
    assert_refused(firstdiff("run", model, "--tokens", IDS, "--engine", command, "--out", "run"), 2, words)
    assert not Path("run").exists()
