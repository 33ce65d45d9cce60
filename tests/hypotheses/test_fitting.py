"""Parameters that are fitted: stated as they are, in the digits that a dump's dtype leaves known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import judge
from builders.models import synthetic
from builders.relaid import last_row, relaid
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.model.arithmetic import F64
from firstdiff.model.engine import Model, open_model
from firstdiff.verdict import Explanation

PROMPT = [1, *range(70, 110)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("fitting"), n_layer=2))


def explained(
    model: Model,
    bug: str,
    dtype: type[np.floating],
    *,
    decode: int = 0,
    reduced: Callable[[Trace], Trace] = lambda trace: trace,
    **values: float | str,
) -> Explanation:
    """The one explanation of a fault with such values, in a dump of a dtype."""
    layer = None if TABLE[bug].outside_layers else 1
    writer = MemoryWriter()
    planted = [Planted(TABLE[bug], layer, values)]
    record_planted(model, PROMPT, writer, arithmetic=F64, decode=decode, planted=planted)
    tensors = {site: x.astype(dtype) for site, x in writer.tensors.items()}
    trace = Trace.from_arrays(writer.steps, tensors, engine={"name": "planted", "arithmetic": "f32"}, model={})
    (explanation,) = judge(model, reduced(trace)).explanations
    assert explanation.hypothesis == bug
    return explanation


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("bug", "name", "value"),
    [
        ("logit-softcap-added", "cap", 8.77),  # not 9
        ("norm-eps", "eps", 0.0037),
        ("rope-base", "base", 12345.0),
        ("rope-base", "base", 500000.0),  # one that is listed
        ("branch-scale", "factor", 0.9876),
        ("branch-scale", "factor", 0.22),
        ("scale-wrong", "scale", 1 / 32),  # listed, and no number of few digits
        ("rope-scale", "factor", 0.7),
        ("glu-clipped", "limit", 1.5),
        ("glu-clipped", "limit", 3.25),  # which a few numbers are beyond
        ("residual-clipped", "bound", 1.234),
    ],
)
def test_a_fitted_number_is_stated_as_it_was_planted(
    small: Model, bug: str, name: str, value: float, dtype: type[np.floating]
) -> None:
    assert explained(small, bug, dtype, **{name: value}).attributes == {name: value}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "name", "value"),
    [
        ("norm-eps", "eps", 1.0),
        ("norm-eps", "eps", 250.0),
        ("norm-eps", "eps", 0.0),
        ("rope-base", "base", 1.5),
        ("rope-base", "base", 1e15),
        ("rope-scale", "factor", 1.0005),  # near to the right one
        ("rope-scale", "factor", -3.25),
        ("rope-offset", "offset", 300),
        ("branch-scale", "factor", -1.0),
        ("branch-scale", "factor", 1234.0),
        ("branch-scale", "factor", 0.01),
        ("residual-scale", "factor", -0.75),
        ("scale-wrong", "scale", -3.0),
        ("softcap-added", "cap", 0.02),
        ("sink-added", "sink", -2.5),
        ("logit-scale", "factor", 4096.0),
        ("rope-yarn-magnitude", "magnitude", 0.01),
    ],
)
def test_a_fit_has_no_ends(small: Model, bug: str, name: str, value: float) -> None:
    assert explained(small, bug, np.float32, **{name: value}).attributes == {name: value}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "values"),
    [
        ("mask-offset", {"offset": -5}),
        ("mask-offset", {"offset": 7}),
        ("cache-padding", {"keys": 1000}),
        ("cache-slot", {"slot": 3}),
        ("token-offset", {"offset": 77}),
        ("token-shifted", {"by": 9}),
        ("rope-factors", {"factor": 5.5}),
        ("rope-partial", {"dims": 10, "over": 32}),
        ("weight-row-offset", {"by": -17}),
    ],
)
def test_a_whole_number_is_sought_where_it_was_observed(small: Model, bug: str, values: dict[str, float]) -> None:
    decode = 1 if bug == "cache-slot" else 0
    assert explained(small, bug, np.float32, decode=decode, **values).attributes == values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "values"),
    [
        ("scale-wrong", {"scale": 0.37}),
        ("rope-partial", {"dims": 10, "over": 32}),
        ("window-added", {"window": 5}),
        ("cache-padding", {"keys": 1000}),
        ("token-offset", {"offset": 77}),
        ("weight-row-offset", {"by": -17}),
        ("weight-view-offset", {"token": 40, "by": 19, "beyond": "then from its start again"}),
    ],
)
def test_a_number_is_sought_in_the_rows_that_were_recorded(
    small: Model, bug: str, values: dict[str, float | str]
) -> None:
    found = explained(small, bug, np.float32, reduced=lambda trace: relaid(trace, last_row), **values)
    assert found.attributes == values


@pytest.mark.slow
def test_a_number_too_small_to_show_is_called_that(small: Model) -> None:
    found = explained(small, "norm-eps", np.float32, eps=1e-13)
    assert found.attributes == {"eps": 0.0}
    assert found.says == "no epsilon, or one too small to show here"


def test_angles_that_are_doubled_have_three_readings(small: Model) -> None:
    found = explained(small, "rope-twice", np.float32)
    equal = {of.hypothesis: of.says for of in found.equals}
    assert equal == {"rope-scale": "all angles multiplied by 2", "position-scale": "positions multiplied by 2"}
    assert found.separate == "they give the same numbers here: look which of them your code does"


def test_an_epsilon_of_one_digit_is_stated_in_one(small: Model) -> None:
    assert explained(small, "norm-eps", np.float32, eps=1e-6).attributes == {"eps": 1e-6}


def test_no_more_digits_are_stated_than_are_known(small: Model) -> None:
    found = explained(small, "scale-wrong", np.float16, scale=48**-0.5)
    assert len(f"{found.attributes['scale']:.6g}".lstrip("0.")) <= 5
    assert found.attributes["scale"] == pytest.approx(48**-0.5, rel=1e-4)
    exact = explained(small, "scale-wrong", np.float32, scale=48**-0.5)
    assert exact.attributes["scale"] == pytest.approx(48**-0.5, rel=1e-7)


@pytest.mark.parametrize(("bug", "name"), [("glu-clipped", "limit"), ("residual-clipped", "bound")])
def test_any_clip_is_found_to_float32(small: Model, bug: str, name: str) -> None:
    found = explained(small, bug, np.float32, **{name: 1.2345678})
    assert found.attributes[name] == pytest.approx(1.2345678, rel=1e-7)
    assert found.residual is not None
    assert found.residual < 2e-7


def test_an_embedding_with_rows_that_are_no_numbers_is_still_explained(tmp_path: Path) -> None:
    """Rows that hold NaN have no part in a fit. The tokens, a tuple, once kept theirs, and the fit failed."""
    model = open_model(synthetic(tmp_path, n_layer=1))
    trace, _ = plant(model, [1, *range(70, 90)], ("embed-scale", None), decode=0)
    broken = {s: np.array(trace[s]) for s in trace.sites()}
    broken[Site(0, None, "embd")][3:6] = np.nan
    verdict = judge(model, Trace.from_arrays(trace.steps, broken, engine=dict(trace.engine), model={}))
    assert not verdict.failed
    assert verdict.first is not None
    assert str(verdict.first.site) == "embd"
