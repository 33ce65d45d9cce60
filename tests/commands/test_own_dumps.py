"""Somebody's own dump: the same verdict in any format, under any names, in any order of axes, and of few points."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.command_line import Command, assert_refused, strict
from builders.dump_formats import Convert, as_npy, as_npz, as_raw, as_safetensors, as_texts, held, made, manifest
from builders.own_engine import IDS, dumped, first, judged, narrow, statuses, unwrapped
from builders.traces import rewrite_trace
from firstdiff.dumps import open_trace


@pytest.fixture(scope="module")
def model(own_model: Path) -> Path:
    return own_model


# A dump in any format

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
