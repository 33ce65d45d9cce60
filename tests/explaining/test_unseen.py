"""Sites that agree: whether an explanation's fault would be seen there."""

from __future__ import annotations

import numpy as np
import pytest

from builders.models import synthetic
from firstdiff.dumps import Site
from firstdiff.explaining.search import Fault
from firstdiff.explaining.unseen import Reach, change, reach
from firstdiff.hypotheses import TABLE, Scene
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import rms_norm, rope
from firstdiff.model.probe import Call

EPS = Fault(((TABLE["norm-eps"], {"eps": 1e-6}),))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    model: Model = open_model(synthetic(tmp_path_factory.mktemp("unseen"), n_layer=3))
    return Scene(model, F32, lambda _site: None)


def agreeing(call: Call) -> Case:
    """A site at which the candidate has what the call gives."""
    right = call.compute(F32)
    return Case(Site(call.step, call.layer, call.point), call, right, right, 0.0, 1.2e-6, 1e-7, None, ())


def norm(layer: int, size: float) -> Case:
    x = size * np.random.default_rng(layer).standard_normal((4, 64)).astype(np.float32)
    return agreeing(Call(0, layer, "attn_norm", rms_norm, (x, None), {"eps": 1e-5}))


def test_an_epsilon_is_below_rounding_where_activations_are_large(scene: Scene) -> None:
    cases = [norm(0, 0.1), norm(1, 10.0), norm(2, 30.0)]
    found = reach(EPS, cases, scene)
    assert found == Reach(tuple(c.site for c in cases[1:]), (cases[0].site,))
    assert found.says(3, 1) == "below rounding, and so perhaps there too: attn_norm at layers 1 and up"
    assert change(EPS, cases[0], scene) == pytest.approx(9e-6 / 2 / 0.01, rel=0.5)


def test_a_fault_that_does_not_apply_is_neither_hidden_nor_absent(scene: Scene) -> None:
    x = np.ones((1, 2, 8), np.float32)
    case = agreeing(Call(0, 0, "Qcur_rope", rope, (x, [0]), {"pairing": "half", "base": 1e4, "scale": 1.0}))
    assert reach(EPS, [case], scene) == Reach((), ())
    assert reach(EPS, [case], scene).says(3, 1) is None


def test_what_needs_a_position_is_hidden_at_token_0(scene: Scene) -> None:
    twice = Fault(((TABLE["rope-twice"], {}),))
    x = np.random.default_rng(0).standard_normal((1, 2, 8)).astype(np.float32)
    how = {"pairing": "half", "base": 1e4, "scale": 1.0}
    first, second = (agreeing(Call(step, 0, "Qcur_rope", rope, (x, [step]), how)) for step in (0, 1))
    assert reach(twice, [first, second], scene) == Reach((first.site,), (second.site,))
