"""Places along an axis: how they are written and read, and that the ones that were changed are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstdiff.explaining.measured.numbers import stated, times
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.regions import MOST, Changes, regions


@st.composite
def ranges(draw: st.DrawFn, n: int) -> tuple[int, int]:
    start = draw(st.integers(0, n - 1))
    return start, draw(st.integers(start + 1, n))


@given(st.sets(st.integers(0, 200), min_size=1))
def test_places_are_read_as_they_are_written(indices: set[int]) -> None:
    pattern = Pattern.of(indices)
    assert Pattern.read(str(pattern)) == pattern
    assert pattern.among(201).tolist() == sorted(indices)


@given(st.data(), st.integers(2, 64))
def test_places_of_each_so_many_are_read_as_they_are_written(data: st.DataObject, period: int) -> None:
    start = data.draw(st.integers(0, period - 1))
    length = data.draw(st.integers(1, period - 1))
    pattern = Pattern.span(start, start + length, period)
    assert Pattern.read(str(pattern)) == pattern
    assert set((pattern.among(10 * period) % period).tolist()) == {(start + i) % period for i in range(length)}


@pytest.mark.parametrize("written", ["", "a", "3-", "-3", "1-2 of each", "1,2", "0-3 of each x", "1e3"])
def test_what_is_no_pattern_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="names no places"):
        Pattern.read(written)


def test_a_pattern_beyond_an_axis_does_not_fit_it() -> None:
    assert Pattern.read("3-7").fits(8)
    assert not Pattern.read("3-7").fits(7)
    assert Pattern.read("3-7 of each 8").fits(4)


def changes(n: int, at: np.ndarray, by: float, noise: float, *, known: bool, seed: int = 0) -> Changes:
    """An error of 20 numbers at each of n places, `by` times the change at some of them, with noise beside it."""
    rng = np.random.default_rng(seed)
    change = rng.standard_normal((20, n))
    error = noise * rng.standard_normal((20, n))
    error[:, at] += by * change[:, at]
    along, between = (change * error).sum(0), np.square(change).sum(0)
    return Changes(along, between, float(np.square(error).sum()), error.size, by if known else None)


@given(st.data(), st.sampled_from([1e-7, 1e-3]), st.booleans())
def test_the_range_that_is_changed_is_found(data: st.DataObject, noise: float, known: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    n = data.draw(st.integers(2, 300))
    start, stop = data.draw(ranges(n))
    of = changes(n, np.arange(start, stop), -1.0, noise, known=known)
    best = min(regions(of), key=lambda region: region.left)
    places = Pattern.span(0, n) if best.places is None else best.places
    assert places.among(n).tolist() == list(range(start, stop))
    assert best.factor == pytest.approx(-1, abs=10 * noise)


@given(st.data())
def test_the_part_of_each_so_many_that_is_changed_is_found(data: st.DataObject) -> None:
    period = data.draw(st.sampled_from([4, 8, 32, 64]))
    start, length = data.draw(st.integers(0, period - 1)), data.draw(st.integers(1, period - 1))
    at = Pattern.span(start, start + length, period).among(6 * period)
    of = changes(6 * period, at, 0.5, 1e-6, known=False)
    best = min(regions(of, [period]), key=lambda region: region.left)
    assert best.places is not None
    assert best.places.among(6 * period).tolist() == at.tolist()


@pytest.mark.parametrize(("start", "stop"), [(0, 64), (12_345, 40_001), (49_000, 49_152), (7, 8), (0, 49_151)])
def test_the_ends_of_a_range_among_many_places_are_exact(start: int, stop: int) -> None:
    assert stop - start < MOST or stop > MOST
    of = changes(49_152, np.arange(start, stop), -1.0, 1e-6, known=False)
    found = [r.places for r in regions(of) if r.places is not None and r.places.period is None]
    assert str(Pattern.span(start, stop)) in map(str, found)


def test_terms_that_go_with_each_other_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 96)) + 1, rng.standard_normal((64, 96))
    dropped = np.arange(33, 71)
    error = -x[:, dropped] @ w[:, dropped].T
    along, between = (x * (error @ w)).sum(0), (x.T @ x) * (w.T @ w)
    best = min(regions(Changes(along, between, float(np.square(error).sum()), error.size)), key=lambda r: r.left)
    assert str(best.places) == "33-70"
    assert best.factor == pytest.approx(-1)


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [(1.7000001, 1e-7, 1.7), (0.8499, 1e-4, 0.85), (1e-9, 1e-9, 0.0), (0.123456789, 1e-12, 0.1234568), (2.0, 0.0, 2.0)],
)
def test_a_number_is_told_with_the_digits_that_are_known(value: float, error: float, told: float) -> None:
    assert stated(value, error) == told


def test_how_often_something_counts_is_told_in_words() -> None:
    assert [times(x) for x in (0.0, 2.0, -1.0, 0.85)] == ["not at all", "twice", "with the opposite sign", "0.85 times"]
