"""A candidate's weights against the file's: equal within their rounding, or how they are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.models import SMOLLM2, synthetic
from builders.tiny_models import tiny
from firstdiff.commands.weights import weights_command
from firstdiff.dumps import TraceError
from firstdiff.errors import UsageError
from firstdiff.model.engine import Model, open_model
from firstdiff.preflight.weight_statistics import weight_statistics
from firstdiff.preflight.weights import HUGGING_FACE, WeightsCheck, check_weights, describe

Array = np.ndarray[Any, Any]

Q, K, V = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"
NORM, OTHER_NORM = "blk.1.attn_norm.weight", "blk.0.attn_norm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 96}
    return open_model(synthetic(tmp_path_factory.mktemp("weights"), **shape))


def values(model: Model, name: str) -> Array:
    return model.weights[name].values()


def dumped(folder: Path, model: Model, tensors: Mapping[str, Array]) -> WeightsCheck:
    path = folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return check_weights(model, path)


def all_of(model: Model) -> dict[str, Array]:
    return {name: values(model, name) for name in model.gguf.tensors}


def cut_to_bf16(x: Array) -> Array:
    return (np.ascontiguousarray(x).view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x, "agrees"),
        (lambda x: x.astype(np.float64), "agrees"),
        (lambda x: x * np.float32(1 + 2e-7), "agrees within float32 rounding"),
        (lambda x: x.astype(np.float16), "agrees within f16 rounding"),
        (lambda x: x.astype(np.float16).astype(np.float32), "agrees within f16 rounding"),
        (cut_to_bf16, "agrees within bf16 rounding"),
    ],
)
def test_weights_within_their_rounding_agree(
    model: Model, tmp_path: Path, change: Callable[[Array], Array], says: str
) -> None:
    check = dumped(tmp_path, model, {name: change(x) for name, x in all_of(model).items()})
    assert check.agrees
    assert check.sentence == "agrees"
    assert {t.says for t in check.tensors} == {says}
    assert len(check.tensors) == len(model.gguf.tensors)


@pytest.mark.parametrize(
    ("name", "change", "words", "hypothesis"),
    [
        (Q, lambda x: x.T, "is transposed", "weight-transposed"),
        (K, lambda x: x.T, "is transposed, [64, 32]", "weight-transposed"),
        (K, lambda x: x.reshape(x.shape[::-1]), "GGUF's order of dimensions", "weight-reinterpreted"),
        (K, lambda x: x.reshape(x.shape[::-1]).T, "read with its dimensions", "weight-reinterpreted"),
        (K, lambda x: x.T.reshape(x.shape), "the transpose's bytes", "weight-transposed"),
        (Q, lambda x: x * 20, "is 20 times the file's", None),
        (Q, lambda x: -x, "is -1 times", None),
        (Q, lambda x: x * 0, "all zeros", None),
        (NORM, lambda x: x + 1, "1 added to the norm's weight", "norm-plus-one"),
        (NORM, lambda x: x + 0.5, "is the file's plus 0.5", None),
        (NORM, lambda x: x**2, "multiplied in twice", "norm-weight-twice"),
        (Q, lambda x: x[:-1], "(shape [63, 64]), where the file has 4,096", None),
        (
            Q,
            lambda x: x.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64),
            "Hugging Face's order",
            "qk-permutation",
        ),
    ],
)
def test_a_wrong_weight_is_described(
    model: Model, tmp_path: Path, name: str, change: Callable[[Array], Array], words: str, hypothesis: str | None
) -> None:
    check = dumped(tmp_path, model, {name: change(values(model, name))})
    assert not check.agrees
    assert words in check.sentence
    assert name in check.sentence
    assert check.tensors[0].hypothesis == hypothesis


@pytest.mark.parametrize(
    ("name", "other", "hypothesis"),
    [
        (NORM, OTHER_NORM, "weight-of-other-layer"),
        (V, K, "weight-swapped"),
        (V, "blk.1.attn_k.weight", None),  # of another layer and another name
    ],
)
def test_another_tensor_s_values_are_recognised(
    model: Model, tmp_path: Path, name: str, other: str, hypothesis: str
) -> None:
    check = dumped(tmp_path, model, {name: values(model, other)})
    assert check.sentence.startswith(f"{name} holds the values of {other}")
    assert check.tensors[0].hypothesis == hypothesis


def test_nan_is_counted_and_one_wrong_value_is_placed(model: Model, tmp_path: Path) -> None:
    x = values(model, Q).copy()
    x[3, 5] += 1
    check = dumped(tmp_path, model, {Q: x})
    assert "1 of 4,096 values; greatest at [3, 5]" in check.sentence
    x[3, 5] = np.nan
    assert "1 values that are NaN" in dumped(tmp_path, model, {Q: x}).sentence


def test_names_of_hugging_face_and_names_without_weight_are_understood(model: Model, tmp_path: Path) -> None:
    check = dumped(
        tmp_path,
        model,
        {
            "model.layers.1.input_layernorm.weight": values(model, NORM),
            "model.layers.0.mlp.down_proj.weight": values(model, "blk.0.ffn_down.weight"),
            "model.norm.weight": values(model, "output_norm.weight"),
            "blk.0.attn_v": values(model, V),
            "something.else": values(model, V),
        },
    )
    assert check.agrees
    assert [t.name for t in check.tensors] == [V, "blk.0.ffn_down.weight", NORM, "output_norm.weight"]
    assert check.unknown == ("something.else",)
    assert "something.else" in describe(check)


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def half_split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(tiny(request.param, tmp_path_factory.mktemp("half"), n_layer=2))


def test_every_tensor_of_a_layer_has_a_name_of_hugging_face(half_split: Model, model: Model, tmp_path: Path) -> None:
    for each in (half_split, model):
        own = {f"blk.1.{ours}": f"model.layers.1.{theirs}" for theirs, ours in HUGGING_FACE.items()}
        names = [name for name in each.gguf.tensors if name.startswith("blk.1.")]
        given = {own[stem] + dot + kind: values(each, stem + dot + kind)
                 for stem, dot, kind in (name.rpartition(".") for name in names)}  # fmt: skip
        check = dumped(tmp_path, each, given)
        assert check.agrees
        assert [t.name for t in check.tensors] == names
        assert not check.unknown


def test_names_of_norms_that_an_architecture_does_not_have_are_unknown(model: Model, tmp_path: Path) -> None:
    given = "model.layers.0.self_attn.q_norm.weight"
    assert dumped(tmp_path, model, {given: np.ones(16, np.float32)}).unknown == (given,)


def by_halves(x: Array, heads: int) -> Array:
    """Rows (2i, 2i + 1) of each head where rows (i, i + head_dim / 2) were."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def test_another_order_of_rows_is_hugging_face_s_only_where_pairs_are_interleaved(
    half_split: Model, model: Model, tmp_path: Path
) -> None:
    for each, of_hugging_face in ((model, True), (half_split, False)):
        check = dumped(tmp_path, each, {K: by_halves(values(each, K), each.hp.n_head_kv)})
        assert not check.agrees
        assert check.tensors[0].hypothesis == "qk-permutation"
        assert ("right only with half-split pairs" in check.sentence) == of_hugging_face


def test_biases_are_explained_by_the_table(tmp_path: Path) -> None:
    qwen2 = open_model(tiny("qwen2", tmp_path, n_layer=2))
    bias = "blk.1.attn_k.bias"
    (check,) = dumped(tmp_path, qwen2, {bias: 2 * values(qwen2, bias)}).tensors
    assert (check.says, check.hypothesis) == ("is wrong: the bias added twice", "bias-twice")


def test_one_value_that_is_a_little_off_is_no_fault_of_all(model: Model, tmp_path: Path) -> None:
    x = values(model, Q).copy()
    x[3, 5] *= np.float32(1.01)
    (check,) = dumped(tmp_path, model, {Q: x}).tensors
    assert check.hypothesis is None
    assert "differs" in check.says
    assert "greatest at [3, 5]" in check.says


def test_a_tied_output_is_compared_with_the_embedding(tmp_path: Path) -> None:
    model = open_model(synthetic(tmp_path, n_layer=1, n_embd=32, n_head=2, n_head_kv=1, head_dim=16, tied=True))
    check = dumped(tmp_path, model, {"lm_head.weight": values(model, "token_embd.weight")})
    assert check.agrees


def test_nothing_compared_is_no_pass(model: Model, tmp_path: Path) -> None:
    check = dumped(tmp_path, model, {"x": np.zeros(3, np.float32)})
    assert not check.agrees
    assert "none of the 1 names" in check.sentence
    assert weights_command(model=model.gguf.path, against=tmp_path)[2] == 4


def test_a_damaged_file_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(TraceError, match=r"weights\.safetensors"):
        check_weights(model, path)


@pytest.mark.smollm2
def test_norm_weights_that_look_too_small_are_what_the_file_holds() -> None:
    model = open_model(SMOLLM2)
    (found,) = weight_statistics(model, ["blk.0.attn_norm.weight"])
    assert found.statistics is not None
    x = values(model, found.name).astype(np.float64)
    assert found.statistics.rms == pytest.approx(np.sqrt((x**2).mean()))
    assert found.statistics.rms < 0.05
    assert (found.statistics.min, found.statistics.max) == (x.min(), x.max())
    assert found.statistics.mean == pytest.approx(x.mean())


@pytest.mark.smollm2
def test_quantised_weights_agree_with_their_values_in_f16(tmp_path: Path) -> None:
    model = open_model(SMOLLM2)
    name = "blk.3.attn_k.weight"
    assert dumped(tmp_path, model, {name: values(model, name).astype(np.float16)}).agrees


def test_the_command_prints_statistics_or_compares(model: Model, tmp_path: Path) -> None:
    text, plain, code = weights_command(model=model.gguf.path, names=["attn_norm", "blk.*.ffn_up.weight"])
    assert code == 0
    assert [w["name"] for w in plain["tensors"]] == [OTHER_NORM, NORM, "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    assert "96 × 64" in text
    dumped(tmp_path, model, {Q: values(model, Q) * 2, K: values(model, K)})
    text, plain, code = weights_command(model=model.gguf.path, against=tmp_path)
    assert code == 1
    assert "is 2 times the file's" in text
    assert plain["compared"] == 2
    assert weights_command(model=model.gguf.path, against=tmp_path, names=["attn_k"])[2] == 0
    with pytest.raises(UsageError, match="no tensor"):
        weights_command(model=model.gguf.path, names=["nonsense"])
