"""Several passes at once: each probe sees what it sees alone, and weights are read once for all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.command_line import Command
from builders.engines import recorded_by_reference
from builders.every_architecture import toy
from builders.models import synthetic
from firstdiff.dumps import Site, Step, Trace, open_trace
from firstdiff.engines.opening import open_reference
from firstdiff.engines.reference import Recording
from firstdiff.judging.drift import Drift
from firstdiff.judging.passes import Pass, run_trace, together
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model, open_model
from firstdiff.model.synthetic import Llama
from firstdiff.model.weights import Weight

SHAPE = Llama(n_layer=6, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("model") / "model.gguf", SHAPE))


@pytest.fixture(scope="module")
def traces(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """A right run and a wrong one, of a prompt and two steps."""
    folder = tmp_path_factory.mktemp("traces")
    for name, bugs in (("right", ()), ("wrong", ("rope-base", 2))):
        recorded_by_reference(model.gguf.path, folder / name, bugs) if bugs else recorded_by_reference(
            model.gguf.path, folder / name
        )
    return [open_trace(folder / name) for name in ("right", "wrong")]


def replayed_alone(model: Model, trace: Trace) -> Replay:
    probe = Replay(F32, trace)
    run_trace(model, trace, probe)
    return probe


def passes_of(model: Model, traces: list[Trace]) -> list[Pass]:
    return [Pass(model, trace.steps, Replay(F32, trace)) for trace in traces]


def test_replays_side_by_side_find_what_each_finds_step_by_step(model: Model, traces: list[Trace]) -> None:
    made = passes_of(model, traces)
    together(made)
    for each, trace in zip(made, traces, strict=True):
        assert isinstance(each.probe, Replay)
        alone = replayed_alone(model, trace)
        found, wanted = each.probe.settled(), alone.settled()
        assert [(s.site, s.status) for s in found] == [(s.site, s.status) for s in wanted]
        near = [(s.local_error, o.local_error) for s, o in zip(found, wanted, strict=True)]
        assert all(a == pytest.approx(b, abs=3e-7) for a, b in near)


def test_who_goes_along_changes_no_bit(model: Model, traces: list[Trace]) -> None:
    alone, beside = passes_of(model, traces[1:]), passes_of(model, traces)
    drift = Drift(F32, traces[0])
    together(alone)
    together([*beside, Pass(model, [drift.all_steps], drift)])
    assert isinstance(alone[0].probe, Replay)
    assert isinstance(beside[1].probe, Replay)
    assert alone[0].probe.settled() == beside[1].probe.settled()


def test_no_weight_is_read_twice(model: Model, traces: list[Trace], monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[tuple[str, int]] = Counter()
    rows = Weight.rows

    def counted(self: Weight, start: int, stop: int, buffer: Any = None) -> Any:
        read[self.name, start] += 1
        return rows(self, start, stop, buffer)

    monkeypatch.setattr(Weight, "rows", counted)
    drift = Drift(F32, traces[0])
    together([*passes_of(model, [traces[0], traces[0]]), Pass(model, [drift.all_steps], drift)])
    assert len({name for name, _ in read}) == 7 * SHAPE.n_layer + 1
    assert set(read.values()) == {1}


@pytest.mark.llama
def test_an_experts_weight_is_read_once_for_all_tokens_that_chose_it(
    llama: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = open_reference(toy("qwen3moe", tmp_path), tier="graph")
    steps = [Step((9, 4, 70, 33), (0, 1, 2, 3)), Step((12,), (4,))]
    made = []
    for start in (0, 1):  # two runs of other tokens
        probe = Recording(F32)
        tokens = [Step(tuple(t + start for t in step.tokens), step.positions) for step in steps]
        tensors = {}
        for index, _ in enumerate(mixture.forward(tokens, probe)):
            tensors |= {Site.of_key(key, index): x for key, x in probe.finish().items()}
        made.append(Trace.from_arrays(tokens, tensors, engine={"name": "mine", "arithmetic": "f32"}, model={}))
    alone = [Replay(F32, trace) for trace in made]
    for probe, trace in zip(alone, made, strict=True):
        run_trace(mixture, trace, probe)
    read: Counter[str] = Counter()
    rows = Weight.rows

    def counted(self: Weight, start: int, stop: int, buffer: Any = None) -> Any:
        read[self.name] += (stop - start) * self.shape[-1]
        return rows(self, start, stop, buffer)

    monkeypatch.setattr(Weight, "rows", counted)
    beside = [Replay(F32, trace) for trace in made]
    together([Pass(mixture, trace.steps, probe) for trace, probe in zip(made, beside, strict=True)])
    for one, other in zip(alone, beside, strict=True):
        assert [(s.site, s.status) for s in one.settled()] == [(s.site, s.status) for s in other.settled()]
    for name, of in mixture.gguf.tensors.items():
        if "_exps.weight" in name:
            assert 0 < read[name] <= np.prod(of.shape)


def test_the_reference_runs_freely_beside_others(model: Model, traces: list[Trace]) -> None:
    drift, alone = Drift(F32, traces[0]), Drift(F32, traces[0])
    together([*passes_of(model, traces), Pass(model, [drift.all_steps], drift)])
    for _ in model.forward([alone.all_steps], alone):
        pass
    assert drift.drifts.keys() == alone.drifts.keys()
    assert all(drift.drifts[site] == pytest.approx(alone.drifts[site], abs=1e-6) for site in alone.drifts)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(drift.logits, alone.logits, strict=True))


def test_a_verdict_is_the_same_bytes_whatever_the_number_of_jobs(
    model: Model,
    traces: list[Trace],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = Command(capfd)
    right, wrong = (trace.path for trace in traces)
    said = [
        command("diff", wrong, right, "--model", model.gguf.path, "--json", "--jobs", number).out
        for number in (1, 2, 3)
    ]
    assert said[0].startswith("{")
    assert said[0] == said[1] == said[2]
