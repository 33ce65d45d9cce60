"""Every hypothesis is planted and named, and no other fault is named so; `make bench-diagnosis` does it at length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from builders.every_architecture import toy
from builders.hypotheses import OF_GRAPHS
from builders.judging import judge
from builders.known_faults import SHAPES, Plant, held, places, plant_known, tokens_of
from builders.models import FILE_TYPES, MIXED, in_blocks_of_ggml, quantised, synthetic
from builders.other_prompt import OnAnotherPrompt
from builders.tiny_models import tiny
from firstdiff.engines.opening import open_reference
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.blocks import table as blocks
from firstdiff.hypotheses.blocks.buffers import BUFFER_FAULTS
from firstdiff.hypotheses.blocks.faults import BLOCK_FAULTS
from firstdiff.hypotheses.planting import Planted
from firstdiff.hypotheses.where import Where
from firstdiff.model.engine import ARCHITECTURES, Model, open_model
from firstdiff.model.grid_blocks import GRIDS
from firstdiff.model.operations import rms_norm
from firstdiff.model.synthetic import Llama

KINDS = ("Q4_1", "Q8_0", "Q4_K_M", "Q6_K", "Q3_K", "F16", "Q5_K_M", "BF16", "MXFP4", "TQ2_0", "IQ3_XXS", "IQ1_S")
"""Models that every hypothesis applies to one of, small ones with every weight type that faults are known of."""

FEW_BITS = ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", *GRIDS)
UNSEEN = {
    "softmax-no-max": "it changes nothing below scores of 88: see test_a_softmax_without_its_maximum",
}


class Garden:
    """The models, made when one is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = cache(self._model)

    def _model(self, kind: str) -> Model:
        if kind in FEW_BITS:
            return open_model(in_blocks_of_ggml(kind, self._folder, n_layer=4))
        if kind in OF_GRAPHS.values():
            return open_reference(toy(kind, self._folder, keys={"attn_logit_softcapping": 0.1}))
        shape = SHAPES.get(kind, Llama(n_layer=4, biases=kind == "Q4_1"))
        plain = synthetic(self._folder / f"{kind}.f32.gguf", shape)
        types = FILE_TYPES | MIXED
        path = quantised(plain, types[kind], self._folder / f"{kind}.gguf", pure=kind not in MIXED)
        return open_model(path)

    def plant(self, id_: str, kinds: Sequence[str] = KINDS) -> tuple[Model, Plant, str]:
        """A fault in the middle of the first model that it applies to."""
        for kind in [OF_GRAPHS[id_]] if id_ in OF_GRAPHS else kinds:
            model = self.model(kind)
            where, layer = next((w, n) for w, n in places(TABLE[id_], model).items() if w in ("middle", "outside"))
            if id_ == "window-missing":
                layer = 0  # of two, the one with a window
            planted = plant_known(model, tokens_of(kind), [Planted(TABLE[id_], layer)], where)
            if planted is not None and max(planted.changes.values()) > 3.5e-6:
                return model, planted, kind
        raise AssertionError(f"{id_} applies to none of {kinds}")


@pytest.fixture(scope="module")
def garden(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Garden:
    return Garden(tmp_path_factory.mktemp("garden"))


@pytest.mark.parametrize("id_", [i for i in TABLE if i not in UNSEEN])
def test_what_is_planted_is_located_and_named(garden: Garden, id_: str) -> None:
    model, planted, kind = garden.plant(id_)
    outcome = held(model, planted, "f32", name=kind)
    assert outcome.visible
    assert outcome.site
    assert outcome.accused == ()
    assert outcome.found == 1
    assert outcome.named[0] in {"named", "equivalent"}


@pytest.mark.sweep
@pytest.mark.parametrize("id_", [i for i in TABLE if i not in UNSEEN])
def test_a_fault_that_is_not_in_the_table_is_not_named_as_another(garden: Garden, id_: str) -> None:
    model, planted, kind = garden.plant(id_)
    table = {other: h for other, h in TABLE.items() if other != id_}
    # Pairs, which take most of the time, are left to the benchmark.
    same = OnAnotherPrompt(model, tuple(tokens_of(kind)), TABLE[id_])
    outcome = held(model, planted, "f32", name=kind, table=table, pairs=0, same=same)
    assert outcome.site
    assert outcome.named[0] in {"described", "equivalent"}


WAYS_OF_FEW_BITS = [
    (kind, id_)
    for kind in FEW_BITS
    for id_, fault in {**BLOCK_FAULTS, **BUFFER_FAULTS}.items()
    if any(kind in way.kinds for way in fault.ways)
]


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "id_"), WAYS_OF_FEW_BITS)
def test_what_is_wrong_with_blocks_of_few_bits_is_named(garden: Garden, kind: str, id_: str) -> None:
    model, planted, _ = garden.plant(id_, (kind,))
    outcome = held(model, planted, "f32", name=kind)
    assert (outcome.visible, outcome.site, outcome.found, outcome.accused) == (True, True, 1, ())
    assert outcome.named[0] in {"named", "equivalent"}


# Other architectures, which weights and their blocks know nothing of

BIASES = {"bias-missing", "bias-twice"}
WITHOUT = {
    "llama": {"head-dim", "layers-not-run", *BIASES},
    "qwen2": {"head-dim", "layers-not-run"},
    "qwen3": {"head-untied", "layers-not-run", *BIASES},
}
"""What does not apply to each: its heads are of n_embd / n_head dimensions, its output is tied, it has no bias; before
layer 1 there is no layer to be passed over."""

NOT_OF_BLOCKS = [i for i in TABLE if TABLE[i] not in blocks.TABLE and i not in {*UNSEEN, *OF_GRAPHS}]
TOKENS = [1, *range(60, 83)]


@cache
def of_architecture(name: str, folder: Path) -> Model:
    """Three layers, with an epsilon that rounding does not hide."""
    shape = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 96, "eps": 1e-4}
    return open_model(tiny(name, folder, **shape, head_dim=32 if name == "qwen3" else 16))


@pytest.mark.sweep
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("id_", NOT_OF_BLOCKS)
def test_what_is_planted_in_any_architecture_is_located_and_named(
    tmp_path_factory: pytest.TempPathFactory, name: str, id_: str
) -> None:
    model = of_architecture(name, tmp_path_factory.getbasetemp())
    hypothesis = TABLE[id_]
    planted = plant_known(model, TOKENS, [Planted(hypothesis, None if hypothesis.outside_layers else 1)], "middle")
    assert (planted is None) == (id_ in WITHOUT[name])
    if planted is not None:
        outcome = held(model, planted, "f32", name=name)
        assert (outcome.visible, outcome.site, outcome.found, outcome.accused) == (True, True, 1, ())
        assert outcome.named[0] in {"named", "equivalent"}


@pytest.mark.parametrize("id_", [i for i in TABLE if i.startswith("norm-") and i not in OF_GRAPHS])
def test_a_wrong_norm_of_queries_is_named(tmp_path_factory: pytest.TempPathFactory, id_: str) -> None:
    model = of_architecture("qwen3", tmp_path_factory.getbasetemp())
    queries = replace(TABLE[id_], where=Where((rms_norm,), carries="Q"))
    planted = plant_known(model, TOKENS, [Planted(queries, 1)], "middle", decode=0)
    assert planted is not None
    assert list(map(str, planted.changes)) == ["Qcur_normed-1"]
    verdict = judge(model, planted.trace("f32"))
    assert [str(s.site) for s in verdict.diverging] == ["Qcur_normed-1"]
    assert [e.hypothesis for e in verdict.explanations] == [id_]
