"""A candidate's own layout: a hypothesis is run on its own rows, and what it gives is laid back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders.models import synthetic
from firstdiff.dumps import Site
from firstdiff.explaining.attempt import Fault, Means, attempt, explaining
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.search import search
from firstdiff.hypotheses import TABLE, Scene
from firstdiff.hypotheses.frame import AS_THE_REFERENCE, Frame
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import Derived, linear, rope
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms

D = 32
POSITIONS = range(40)


def halves(x: Array) -> Array:
    """Heads of pairs of neighbours in half-split order, [..., D]."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def neighbours(x: Array) -> Array:
    """The inverse."""
    return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)


def own(call: Call) -> Call:
    """The rotation of a candidate whose heads are in half-split order, where the reference pairs neighbours."""
    return call.with_arguments(x=halves(call.argument("x")), pairing="half")


HALF_SPLIT = Frame(own, there=halves, back=neighbours)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("frame"), n_layer=1))


@pytest.fixture
def call() -> Call:
    x = np.random.default_rng(0).standard_normal((len(POSITIONS), 4, D)).astype(np.float32)
    return Call(0, 0, "Qcur_rope", rope, (x, POSITIONS), {"pairing": "interleaved", "base": 10000.0})


def framed(model: Model, frame: Frame) -> Scene:
    return Scene(model, F32, lambda _: None, frame=lambda _call: frame)


def diverging(call: Call, recorded: Array) -> Case:
    computed = call.compute(F32)
    return Case(Site(0, 0, call.point), call, recorded, computed, 1.0, 1e-6, 1e-7, None, ())


def test_a_candidates_own_rotation_laid_back_is_the_references(call: Call) -> None:
    laid_back = HALF_SPLIT.laid_back(own(call))
    np.testing.assert_array_equal(laid_back.compute(F32), call.compute(F32))
    np.testing.assert_array_equal(HALF_SPLIT.there(call.compute(F32)), own(call).compute(F32))
    assert laid_back.argument("pairing") == "half"


@pytest.mark.parametrize("id_", ["rope-pairing", "rope-base", "rope-partial", "rope-offset", "rope-order", "rope-none"])
def test_what_a_candidate_did_on_its_own_rows_is_explained_on_them(model: Model, call: Call, id_: str) -> None:
    """As the reference has it, the recorded result is no rotation of neighbours any more."""
    scene = framed(model, HALF_SPLIT)
    planted = TABLE[id_].first(own(call), framed(model, AS_THE_REFERENCE))
    assert planted is not None
    case = diverging(call, neighbours(planted[1].compute(F32)))
    table = {i: h for i, h in TABLE.items() if i.startswith("rope-")}
    best, *_ = explaining(case, search(case, Means(scene, table, Failures()), pairs=False).tried)
    assert best.fault.id == id_
    assert best.residual <= 1e-6


@pytest.mark.parametrize("frame", [AS_THE_REFERENCE, HALF_SPLIT])
def test_the_frame_decides_which_pairing_is_the_wrong_one(model: Model, call: Call, frame: Frame) -> None:
    theirs = neighbours(rope(halves(call.argument("x")), POSITIONS, pairing="interleaved", base=1e4, arithmetic=F32))
    case = diverging(call, theirs)
    tried = attempt(case, framed(model, frame), Fault(((TABLE["rope-pairing"], {}),)))
    assert tried is not None
    assert tried.explains == (frame is HALF_SPLIT)


def test_a_pair_of_faults_is_made_on_the_candidates_rows_and_laid_back_once(model: Model, call: Call) -> None:
    parts = (TABLE["rope-pairing"], {}), (TABLE["rope-base"], {"base": 5e5})
    changed = Fault(parts).change(0, call, framed(model, HALF_SPLIT))
    assert changed is not None
    theirs = rope(halves(call.argument("x")), POSITIONS, pairing="interleaved", base=5e5, arithmetic=F32)
    np.testing.assert_array_equal(changed.compute(F32), neighbours(theirs))
    case = diverging(call, neighbours(theirs))
    table = {h.id: h for h, _ in parts}
    best, *_ = explaining(case, search(case, Means(framed(model, HALF_SPLIT), table, Failures())).tried)
    assert best.fault.id == "rope-pairing + rope-base"


def test_the_terms_of_a_product_are_laid_back_with_it(model: Model) -> None:
    x = np.random.default_rng(0).standard_normal((5, model.hp.n_embd)).astype(np.float32)
    weight = model.weights.layer(0)["attn_q.weight"]
    right = Call(0, 0, "Qcur", linear, (x, weight), {"heads": model.hp.n_head})
    rows = halves(np.arange(weight.shape[0]).reshape(-1, D)).reshape(-1)
    frame = Frame(lambda c: c.with_arguments(weight=c.argument("weight").pick(rows)), there=halves, back=neighbours)
    laid_back = frame.laid_back(frame.own(right))
    np.testing.assert_allclose(laid_back.compute(F32), right.compute(F32), rtol=1e-4, atol=1e-5)
    sizes, expected = terms(laid_back), terms(right)
    assert sizes is not None
    assert expected is not None
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)
    assert isinstance(laid_back.op, Derived)
    assert laid_back.op.__name__ == "linear"


def test_as_the_reference_nothing_is_changed(call: Call) -> None:
    assert AS_THE_REFERENCE.own(call) is call
    assert AS_THE_REFERENCE.laid_back(call) is call
    assert replace(AS_THE_REFERENCE).laid_back(call) is call
