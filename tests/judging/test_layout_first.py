"""Layout first: an engine that is wrong at every layer is read in its own order of head dimensions all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import attribute, dump, judge
from builders.relaid import ROTATED, half_split, interleaved, relaid, without_first_step
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.dumps.points import Kind, of_kind
from firstdiff.judging.layouts import HALF, PAIRS
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.verdict import Verdict

PROMPT = [1, *range(60, 83)]
LATER = [[5], [77]]
LAYERS = 4
ORDERS = {"llama": (HALF, half_split), "qwen2": (PAIRS, interleaved)}
"""The order that is not the file's, and how its dump is made of the reference's."""

SMALL = {"n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 96}
DROPPED = 8


def _last_inputs_dropped(call: Call) -> Call:
    """A product whose kernel leaves the last inputs out, whatever the order of its outputs."""
    if call.op is not linear:
        return call
    x = np.array(call.argument("x"))
    x[:, -DROPPED:] = 0
    return call.with_arguments(x=x)


def _planted(id_: str) -> Callable[[Model], Trace]:
    return lambda model: replace(plant(model, PROMPT, (id_, None), decode=2)[0], engine={"name": "unknown"})


PRODUCTS = of_kind(Kind.PRODUCT, Kind.LOGITS)
SOFTMAX = ("kq_soft_max",)
ROTATIONS = ("Qcur_rope", "Kcur_rope")

FAULTS: dict[str, tuple[tuple[str, ...], Callable[[Model], Trace]]] = {
    "another base": (ROTATIONS, _planted("rope-base")),
    "no rotation": (ROTATIONS, _planted("rope-none")),
    "positions doubled": (
        ROTATIONS,
        lambda m: dump(m, PROMPT, before=attribute("scale", 2.0, *ROTATIONS), later=LATER),
    ),
    "an epsilon of 0.1": (of_kind(Kind.NORM), _planted("norm-eps")),
    "the last inputs dropped": (PRODUCTS, lambda m: dump(m, PROMPT, before=_last_inputs_dropped, later=LATER)),
    "codes in another order": (("embd", *PRODUCTS), _planted("nibble-order")),
    "no scale": (SOFTMAX, _planted("scale-missing")),
    "a softmax that is not normalised": (SOFTMAX, _planted("softmax-unnormalised")),
}
"""What is wrong at every layer and step, and the points that it touches. None of it depends on the order of rows."""

HELD: dict[str, Callable[[Trace], Trace]] = {
    "all": lambda trace: trace,
    "without products of Q and K": lambda trace: trace.without(lambda site: site.point in ("Qcur", "Kcur")),
    "without step 0": without_first_step,
    "without either": lambda trace: without_first_step(trace).without(lambda site: site.point in ("Qcur", "Kcur")),
}


@cache
def of_architecture(arch: str, folder: Path) -> Model:
    return open_model(tiny(arch, folder, file_type="Q4_0", n_layer=LAYERS, **SMALL))


@pytest.fixture(params=ORDERS)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@cache
def wrong(arch: str, folder: Path, fault: str) -> Trace:
    return FAULTS[fault][1](of_architecture(arch, folder))


def laid_out(trace: Trace, arch: str, **said: str) -> Trace:
    """The dump of an engine in the other order."""
    change = ORDERS[arch][1]
    return relaid(trace, lambda site, x: change(x) if site.point in ROTATED else x, **said)


def orders(verdict: Verdict) -> dict[str, str]:
    return {point: says for point, says in verdict.layouts.items() if point in ROTATED}


def assert_only_what_is_touched(verdict: Verdict, points: tuple[str, ...]) -> None:
    """Each site that diverges is touched, or spans one that is and that was not recorded."""
    accused = [s for s in verdict.diverging if not {s.point, *(site.point for site in s.segment)} & {*points}]
    assert [str(s.site) for s in accused] == []
    assert {s.layer for s in verdict.diverging} >= set(range(LAYERS))


UNTOLD = "codes in another order", ("without products of Q and K", "without either")
"""Numbers that have nothing to do with the right ones, in any order, and nothing recorded before: if not their biases,
nothing tells."""


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("order", ["the file's", "the other"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_at_every_layer_is_no_order_of_dimensions(
    arch: str, folder: Path, fault: str, order: str, held: str
) -> None:
    other = order == "the other"
    trace = HELD[held](wrong(arch, folder, fault))
    trace = laid_out(trace, arch) if other else trace
    verdict = judge(of_architecture(arch, folder), trace, budget=0.0)  # what explains it is not asked
    recorded = {site.point for site in trace} & {*ROTATED}
    assert_only_what_is_touched(verdict, FAULTS[fault][0])
    theirs = dict.fromkeys(recorded, ORDERS[arch][0]) if other else {}
    assert orders(verdict) in ([theirs, {}] if fault == UNTOLD[0] and held in UNTOLD[1] else [theirs])


@pytest.mark.slow
@pytest.mark.parametrize("names", ["firstdiff", "hf"])
def test_where_no_number_tells_the_order_the_names_do(folder: Path, names: str) -> None:
    trace = laid_out(HELD[UNTOLD[1][0]](wrong("llama", folder, UNTOLD[0])), "llama", names=names)
    verdict = judge(of_architecture("llama", folder), trace, budget=0.0, table={})
    assert_only_what_is_touched(verdict, FAULTS[UNTOLD[0]][0])
    rotated = dict.fromkeys(("Qcur_rope", "Kcur_rope", "k_cache"), HALF)
    assert orders(verdict) == (rotated if names == "hf" else {})
    knowing = judge(of_architecture("llama", folder), trace, budget=0.0)  # with the fault that all products have
    assert orders(knowing) == rotated
