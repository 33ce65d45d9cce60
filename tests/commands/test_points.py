"""``firstdiff points``: what can be dumped of a model, by its description or by llama.cpp's graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builders.command_line import Command
from builders.every_architecture import toy
from builders.models import TINY, synthetic
from firstdiff.dumps import Step, TraceWriter


def test_points_of_a_described_architecture_need_no_llama_cpp(firstdiff: Command, tmp_path: Path) -> None:
    ran = firstdiff("points", synthetic(tmp_path / "m.gguf", TINY))
    assert (ran.code, ran.err) == (0, "")
    head, advice, empty, titles, *rows = ran.out.splitlines()
    assert head == "m.gguf, architecture llama, by firstdiff's own description of the architecture."
    assert "such as attn_norm-0" in advice
    assert empty == ""
    assert titles.split() == ["point", "layers", "shape", "made", "by", "of", "the", "weights"]
    table = {row.split()[0]: row.split(maxsplit=1)[1] for row in rows}
    assert table["embd"].split()[0] == "-"
    assert "blk.{layer}.attn_q.weight" in table["Qcur"]
    assert "[tokens, " in table["Qcur"]
    assert "positions]" in table["kq"]
    assert "[positions, " in table["k_cache"]


@pytest.mark.llama
def test_points_of_any_architecture_are_those_of_the_graph(firstdiff: Command, tmp_path: Path) -> None:
    ran = firstdiff("points", toy("qwen3moe", tmp_path), "--json")
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert (record["architecture"], record["tier"]) == ("qwen3moe", "graph")
    points = {p["point"]: p for p in record["points"]}
    assert points["ffn_moe_topk"]["shape"] == ["tokens", "2"]
    assert points["ffn_moe_logits"]["reads"] == ["blk.{layer}.ffn_gate_inp.weight"]
    assert points["Qcur"]["layers"] == [0, 1]
    assert points["result_output"]["layers"] == []


def test_a_file_that_is_no_model_is_one_line(firstdiff: Command, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")
    ran = firstdiff("points", tmp_path / "no.gguf")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.count("\n") == 1


@pytest.mark.llama
def test_names_of_a_dump_are_shown_by_their_model(firstdiff: Command, tmp_path: Path) -> None:
    names = ("model.layers.1.mlp.gate", "model.layers.1.self_attn.o_proj.input", "nobody.knows")
    arrays = {name: np.zeros((3, 4), np.float32) for name in names}
    writer = TraceWriter(tmp_path / "dump", engine={"name": "mine"}, model={}, names="hf")
    writer.step(Step((3, 4, 5), (0, 1, 2)), arrays)
    writer.close()
    ran = firstdiff("names", tmp_path / "dump", "--model", toy("olmoe", tmp_path), "--json")
    assert (ran.code, ran.err) == (0, "")
    found = {row["name"]: (row["point"], row["layer"]) for row in json.loads(ran.out)}
    assert found[names[0]] == ("ffn_moe_logits", 1)
    assert found[names[1]] == ("kqv_out", 1)
    assert found[names[2]] == (None, None)
