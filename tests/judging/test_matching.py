"""Which point of llama.cpp's graph each name of a dump means: by the weight that is read, then by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from builders.every_architecture import toy
from firstdiff.dumps import Site, Step, Trace
from firstdiff.engines.opening import open_reference
from firstdiff.judging.matching import Place, Places, matched
from firstdiff.model.engine import Model
from firstdiff.model.graph.program import Program
from firstdiff.model.graph.reference import GraphArchitecture

pytestmark = pytest.mark.llama

TOKENS = (3, 4, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toys")


@cache
def opened(arch: str, folder: Path) -> Model:
    return open_reference(toy(arch, folder))


@cache
def program(arch: str, folder: Path) -> Program:
    written = opened(arch, folder).written
    assert isinstance(written, GraphArchitecture)
    return written.prepare([TOKENS])[0]


def meant(arch: str, folder: Path, *names: str) -> dict[str, Place]:
    return Places.of(program(arch, folder)).of_names({name: Site(0, None, name) for name in names})


@pytest.mark.parametrize(
    ("arch", "name", "place"),
    [
        ("gemma3", "model.layers.1.self_attn.q_proj", ("Qcur", 1)),
        ("gemma3", "model.layers.1.self_attn.q_norm", ("Qcur_normed", 1)),
        ("gemma3", "model.layers.0.pre_feedforward_layernorm", ("ffn_norm", 0)),
        ("gemma3", "model.layers.0.mlp.down_proj", ("ffn_out", 0)),
        ("gemma3", "model.norm", ("result_norm", None)),
        ("gemma3", "lm_head", ("result_output_mul_mat", None)),  # before the cap
        ("phi3", "model.layers.1.self_attn.qkv_proj", ("wqkv", 1)),
        ("phi3", "model.layers.1.mlp.gate_up_proj", ("ffn_up", 1)),
        ("gpt2", "transformer.h.0.attn.c_attn", ("wqkv", 0)),
        ("gpt2", "transformer.h.1.ln_2", ("ffn_norm", 1)),
        ("olmoe", "model.layers.0.mlp.gate", ("ffn_moe_logits", 0)),
        ("olmo2", "model.layers.1.post_attention_layernorm", ("attn_post_norm", 1)),
        ("falcon", "transformer.h.1.self_attention.dense", ("attn_out", 1)),
        ("lfm2", "model.layers.0.feed_forward.w2", ("ffn_out", 0)),
        ("lfm2", "model.layers.1.ffn_norm", ("ffn_norm", 1)),
        ("gemma3", "blk.1.attn_q.weight", ("Qcur", 1)),
        ("gemma3", "blk.1.attn_q", ("Qcur", 1)),
    ],
)
def test_a_name_means_what_reads_its_weight(folder: Path, arch: str, name: str, place: Place) -> None:
    assert meant(arch, folder, name) == {name: place}


def test_a_module_of_another_architecture_means_nothing(folder: Path) -> None:
    assert meant("gemma3", folder, "model.layers.0.mlp.experts", "model.layers.7.mlp.up_proj", "nonsense") == {}


def test_every_name_of_the_graph_means_itself(folder: Path) -> None:
    for arch in ("gemma3", "phi3", "gpt2", "olmoe", "mamba2", "deepseek2", "lfm2", "kimi-k3"):
        points = Places.of(program(arch, folder))
        names = {f"{p}-{layer}": Site(0, layer, p) for p, layer in points.points}
        of_names = points.of_names(names)
        moved = {name: place for name, place in of_names.items() if place != (names[name].point, names[name].layer)}
        assert moved == {}, arch


def test_a_tensor_without_a_counterpart_keeps_its_name_and_is_told_of(folder: Path) -> None:
    model = opened("gemma3", folder)
    arrays = {Site(0, 0, point): np.zeros((3, model.hp.n_embd), np.float32) for point in ("attn_norm", "my_own")}
    trace = Trace.from_arrays([Step(TOKENS, (0, 1, 2))], arrays, engine={"name": "mine"}, model={})
    found = matched(model, trace)
    assert set(found.tensors) == set(arrays)
    assert found.notes == (
        "1 recorded tensor has no counterpart in llama.cpp's graph, such as my_own-0: nothing is said about it",
    )


@pytest.mark.parametrize("factor", [1, 8])
@pytest.mark.parametrize("point", ["embd", "inp_scaled"])
def test_an_embedding_is_before_or_behind_its_scale_as_its_numbers_say(folder: Path, point: str, factor: int) -> None:
    model, graph = opened("gemma3", folder), program("gemma3", folder)
    (scaled,) = (i for i in graph.instructions if i.point == "inp_scaled")
    plain = model.weights["token_embd.weight"].gather(np.array(TOKENS))
    right = plain * np.float32(scaled.attributes["by"] if factor > 1 else 1)
    trace = Trace.from_arrays([Step(TOKENS, (0, 1, 2))], {Site(0, None, point): right}, engine={"name": "m"}, model={})
    assert set(matched(model, trace).tensors) == {Site(0, None, "inp_scaled" if factor > 1 else "embd")}
