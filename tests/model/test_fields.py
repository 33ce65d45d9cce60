"""What a file states about its model: nothing of it is silently ignored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from builders.models import TINY, stored, synthetic
from firstdiff.model import engine
from firstdiff.model.architectures import llama
from firstdiff.model.engine import open_model
from firstdiff.model.errors import ModelError
from firstdiff.model.fields import HARMLESS, Fields
from firstdiff.model.gguf import open_gguf

U32 = np.uint32


@pytest.mark.parametrize(("name", "value"), [("attention.head_count_kv", 3), ("attention.key_length", 15)])
def test_a_message_names_the_key_of_the_files_own_architecture(tmp_path: Path, name: str, value: int) -> None:
    stated = {key: None for key in open_gguf(synthetic(tmp_path / "a.gguf", TINY)).metadata if key.startswith("llama.")}
    given = {"llama." + name: U32(value)}
    gguf = open_gguf(synthetic(tmp_path / "a.gguf", TINY, metadata=given))
    renamed = {"other." + key.removeprefix("llama."): gguf.metadata[key] for key in stated}
    numbers = {k: float(v) if isinstance(v, float) else U32(v) for k, v in renamed.items()}
    gguf = open_gguf(synthetic(tmp_path / "b.gguf", TINY, metadata=stated | numbers))
    with pytest.raises(ModelError, match=rf"'other\.{name}'"):
        llama.read(Fields(gguf, "other"))


NAMES = st.from_regex(r"[a-z_]{1,12}(\.[a-z_]{1,12}){0,2}", fullmatch=True)
VALUES = st.one_of(
    st.integers(0, (1 << 32) - 1).map(U32),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=200),
    st.lists(st.text(max_size=5), max_size=40),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=40).map(lambda x: np.array(x, np.int32)),
)


@pytest.mark.slow
@given(name=NAMES, value=VALUES)
def test_a_hyperparameter_that_nobody_reads_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    fields = Fields(open_gguf(synthetic(tmp_path_factory.getbasetemp() / "known.gguf", TINY)), "llama")
    llama.read(fields)
    assume(name not in fields.asked | HARMLESS.keys())
    path = synthetic(tmp_path_factory.getbasetemp() / "unknown.gguf", TINY, metadata={f"llama.{name}": value})
    with pytest.raises(ModelError) as caught:
        open_model(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: hyperparameter 'llama.{name}' is ")
    assert said.endswith("take another model")
    assert said.isprintable()
    assert len(said) < len(str(path)) + 300


def test_the_first_of_several_unread_hyperparameters_is_named_and_the_others_counted(tmp_path: Path) -> None:
    added = {"llama.attention.scale": 0.5, "llama.logit_scale": 8.0, "llama.vocab_size": U32(320)}
    with pytest.raises(ModelError, match=r"'llama\.attention\.scale' \(and 1 more\) is 0\.5, which the reference does"):
        open_model(synthetic(tmp_path / "m.gguf", TINY, metadata=added))


STATED = [
    ("vocab_size", U32(320), U32(321)),
    ("tensor_data_layout", "Meta AI original pth", "jploski"),
    ("attention.layer_norm_epsilon", 1e-6, None),
    ("attention.sliding_window", U32(64), U32(63)),
    ("attention.sliding_window", U32(0), "none"),
    ("rope.scaling.original_context_length", U32(32), None),
    ("rope.scaling.attn_factor", 1.0, 1.1),
    ("attention.clamp_kqv", 0.0, 8.0),
    ("final_logit_softcapping", 0.0, 30.0),
    ("expert_used_count", U32(0), U32(2)),
    ("logit_scale", 1.0, 0.125),
]


@pytest.mark.parametrize(("name", "harmless", "asking"), STATED, ids=str)
def test_a_hyperparameter_that_asks_for_nothing_more_is_harmless_and_no_other_value_is(
    tmp_path: Path, name: str, harmless: object, asking: object
) -> None:
    open_model(synthetic(tmp_path / "harmless.gguf", TINY, metadata={f"llama.{name}": harmless}))
    if asking is not None:
        with pytest.raises(ModelError, match=rf"'llama\.{name}' is"):
            open_model(synthetic(tmp_path / "asking.gguf", TINY, metadata={f"llama.{name}": asking}))


def test_the_keys_of_another_architecture_and_of_the_tokeniser_are_no_hyperparameters(tmp_path: Path) -> None:
    open_model(
        synthetic(tmp_path / "m.gguf", TINY, metadata={"clip.foo": U32(1), "general.foo": "x", "llamas.a": U32(2)})
    )


def test_an_architecture_that_does_not_ask_for_rope_factors_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic(tmp_path / "m.gguf", shape=replace(TINY, rope_factors=True))
    assert open_model(path).weights.get("rope_freqs.weight") is not None
    plain = SimpleNamespace(
        read=llama.read, tensors=lambda hp: (t for t in llama.tensors(hp) if t[0] != "rope_freqs.weight")
    )
    monkeypatch.setitem(engine.ARCHITECTURES, "llama", plain)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"tensor 'rope_freqs\.weight' is not one that the reference reads"):
        open_model(path)


@pytest.mark.parametrize("name", ["blk.0.attn_rot_embd.weight", "blk.0.attention.rotary_emb.inv_freq"])
def test_tables_of_cos_and_sin_are_harmless(tmp_path: Path, name: str) -> None:
    open_model(synthetic(tmp_path / "m.gguf", TINY, tensors={name: stored(np.ones(8, np.float32))}))
