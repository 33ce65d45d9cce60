"""How small a fault a dump could have shown: what a pass claims is held against faults of that size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.judging import dump, judge
from builders.models import in_blocks, synthetic
from builders.relaid import hugging_face, last_row, on_disk, relaid, stored_as
from firstdiff.dumps import Site, Trace
from firstdiff.judging.sensitivity import CHANGES, element, sensitivity
from firstdiff.model.arithmetic import ARITHMETICS, Array
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.reports.sentences import sentences
from firstdiff.runs.replaying import Replayed, replayed
from firstdiff.verdict import Fault, Sensitivity, Smallest, Status

PROMPT = (1, *range(60, 99))
TABLE = Path(__file__).parents[1] / "data" / "sensitivity.txt"
OPS = {c.fault: c.op for c in CHANGES}
NUMBERS = {Fault.NORM_EPSILON: "eps", Fault.ROPE_BASE: "base", Fault.SOFTMAX_SCALE: "scale"}

Stored = Callable[[Trace], Trace]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=4))


def with_fault(model: Model, arithmetic: str, fault: Fault, at: Smallest, share: float) -> Trace:
    """The dump of an engine with one number larger by a share, at one place."""

    def before(call: Call) -> Call:
        if Site(call.step, call.layer, call.point) != at.site:
            return call
        if fault in NUMBERS:
            name = NUMBERS[fault]
            return call.with_arguments(**{name: call.argument(name) * (1 + share)})
        weight = call.argument("weight")
        dense = np.array(weight.values())
        if at.element is None:
            dense *= 1 + share
        else:
            row, column = at.element
            dense[row, column] += share * math.sqrt(np.square(dense[row], dtype=np.float64).mean())
        return call.with_arguments(weight=replace(weight, dense=dense))

    return dump(model, PROMPT, before=before, arithmetic=ARITHMETICS[arithmetic], later=())


def told(model: Model, trace: Trace) -> tuple[Replayed, dict[Fault, Sensitivity]]:
    done = replayed(model, trace)
    assert not [s for s in done.sites if s.status is Status.DIVERGES]
    found = sensitivity(model, trace, done.found, done.alignment, done.sites, done.cut)
    return done, {s.fault: s for s in found}


def places(of: dict[Fault, Sensitivity]) -> Iterator[tuple[Fault, Smallest]]:
    for fault, s in of.items():
        yield from ((fault, at) for at in (s.least, s.most) if at is not None and at.share < math.inf)


def layer_outputs(trace: Trace) -> Trace:
    return trace.without(lambda site: site.point not in ("embd", "l_out", "result_norm", "result_output"))


DUMPS: dict[str, tuple[str, Stored]] = {
    "float32": ("f32", lambda t: t),
    "ggml": ("ggml-cpu", lambda t: t),
    "f16": ("f16", lambda t: t),
    "bf16": ("bf16", lambda t: t),
    "tf32": ("tf32", lambda t: t),
    "bf16 operands": ("bf16-operands", lambda t: t),
    "layer outputs of bf16 operands": ("bf16-operands", layer_outputs),
    "stored in f16": ("f32", lambda t: on_disk(t, "f16")),
    "stored in bf16": ("f32", lambda t: on_disk(t, "bf16")),
    "bf16 stored in bf16": ("bf16", lambda t: on_disk(t, "bf16")),
    "Hugging Face's layout": ("f32", lambda t: relaid(t, hugging_face)),
    "the last row": ("f32", lambda t: relaid(t, last_row)),
    "layer outputs": ("f32", layer_outputs),
    "layer outputs of bf16": ("bf16", layer_outputs),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
def test_a_fault_twice_as_large_as_claimed_diverges_and_one_of_half_the_size_does_not(model: Model, name: str) -> None:
    arithmetic, stored = DUMPS[name]
    _, of = told(model, stored(dump(model, PROMPT, arithmetic=ARITHMETICS[arithmetic], later=())))
    assert set(of) == set(Fault)
    wrong = []
    for fault, at in places(of):
        for factor in (2.0, 0.5):
            sites = replayed(model, stored(with_fault(model, arithmetic, fault, at, factor * at.share))).sites
            diverging = [s.site for s in sites if s.status is Status.DIVERGES]
            if diverging != ([at.seen] if factor > 1 else []):
                wrong.append((fault, at, factor, diverging, [(s.local_error,s.floor) for s in sites if s.site==at.seen]))
    assert not wrong
