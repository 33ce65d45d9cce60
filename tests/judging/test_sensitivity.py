"""How small a fault a dump could have shown: what a pass claims is held against faults of that size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.judging import dump, judge
from builders.models import in_blocks
from builders.relaid import hugging_face, last_row, on_disk, relaid
from firstdiff.dumps import Site, Trace
from firstdiff.judging.changes import CHANGES
from firstdiff.judging.sensitivity import sensitivity
from firstdiff.model.arithmetic import ARITHMETICS, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.reports.sentences import sentences
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Fault, Sensitivity, Smallest, Status

PROMPT = (1, *range(60, 99))
TABLE = Path(__file__).parents[1] / "data" / "sensitivity.txt"
NUMBERS = {Fault.NORM_EPSILON: "eps", Fault.ROPE_BASE: "base", Fault.SOFTMAX_SCALE: "scale"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=3))


def stated(arithmetic: str, stored: Callable[[Trace], Trace] = lambda t: t) -> Callable[[Trace], Trace]:
    """The dump of an engine that says what it computes in."""
    return lambda t: replace(stored(t), engine={"name": "someone's engine", "arithmetic": arithmetic})


def only(*points: str) -> Callable[[Trace], Trace]:
    return lambda t: t.without(lambda site: site.point not in points)


LAYERS = only("embd", "l_out", "result_norm", "result_output")


def told(model: Model, trace: Trace) -> dict[Fault, Sensitivity]:
    """What is said of a dump in which nothing diverges."""
    done = replayed(model, trace)
    assert not [s for s in done.sites if s.status is Status.DIVERGES]
    return {s.fault: s for s in sensitivity(model, trace, done.found, done.alignment, done.sites, done.cut)}


def places(of: dict[Fault, Sensitivity]) -> Iterator[tuple[Fault, Smallest]]:
    for fault, s in of.items():
        yield from ((fault, at) for at in (s.least, s.most) if at is not None and at.share < math.inf)


def larger(fault: Fault, at: Smallest, share: float) -> Callable[[Call], Call]:
    """Makes one number of one operation larger by a share, as an engine has it that reads the model wrong."""

    def change(call: Call) -> Call:
        if Site(call.step, call.layer, call.point) != at.site:
            return call
        if fault in NUMBERS:
            name = NUMBERS[fault]
            return call.with_arguments(**{name: call.argument(name) * (1 + share)})
        dense = np.array(call.argument("weight").values())
        if at.element is None:
            dense *= 1 + share
        else:
            row, column = at.element
            dense[row, column] += share * math.sqrt(np.square(dense[row], dtype=np.float64).mean())
        return call.with_arguments(weight=replace(call.argument("weight"), dense=dense))

    return change


DUMPS: dict[str, tuple[str, Callable[[Trace], Trace], Sequence[int]]] = {
    "float32": ("f32", lambda t: t, PROMPT),
    "ggml": ("ggml-cpu", lambda t: t, PROMPT),
    "more tokens than are looked at": ("f32", stated("f32"), (1, *range(60, 200))),
    "one token": ("f32", stated("f32"), (5,)),
    "f16": ("f16", stated("f16"), PROMPT),
    "tf32": ("tf32", stated("tf32"), PROMPT),
    "bf16 operands": ("bf16-operands", stated("bf16-operands"), PROMPT),
    "bf16, stored so": ("bf16", lambda t: on_disk(t, "bf16"), PROMPT),
    "float32 stored in f16": ("f32", stated("f32", lambda t: on_disk(t, "f16")), PROMPT),
    "float32 stored in bf16": ("f32", lambda t: on_disk(t, "bf16"), PROMPT),
    "Hugging Face's layout": ("f32", lambda t: relaid(t, hugging_face), PROMPT),
    "the last row": ("f32", lambda t: relaid(t, last_row), PROMPT),
    "layer outputs": ("f32", stated("f32", LAYERS), PROMPT),
    "layer outputs of bf16": ("bf16", stated("bf16", LAYERS), PROMPT),
    "layer outputs of bf16 operands": ("bf16-operands", stated("bf16-operands", LAYERS), PROMPT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
def test_a_fault_twice_as_large_as_is_claimed_diverges_and_one_of_half_the_size_does_not(
    model: Model, name: str
) -> None:
    arithmetic, stored, prompt = DUMPS[name]
    record = {"arithmetic": ARITHMETICS[arithmetic], "later": ()}
    claimed = list(places(told(model, stored(dump(model, prompt, **record)))))
    assert claimed
    for fault, at in claimed:
        for factor in (2.0, 0.5):
            wrong = dump(model, prompt, before=larger(fault, at, factor * at.share), **record)
            sites = replayed(model, stored(wrong)).sites
            diverging = [s.site for s in sites if s.status is Status.DIVERGES]
            assert diverging == ([at.seen] if factor > 1 else []), (fault, at, factor)


@pytest.mark.parametrize("arithmetic", ["f32", "ggml-cpu", "f16", "bf16", "tf32"])
def test_what_is_said_of_a_dump_is_what_the_bench_found_by_changing_the_engine(arithmetic: str, tmp_path: Path) -> None:
    (line,) = (line for line in TABLE.read_text().splitlines() if line.startswith(f"{arithmetic} "))
    shares = [float(share) for share in re.findall(r"(\S+) \(floor", line)]
    model = open_model(in_blocks("Q8_0", tmp_path, n_layer=2, head_dim=64))
    of = told(model, stated(arithmetic)(dump(model, PROMPT, arithmetic=ARITHMETICS[arithmetic], later=())))
    faults = (Fault.NORM_EPSILON, Fault.ROPE_BASE, Fault.SOFTMAX_SCALE, Fault.WEIGHT)
    for fault, share in zip(faults, shares, strict=True):
        least = of[fault].least
        assert least is not None
        assert share / 2 < least.share < 2 * share, fault


def test_it_is_said_where_a_fault_could_not_show_at_any_size(model: Model) -> None:
    of = told(model, stated("f32")(dump(model, (5,), later=())))
    assert of[Fault.ROPE_BASE].least is not None
    assert of[Fault.ROPE_BASE].least.share == math.inf  # the only token stands at position 0
    assert of[Fault.SOFTMAX_SCALE].least is not None
    assert of[Fault.SOFTMAX_SCALE].least.share == math.inf  # and sees itself alone


def test_of_weights_of_few_bits_a_change_that_is_rounded_away_is_made_larger(model: Model) -> None:
    arithmetic = "bf16-operands+held=bf16"  # where a part in a thousand more is the same number
    of = told(model, stated(arithmetic)(dump(model, PROMPT, arithmetic=arithmetic_named(arithmetic), later=())))
    assert of[Fault.MATRIX].least is not None
    assert of[Fault.MATRIX].least.share < 0.1


def test_nothing_is_said_of_what_only_long_segments_hold(model: Model) -> None:
    ends = ("embd", "l_out-2", "result_output")
    of = told(model, dump(model, PROMPT, later=()).without(lambda site: str(site) not in ends))
    unknown = {fault for fault, s in of.items() if s.least is None}
    assert unknown == {Fault.ROPE_BASE, Fault.SOFTMAX_SCALE}


def test_where_rows_lack_the_first_layer_is_tried_which_nothing_has_to_be_computed_for(model: Model) -> None:
    of = told(model, relaid(dump(model, PROMPT, later=()), last_row))
    assert {at.site.layer for _, at in places(of)} <= {0, None}


def test_steps_that_are_recorded_whole_are_taken_where_others_are_not(model: Model) -> None:
    of = told(model, relaid(dump(model, PROMPT), last_row))
    assert {at.site.step for _, at in places(of)} == {1}
    assert of[Fault.NORM_EPSILON].tried == 2 * 3 + 1


def test_few_products_are_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = stated("ggml-cpu")(dump(model, PROMPT, arithmetic=ARITHMETICS["ggml-cpu"]))
    done = replayed(model, trace)
    compute, count = Call.compute, []
    monkeypatch.setattr(Call, "compute", lambda call, *how: (count.append(call.op is linear), compute(call, *how))[1])
    sensitivity(model, trace, done.found, done.alignment, done.sites, done.cut)
    assert sum(count) == 3 + 3  # three products replayed, and computed once more without ggml's rounding


def test_a_pass_says_how_small_a_fault_would_have_shown_and_nothing_else_does(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = judge(model, dump(model, PROMPT))
    assert {s.fault for s in right.sensitivity} == set(Fault) == {c.fault for c in CHANGES}
    assert sentences(right)[1].startswith("A fault at a single place would have shown from this size on: a norm's")
    monkeypatch.setattr("firstdiff.runs.judge.sensitivity", lambda *_: pytest.fail("it takes time"))
    assert judge(model, dump(model, PROMPT, ("norm-eps", 0))).sensitivity == ()


def test_nothing_is_claimed_where_a_fault_would_raise_the_level(model: Model) -> None:
    verdict = judge(model, LAYERS(dump(model, PROMPT, arithmetic=ARITHMETICS["f32"], later=())))
    claimed = list(places({s.fault: s for s in verdict.sensitivity}))
    assert claimed
    assert {at.seen.layer for _, at in claimed} == {None}  # behind the layers the inputs are recorded
