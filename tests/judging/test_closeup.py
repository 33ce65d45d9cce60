"""The closer look at a site: its numbers are those of the tensors, and it changes no verdict."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from builders.hypotheses import plant
from builders.judging import judge
from builders.models import synthetic
from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.judging.closeup import BRIEF, FULL, MOST_FULL, Details, measure_detail
from firstdiff.judging.measure import measure
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import open_model
from firstdiff.verdict import SiteVerdict, Status, Verdict
from firstdiff.verdict.reading import read_verdict

if TYPE_CHECKING:
    from firstdiff.dumps import Trace
    from firstdiff.model.engine import Model

HEADS = axes_of("Qcur")
SCORES = axes_of("kq")
ROWS = axes_of("l_out")


def pair(*shape: int, noise: float = 1e-3) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(shape)
    return reference + noise * rng.standard_normal(shape), reference


def errors(detail: Any, axis: str) -> tuple[float, ...]:
    (profile,) = (p for p in detail.profiles if p.axis == axis)
    return profile.errors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("detail"), n_layer=2))


@pytest.fixture(scope="module")
def wrong(model: Model) -> Trace:
    return plant(model, [1, 70, 71, 72, 73], ("rope-base", 1), arithmetic=F32)[0]


def test_statistics_are_numpys() -> None:
    candidate, reference = pair(5, 3, 8)
    detail = measure_detail(candidate, reference, axes=HEADS)
    for said, x in ((detail.candidate, candidate), (detail.reference, reference)):
        assert said.mean == pytest.approx(x.mean(), rel=1e-3)
        assert said.rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-3)
        assert (said.low, said.high) == pytest.approx((x.min(), x.max()), rel=1e-3)
        assert said.not_finite == 0
    assert (detail.shape, detail.axes) == ((5, 3, 8), HEADS)


def test_the_error_by_token_is_the_local_error() -> None:
    candidate, reference = pair(6, 3, 8)
    detail = measure_detail(candidate, reference, axes=HEADS)
    for token, error in enumerate(errors(detail, "token")):
        one = measure(candidate[token][None], reference[token][None], axes=HEADS, floor=0.0).error
        assert error == pytest.approx(one, rel=0.05)


def test_a_wrong_head_and_a_wrong_dimension_stand_out() -> None:
    _, reference = pair(6, 4, 8)
    candidate = reference.copy()
    candidate[:, 2, 5] += 1.0
    detail = measure_detail(candidate, reference, axes=HEADS)
    assert [h for h, e in enumerate(errors(detail, "head")) if e] == [2]
    assert [d for d, e in enumerate(errors(detail, "head_dim")) if e] == [5]
    assert all(e > 0.1 for e in errors(detail, "token"))


def test_the_worst_element_is_the_one_that_the_verdict_names() -> None:
    candidate, reference = pair(6, 3, 8)
    reference[0] *= 1000.0  # a token whose plain differences are the largest, and relative to its size the least
    candidate[0] += 0.1
    named = measure(candidate, reference, axes=HEADS, floor=0.0).worst
    first, *rest = measure_detail(candidate, reference, axes=HEADS).worst
    assert named is not None
    assert first.index == named.index
    assert len(rest) == FULL.worst - 1
    assert first.candidate == pytest.approx(candidate[first.index], rel=1e-7)


def test_hidden_scores_do_not_count() -> None:
    candidate, reference = pair(2, 4, 4, noise=0.0)
    seen = np.tril(np.ones((4, 4), np.bool_))
    candidate[:, ~seen] = np.nan
    detail = measure_detail(candidate, reference, axes=SCORES, seen=seen)
    assert detail.candidate == detail.reference
    assert detail.worst == ()
    assert {e for p in detail.profiles for e in p.errors} == {0.0}
    assert detail.histogram is not None
    assert sum(detail.histogram.candidate) == 2 * seen.sum()


def test_nan_and_infinity_are_counted_and_come_first() -> None:
    candidate, reference = pair(4, 8)
    candidate[2, 3], candidate[3, 0] = np.nan, np.inf
    detail = measure_detail(candidate, reference, axes=ROWS)
    assert detail.candidate.not_finite == 2
    assert {e.index for e in detail.worst[:2]} == {(2, 3), (3, 0)}
    assert [t for t, e in enumerate(errors(detail, "token")) if e == np.inf] == [2, 3]


def test_bars_hold_every_element() -> None:
    candidate, reference = pair(7, 3, 8)
    histogram = measure_detail(candidate, reference, axes=HEADS).histogram
    assert histogram is not None
    assert sum(histogram.candidate) == sum(histogram.reference) == candidate.size


def test_a_long_axis_is_told_in_runs_of_neighbours_that_hide_no_error() -> None:
    _, reference = pair(3, 1000)
    candidate = reference.copy()
    candidate[1, 777] += 1.0
    (features,) = (p for p in measure_detail(candidate, reference, axes=ROWS).profiles if p.axis == "feature")
    assert (features.size, features.step, len(features.errors)) == (1000, 16, 63)
    assert [i for i, e in enumerate(features.errors) if e] == [777 // 16]


def test_what_agrees_takes_less_room() -> None:
    candidate, reference = pair(100, 9, 64)
    brief, full = (measure_detail(candidate, reference, axes=HEADS, size=size) for size in (BRIEF, FULL))
    assert len(brief.scatter) < len(full.scatter) <= FULL.scatter
    assert len(errors(brief, "token")) <= BRIEF.along < len(errors(full, "token")) <= FULL.along


def test_pairs_are_not_all_of_one_dimension() -> None:
    _, reference = pair(64, 8, 64)
    reference[:] = np.arange(64)  # each dimension has a value of its own
    seen = {r for _, r in measure_detail(reference, reference, axes=HEADS).scatter}
    assert len(seen) > 30  # every 327th element would be of two


def test_only_so_many_sites_are_kept_in_full() -> None:
    details, (candidate, reference) = Details(), pair(8, 64)
    for n in range(MOST_FULL + 2):
        details.take(Site(0, n, "l_out"), Status.DIVERGES, candidate, reference, axes=ROWS, seen=None)
    sizes = [len(d.scatter) for d in details.taken.values()]
    assert len(sizes) == MOST_FULL + 2
    assert set(sizes[:MOST_FULL]) == {FULL.scatter}
    assert max(sizes[MOST_FULL:]) <= BRIEF.scatter


def test_looking_closer_changes_nothing_else(model: Model, wrong: Trace) -> None:
    plain, detailed = judge(model, wrong), judge(model, wrong, detailed=True)
    assert plain.details == {}
    assert replace(detailed, details={}) == plain
    judged = [s.site for s in detailed.sites if s.local_error is not None]
    assert list(detailed.details) == judged


def test_the_closer_look_is_the_same_twice(model: Model, wrong: Trace) -> None:
    assert judge(model, wrong, detailed=True).to_json() == judge(model, wrong, detailed=True).to_json()


def test_the_site_that_diverges_is_looked_at_in_its_own_numbers(model: Model, wrong: Trace) -> None:
    verdict = judge(model, wrong, detailed=True)
    first = verdict.first
    assert first is not None
    assert first.worst is not None
    assert first.local_error is not None
    detail = verdict.details[first.site]
    assert detail.worst[0].index == first.worst.index
    assert max(errors(detail, "token")) == pytest.approx(first.local_error, rel=0.05)


def test_numbers_that_are_all_as_large_as_can_be_have_a_histogram() -> None:
    x = np.full((1, 1), 1.195e308)
    histogram = measure_detail(x, x, axes=ROWS).histogram
    assert histogram is not None
    assert np.isfinite([histogram.low, histogram.high]).all()
    assert histogram.low < histogram.high


SHAPES = npst.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)


@pytest.mark.parametrize("numbers", [[5e-324, 5e-324], [5e-324, 1e-323], [-5e-324, 5e-324]])
def test_a_histogram_of_the_smallest_numbers_has_ends_apart(numbers: list[float]) -> None:
    x = np.array([numbers])
    histogram = measure_detail(x, x, axes=ROWS).histogram
    assert histogram is not None
    assert histogram.low < histogram.high
    assert sum(histogram.candidate) == 2


@pytest.mark.slow
@settings(max_examples=150, deadline=None, database=None)
@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_whatever_the_numbers_are_the_details_can_be_read_again(data: st.DataObject, dtype: Any) -> None:
    shape = data.draw(SHAPES)
    candidate, reference = (data.draw(npst.arrays(dtype, shape)) for _ in range(2))
    axes = HEADS if len(shape) == 3 else ROWS
    detail = measure_detail(candidate, reference, axes=axes)
    site = SiteVerdict(Site(0, None, "embd"), "get_rows", Status.AGREES, local_error=0.0, floor=1e-6)
    verdict = Verdict("c", "r", {}, ((1,),), {}, (site,), details={site.site: detail})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdict.json"
        path.write_text(verdict.to_json())
        assert read_verdict(path).to_json() == verdict.to_json()
