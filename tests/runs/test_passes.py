"""Passes over the weights: how often a verdict reads them all. Which there are says firstdiff.runs.first_pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builders.judging import judge
from builders.second_engine import Patch, dumped, heads_left_over, positions_doubled, ran
from builders.tiny_models import tiny
from firstdiff.dumps import Step, Trace
from firstdiff.engines.reference import Recording
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model, open_model
from firstdiff.model.weights import Weight
from firstdiff.runs.admission import admitted
from firstdiff.runs.first_pass import first_pass
from firstdiff.runs.judge import judge as judge_one
from firstdiff.runs.run import Run

LAYERS = 30
"""So many that the handful from which layouts and arithmetic are found is a small part: as many as SmolLM2 has."""

PROMPT = [1, *range(60, 83)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("passes")
    return open_model(tiny("llama", folder, n_layer=LAYERS, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many numbers of each matrix were read from the file, by its name; a lookup of some rows is no reading."""
    count: Counter[str] = Counter()
    rows, values = Weight.rows, Weight.values

    def counted_rows(
        self: Weight, start: int, stop: int, buffer: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        count[self.name] += (stop - start) * self.shape[-1] if self.dense is None else 0
        return rows(self, start, stop, buffer)

    def counted_values(self: Weight) -> npt.NDArray[np.float32]:
        count[self.name] += self.shape[0] * self.shape[-1] if len(self.shape) > 1 and self.dense is None else 0
        return values(self)

    monkeypatch.setattr(Weight, "rows", counted_rows)
    monkeypatch.setattr(Weight, "values", counted_values)
    return count


def passes(model: Model, read: Counter[str]) -> float:
    """The numbers read, in all numbers of the matrices that a forward pass multiplies by."""
    matrices = {name: t for name, t in model.gguf.tensors.items() if len(t.shape) > 1 and name != "token_embd.weight"}
    return sum(read.values()) / sum(t.shape[0] * t.shape[1] for t in matrices.values())


def trace_of(model: Model, folder: Path, *patches: Patch) -> Trace:
    """A dump in Hugging Face's order that states no arithmetic."""
    return dumped(ran(model.gguf.path, PROMPT, *patches, decode=0), folder / "dump")


def test_a_pass_of_the_reference_reads_all_weights_once(model: Model, read: Counter[str]) -> None:
    for _ in model.forward([Step(tuple(PROMPT), tuple(range(len(PROMPT))))], Recording(F32)):
        pass
    assert passes(model, read) == 1


def test_a_clean_dump_takes_one_pass_and_a_look_at_a_handful_of_layers(
    model: Model, read: Counter[str], tmp_path: Path
) -> None:
    """Layouts, arithmetic, then one pass for the replay and the reference's own run: 1.42 as measured."""
    assert judge(model, trace_of(model, tmp_path)).verdict == "agrees"
    assert passes(model, read) < 1.5


def transposed(model: Any) -> None:
    """Read a square weight of one layer transposed."""
    weight = model.model.layers[3].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous()


def another_epsilon(model: Any) -> None:
    """Have another epsilon in the first norm of every layer."""
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 0.1


FAULTS: dict[str, Patch] = {
    "a norm at every layer": another_epsilon,
    "a rotation": positions_doubled(3),
    "heads left over": heads_left_over(3),
    "a transposed weight": transposed,
    "a rotation at every layer": positions_doubled(*range(LAYERS)),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_another_layout_takes_three_passes(
    model: Model, read: Counter[str], tmp_path: Path, fault: str
) -> None:
    """The counter-check is a pass more: 2.4 as measured.

    Where an operation is wrong at every layer, an arithmetic is sought at the handful too: 2.55. Hypotheses of a
    product read its own weights: 2.95.
    """
    verdict = judge(model, trace_of(model, tmp_path, FAULTS[fault]))
    assert verdict.verdict == "diverges"
    assert all(e.hypothesis is not None for e in verdict.explanations)
    assert passes(model, read) <= 3


def test_several_candidates_and_a_witness_take_the_pass_of_one(
    model: Model, read: Counter[str], tmp_path: Path
) -> None:
    """Of three steps each, all of which are in it. Each candidate is looked at by itself before."""
    run = Run(model)
    traces = [dumped(ran(model.gguf.path, PROMPT, decode=2), tmp_path / name) for name in ("a", "b", "witness")]
    a, b, witness = (admitted(run, trace) for trace in traces)
    read.clear()
    first = first_pass(run, [(a, witness), (b, witness)])
    assert [judge_one(run, one, witness=witness, first=first).verdict for one in (a, b)] == ["agrees"] * 2
    assert passes(model, read) < 1 + 3 * 0.5
