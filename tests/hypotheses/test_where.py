"""To which calls a hypothesis applies: by operation and role, whatever the call is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.models import synthetic
from firstdiff.dumps import Site
from firstdiff.dumps.points import OUTSIDE, Kind
from firstdiff.hypotheses import TABLE, Scene, where
from firstdiff.hypotheses.where import LOGITS, MAKES, NORMS, PRODUCTS, SUMS, Where
from firstdiff.model.arithmetic import F32
from firstdiff.model.attention import attend
from firstdiff.model.engine import open_model
from firstdiff.model.operations import add, linear, rms_norm
from firstdiff.model.probe import Call


def call(point: str, op: Any, layer: int | None = 1, *, order: int = 0) -> Call:
    return Call(0, layer, point, op, (), {}, order=order)


@pytest.mark.parametrize(
    ("meant", "of", "whether"),
    [
        (NORMS, call("attn_norm", rms_norm), True),
        (NORMS, call("Qcur_normed", rms_norm), True),
        (NORMS, call("a name of tomorrow", rms_norm), True),
        (NORMS, call("attn_norm", add), False),
        (PRODUCTS, call("ffn_moe_logits", linear), True),
        (PRODUCTS, call("", linear), True),  # a fused product that is cut later
        (PRODUCTS, call("result_output", linear, None), False),
        (LOGITS, call("result_output", linear, None), True),
        (LOGITS, call("", linear, None), False),
        (SUMS, call("l_out", add), True),
        (SUMS, call("", add), False),  # of two branches, perhaps
        (Where((linear,), carries="QK"), call("Kcur", linear), True),
        (Where((linear,), carries="QK"), call("Vcur", linear), False),
        (Where((linear,), carries="QK"), call("attn_out", linear), False),
        (Where((rms_norm,), inside=True), call("result_norm", rms_norm, None), False),
        (Where((rms_norm,), inside=False), call("result_norm", rms_norm, None), True),
        (Where(None), call("", attend), True),
    ],
)
def test_the_operation_and_the_role_decide(meant: Where, of: Call, *, whether: bool) -> None:
    assert meant.matches(of) == whether


def test_people_see_the_points_of_the_architectures_that_there_are() -> None:
    assert NORMS.points == ("attn_norm", "Qcur_normed", "Kcur_normed", "ffn_norm", "result_norm")
    assert LOGITS.points == ("result_output",)
    assert PRODUCTS.points == ("Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out")
    assert all(h.where.points for h in TABLE.values())


def test_a_hypothesis_is_at_home_where_its_points_are() -> None:
    outside = {id_ for id_, h in TABLE.items() if h.outside_layers}
    assert {"head-untied", "final-norm-missing", "embed-scale", "logit-scale"} <= outside
    assert not {"norm-eps", "weight-swapped", "min-missing", "other-arithmetic"} & outside
    assert all(set(TABLE[id_].where.points) <= set(OUTSIDE) for id_ in outside)


def test_every_family_is_of_operations_whose_points_are_known() -> None:
    families = [family for family in vars(where).values() if isinstance(family, Where) and family.ops is not None]
    assert {op for family in families for op in family.ops or ()} <= set(MAKES)
    assert {kind for kinds in MAKES.values() for kind in kinds} <= set(Kind)


def test_what_was_there_already_is_what_the_run_had_computed(tmp_path: Path) -> None:
    """Feed-forward before attention, and a point that no table has: the run says what came before."""
    model = open_model(synthetic(tmp_path, n_layer=2))
    names = ["embd", "ffn_up-0", "attn_norm-0", "l_out-0", "ffn_up-1", "ffn_moe_new-1", "attn_norm-1", "Qcur-1"]
    ran = {Site.of_key(name, 0): order for order, name in enumerate(names)}
    x = {site: order * np.arange(1, 13, dtype=np.float32).reshape(3, 4) for site, order in ran.items()}
    scene = Scene(model, F32, x.get, ran)
    late = call("attn_norm", rms_norm, order=6)
    assert scene.before(late) == ["embd", "ffn_up", "ffn_moe_new"]
    assert scene.before(late, layers=-1) == ["ffn_up", "attn_norm", "l_out"]
    taken = Call(0, 1, "attn_norm", rms_norm, (np.zeros((3, 4), np.float32), None), {"eps": 1e-5}, order=6)
    wrong = TABLE["wrong-input"]
    ways = list(wrong.ways(taken, scene, None))
    assert [values["point"] + values["of"] for values in ways] == [
        "ffn_up", "ffn_moe_new", "ffn_up of the layer before", "attn_norm of the layer before",
        "l_out of the layer before",
    ]  # fmt: skip
    assert [wrong.apply(taken, scene, values) is not None for values in ways] == [True] * 5
    assert wrong.told(ways[0]) == "ffn_up taken as input x"
    x |= dict.fromkeys(ran, np.full((3, 4), 2.0, np.float32))  # one number throughout is no tensor's own
    assert [wrong.apply(taken, scene, values) for values in ways] == [None] * 5
    assert scene.before(call("result_norm", rms_norm, None, order=9)) == ["embd", *(n[:-2] for n in names[4:])]
