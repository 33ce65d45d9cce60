"""Names of other engines: what is understood, what is only suggested, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstdiff.dumps import (
    Site,
    Step,
    Trace,
    TraceError,
    TraceWriter,
    explain_names,
    names_in,
    open_trace,
    suggested_table,
)
from firstdiff.dumps.nearest import nearest
from firstdiff.dumps.points import INSIDE, OUTSIDE, as_point


def dump(folder: Path, *names: str, **parts: Any) -> Path:
    """A dump in which every tensor holds its place in the list, one step after the other in the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.float32([[index]]))
    (folder / "trace.json").write_text(json.dumps({"steps": [{"tokens": [1]}], "order": [*names], **parts}))
    return folder


def read(folder: Path, *names: str, **options: Any) -> dict[str, str]:
    """Which name each site was read from."""
    trace = open_trace(dump(folder, *names), **options)
    return {str(site): names[int(trace[site][0, 0])] for site in trace}


LLAMA = (
    "model.embed_tokens", "model.layers.0.input_layernorm", "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.q_norm",
    "model.layers.0.self_attn.k_norm", "model.layers.0.self_attn.o_proj", "model.layers.0.post_attention_layernorm",
    "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.act_fn",
    "model.layers.0.mlp.down_proj", "model.layers.0", "model.norm", "lm_head",
)  # fmt: skip


def test_module_paths_of_transformers_are_recognised(tmp_path: Path) -> None:
    trace = open_trace(dump(tmp_path, *LLAMA))
    assert list(map(str, trace)) == [
        "embd", "attn_norm-0", "Qcur-0", "Kcur-0", "Vcur-0", "Qcur_normed-0", "Kcur_normed-0", "attn_out-0",
        "ffn_norm-0", "ffn_gate-0", "ffn_up-0", "model.layers.0.mlp.act_fn", "ffn_out-0", "l_out-0", "result_norm",
        "result_output",
    ]  # fmt: skip
    assert trace.names == "hf"
    assert trace.notes[0] == "names are read as hf's, which understands 16 of 16"
    assert "no module for 'ffn_inp'" in trace.notes[1]
    assert trace.unknown == ()


def test_who_records_what_modules_are_fed_is_not_told_what_no_module_gives(tmp_path: Path) -> None:
    trace = open_trace(dump(tmp_path, *LLAMA, "model.layers.0.mlp.gate_proj.input"))
    assert not any("no module for" in note for note in trace.notes)


def test_gemmas_norm_after_attention_is_told_from_the_one_before_the_block(tmp_path: Path) -> None:
    names = [f"model.layers.2.{x}_layernorm" for x in ("post_attention", "pre_feedforward", "post_feedforward")]
    assert read(tmp_path / "gemma", *names) == dict(
        zip(["attn_post_norm-2", "ffn_norm-2", "ffn_post_norm-2"], names, strict=True)
    )
    assert [*read(tmp_path / "llama", names[0])] == ["ffn_norm-2"]


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("model.language_model.layers.1.mlp.up_proj", "ffn_up-1"),
        ("base_model.model.model.layers.1.mlp.up_proj", "ffn_up-1"),
        ("layers.1.self_attn.q_proj.output", "Qcur-1"),
        ("model.layers.1.output.0", "l_out-1"),
        ("model.layers.1.self_attn", "attn_out-1"),
        ("model.layers.1.mlp", "ffn_out-1"),
    ],
)
def test_wrapped_and_whole_modules_are_understood(tmp_path: Path, name: str, site: str) -> None:
    assert read(tmp_path, name) == {site: name}


def test_a_projection_holds_its_site_before_the_whole_block(tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn", "model.layers.0.self_attn.o_proj"]
    assert read(tmp_path, *names) == {"attn_out-0": names[1]}
    rows = names_in(tmp_path)
    assert [(row.name, row.point) for row in rows] == [(names[0], None), (names[1], "attn_out")]


def test_what_has_no_module_can_be_dumped_under_our_names(tmp_path: Path) -> None:
    trace = open_trace(dump(tmp_path, "model.layers.0.self_attn.q_proj", "Qcur_rope-0", "ffn_inp-0"))
    assert list(map(str, trace)) == ["Qcur-0", "Qcur_rope-0", "ffn_inp-0"]
    assert not any("no module" in note for note in trace.notes)


def test_our_own_names_need_no_note(tmp_path: Path) -> None:
    trace = open_trace(dump(tmp_path, "embd", "Qcur-0", "result_norm"))
    assert (trace.names, trace.notes, trace.unknown) == (None, (), ())


@pytest.mark.parametrize("name", ["Qcur-3", "Qcur.3", "layer_3_Qcur", "blk.3.Qcur", "layers.3.Qcur", "Qcur-03"])
def test_a_point_is_understood_wherever_its_layer_stands(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name) == {"Qcur-3": name}


@pytest.mark.parametrize("name", ["Qcur", "embd-3", "qcur-3", "layer_3_q_proj", "weights.Qcur-3", "ffn_moe_-3"])
def test_a_point_is_not_guessed(name: str) -> None:
    assert as_point(name) is None


def test_every_point_is_its_own_name() -> None:
    assert all(as_point(f"{point}-0") == (point, 0) for point in (*INSIDE, "ffn_moe_logits"))
    assert all(as_point(point) == (point, None) for point in OUTSIDE)


def test_nodes_of_llama_cpp_are_recognised(tmp_path: Path) -> None:
    names = ["inp_embd", "norm-0", "attn_norm-0", "Qcur-0", "kq_soft_max_ext-0", "kqv_out-0", "ffn_gate_par-0"]
    trace = open_trace(dump(tmp_path, *names))
    assert trace.names == "llama.cpp"
    assert [str(site) for site in trace] == [
        "embd", "norm-0", "attn_norm-0", "Qcur-0", "kq_soft_max-0", "kqv_out-0", "ffn_swiglu-0",
    ]  # fmt: skip
    assert trace.unknown == ()
    assert any("before the rotation" in note for note in trace.notes)


@pytest.mark.parametrize(
    ("names", "sites"),
    [
        (["Qcur-0", "Qcur-0#1"], {"Qcur-0": 0, "Qcur_rope-0": 1}),
        (["Qcur-0", "Qcur-0#1", "Qcur-0#2"], {"Qcur-0": 1, "Qcur_rope-0": 2}),
        (["Qcur-0_1", "Qcur-0_2", "Qcur-0_3", "Qcur-0_4"], {"Qcur-0": 2, "Qcur_rope-0": 3}),
        (["Kcur-0 (MUL_MAT)", "Kcur-0 (ADD)", "Kcur-0 (ROPE)"], {"Kcur-0": 1, "Kcur_rope-0": 2}),
        (["Kcur-0.ROPE", "Kcur-0.MUL_MAT"], {"Kcur_rope-0": 0, "Kcur-0": 1}),
        (["Vcur-0", "Vcur-0.1"], {"Vcur-0": 1}),
        (["Vcur-0", "Vcur-0 (reshaped)"], {"Vcur-0": 0}),
    ],
)
def test_nodes_of_one_name_are_told_apart(tmp_path: Path, names: list[str], sites: dict[str, int]) -> None:
    found = read(tmp_path, *names, names="llama.cpp")
    assert found == {site: names[index] for site, index in sites.items()}


# Tables


def table(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


THEIRS = {"their.{layer}.q": "Qcur", "final": "result_norm", "first.norm": "attn_norm-0"}


@pytest.mark.parametrize("how", ["mapping", "toml", "toml under names", "json", "manifest"])
def test_a_table_maps_their_names(tmp_path: Path, how: str) -> None:
    folder = dump(tmp_path / "run", "their.12.q", "final", "first.norm", "other.3.x", "l_out-3")
    toml = "\n".join(f'"{name}" = "{point}"' for name, point in THEIRS.items())
    names: Any = {
        "mapping": THEIRS,
        "toml": table(tmp_path / "a.toml", toml),
        "toml under names": str(table(tmp_path / "b.toml", "[names]\n" + toml)),
        "json": table(tmp_path / "c.json", json.dumps(THEIRS)),
        "manifest": None,
    }[how]
    if how == "manifest":
        (folder / "trace.json").write_text(json.dumps({"steps": [{"tokens": [1]}], "names": THEIRS}))
    trace = open_trace(folder, names=names)
    assert {str(site) for site in trace} == {"Qcur-12", "result_norm", "attn_norm-0", "other.3.x", "l_out-3"}
    assert trace.names == THEIRS
    assert [name.name for name in trace.unknown] == ["other.3.x"]


def test_the_caller_overrules_the_manifest(tmp_path: Path) -> None:
    folder = dump(tmp_path, "model.norm", names="firstdiff")
    assert list(map(str, open_trace(folder))) == ["model.norm"]
    assert list(map(str, open_trace(folder, names="hf"))) == ["result_norm"]


def test_a_table_may_say_the_step(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", **{f"pass{step}.{layer}.k": np.ones((1, 2)) for step in (0, 1) for layer in (0, 7)})
    names = {"pass{step}.{layer}.k": "Kcur"}
    trace = open_trace(tmp_path / "run.npz", tokens=[1, 2], names=names)
    assert list(map(str, trace)) == ["Kcur-0", "Kcur-7", "Kcur-0@1", "Kcur-7@1"]
    assert len(trace.steps) == 2


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({}, "the table of names is empty"),
        ({"a.{layer}": "Qcurr"}, "'Qcurr', which is no point: did you mean 'Qcur'"),
        ({"a.{layer}": "zzz"}, "which is no point: the points are embd, "),
        ({"a.{Layer}.q": "Qcur"}, r"holds '\{Layer\}': did you mean \{layer\}\?"),
        ({"a.{}.q": "Qcur"}, r"did you mean \{layer\}"),
        ({"a.{layer}.{layer}": "Qcur"}, "twice"),
        ({"a.%d.q": "Qcur"}, r"did you mean 'a\.\{layer\}\.q'\?"),
        ({"a.*.q": "Qcur"}, r"did you mean 'a\.\{layer\}\.q'\?"),
        ({"a.0.q": "Qcur"}, r"did you mean 'a\.\{layer\}\.q'\?"),
        ({"q": "Qcur"}, r"write \{layer\} in it, or 'Qcur-0' for the point"),
        ({"a.{layer}": "embd"}, "a point outside the layers"),
        ({"a": "embd-3"}, "a point outside the layers"),
        ({"a.{layer}": "Qcur-3"}, "leave out the latter"),
        ({"a": 3}, "must stand for a point"),
        ({"a": {"b": "embd"}}, "put names with dots in quotes"),
        ({"a\n": "embd"}, "control character"),
        ({"a": "embd\n"}, "which is no point"),
        ({"a": "ffn_moe_x-²"}, "which is no point"),
    ],
)
def test_a_table_that_is_not_sound_is_refused(tmp_path: Path, entries: dict[str, Any], why: str) -> None:
    with pytest.raises(TraceError, match=why) as caught:
        open_trace(dump(tmp_path, "embd"), names=entries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.toml", "their.{layer}.q = 'Qcur'", "put each name and point in quotes"),
        ("a.toml", "model.norm = 'result_norm'", r'put names with dots in quotes, "model\.…"'),
        ("a.toml", "a = " + "[" * 5000, "a.toml"),
        ("a.json", "[]", "must be a JSON object"),
        ("a.json", '{"a": 1, "a": 2}', "comes twice"),
        ("a.toml", "#" * 300_000, "larger than 262,144 bytes"),
        ("b.toml", None, "cannot be read: No such file"),
        ("hff", None, "names 'hff' are not known: give firstdiff, llama.cpp, hf or a table"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: str | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(TraceError, match=why) as caught:
        open_trace(dump(tmp_path / "run", "embd"), names=name if name == "hff" else path)
    assert "\n" not in str(caught.value)


def test_a_manifest_names_no_file_outside_itself(tmp_path: Path) -> None:
    table(tmp_path / "a.toml", '"a" = "embd"')
    with pytest.raises(TraceError, match=r"trace\.json: names .* are not known: give .*, or a table of names"):
        open_trace(dump(tmp_path, "a", names="a.toml"))


def test_two_names_of_one_site_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"'their\.3\.q' and 'Qcur-3' both mean Qcur-3"):
        open_trace(dump(tmp_path, "their.3.q", "Qcur-3"), names=THEIRS)


@pytest.mark.slow
def test_a_large_table_and_many_names_stay_quick(tmp_path: Path) -> None:
    names = {f"a{i}.{{layer}}.{i % 7}": "Qcur" for i in range(5000)}
    np.savez(tmp_path / "run.npz", **{f"b{i}.1.2.3.4.5.6.7.8.9": np.zeros(1) for i in range(2000)})
    assert len(open_trace(tmp_path / "run.npz", tokens=[1], names=names).unknown) == 2000


# Names that are not understood


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("layer_3_q_proj", "Qcur"),
        ("blk.3.attn_q", "Qcur"),
        ("blk.3.attn_k", "Kcur"),
        ("layers.3.attention.wv", "Vcur"),
        ("layer3.selfAttention.queryProj", "Qcur"),
        ("layer3.key_rotated", "Kcur_rope"),
        ("blk.3.q_rope", "Qcur_rope"),
        ("layer_3_input_layernorm", "attn_norm"),
        ("layer_3 attention output", "attn_out"),
        ("layer_3_attn_probs", "kq_soft_max"),
        ("layer_3_attention_scores", "kq"),
        ("layer3.mlp.down_proj", "ffn_out"),
        ("blk.3.ffn_gate", "ffn_gate"),
        ("layer_3_hidden_states", "l_out"),
        ("layer_3_output", "l_out"),
        ("token_embeddings", "embd"),
        ("final_norm", "result_norm"),
        ("logits", "result_output"),
        ("attn_nrom-3", "attn_norm"),
        ("wall_clock", None),
        ("zzz-3", None),
        ("²", None),
    ],
)
def test_the_nearest_point_is_suggested(name: str, point: str | None) -> None:
    assert nearest(name) == point


def test_unknown_names_are_kept_and_explained(tmp_path: Path) -> None:
    folder = dump(tmp_path, "layer_0_q_proj", "layer_1_q_proj", "embd", "wall_clock", "layer_0_q")
    trace = open_trace(folder)
    assert [(name.name, name.pattern, name.nearest) for name in trace.unknown] == [
        ("layer_0_q_proj", "layer_{layer}_q_proj", "Qcur"),
        ("layer_1_q_proj", "layer_{layer}_q_proj", "Qcur"),
        ("wall_clock", "wall_clock", None),
        ("layer_0_q", "layer_{layer}_q", "Qcur"),
    ]
    assert trace[Site(0, None, "layer_1_q_proj")][0, 0] == 1
    assert [(row.name, row.point, row.layer, row.nearest) for row in explain_names(trace)] == [
        ("layer_0_q_proj", None, 0, "Qcur"),
        ("layer_1_q_proj", None, 1, "Qcur"),
        ("embd", "embd", None, None),
        ("wall_clock", None, None, None),
        ("layer_0_q", None, 0, "Qcur"),
    ]
    assert names_in(folder) == explain_names(trace)


def test_a_suggested_table_is_one_that_is_read(tmp_path: Path) -> None:
    folder = dump(tmp_path, "layer_0_q_proj", "layer_1_q_proj", "layer_0_q", "logits", "attention_output", "wall_clock")
    suggested = suggested_table(open_trace(folder))
    assert suggested == {"layer_{layer}_q_proj": "Qcur", "logits": "result_output"}
    trace = open_trace(folder, names=suggested)
    assert [str(site) for site in trace][:2] == ["Qcur-0", "Qcur-1"]
    assert [name.name for name in trace.unknown] == ["layer_0_q", "attention_output", "wall_clock"]


def test_our_own_traces_explain_themselves(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", engine={}, model={}) as writer:
        writer.step(Step((1,), (0,)), {"embd": np.ones((1, 2)), "Qcur-3": np.ones((1, 2))})
    trace = open_trace(tmp_path / "run")
    held = Trace.from_arrays(trace.steps, {site: trace[site] for site in trace}, engine={}, model={})
    assert explain_names(held) == explain_names(trace)
    assert [(row.point, row.layer) for row in explain_names(trace)] == [("embd", None), ("Qcur", 3)]
    assert trace.names == "firstdiff"
    assert trace.notes == ()


def test_unicode_names_are_kept(tmp_path: Path) -> None:
    assert read(tmp_path, "νόρμα", "слой_3_выход") == {"νόρμα": "νόρμα", "слой_3_выход": "слой_3_выход"}
    folder = dump(tmp_path / "mapped", "слой.3.выход")
    assert list(map(str, open_trace(folder, names={"слой.{layer}.выход": "l_out"}))) == ["l_out-3"]
