"""Parts of a step are written while it is being run, and belong to the trace once the step is done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from firstdiff.dumps import Step, TraceError, TraceWriter, open_trace

STEP = Step((1, 2), (0, 1))
ONE, TWO, THREE = ({f"l_out-{i}": np.full((2, 3), i, np.float32)} for i in range(3))


def writer(path: Path) -> TraceWriter:
    return TraceWriter(path, engine={"name": "mine"}, model={})


def test_the_parts_and_the_rest_are_one_step_in_the_order_written(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as parts, writer(tmp_path / "whole") as whole:
        parts.part(STEP, ONE)
        parts.part(STEP, TWO)
        parts.step(STEP, THREE)
        whole.step(STEP, {**ONE, **TWO, **THREE})
        for each in (parts, whole):
            each.step(Step((3,), (2,)), {"l_out-0": np.zeros((1, 3), np.float32)})
    found, wanted = open_trace(tmp_path / "run"), open_trace(tmp_path / "whole")
    assert found.sites() == wanted.sites()
    assert all(np.array_equal(found[site], wanted[site]) for site in wanted)
    assert found.steps == wanted.steps
    assert found.complete
    assert found.notes == ()


def test_all_of_a_step_may_have_been_parts(tmp_path: Path) -> None:
    with writer(tmp_path) as parts:
        parts.part(STEP, ONE)
        parts.step(STEP, {})
    assert list(map(str, open_trace(tmp_path))) == ["l_out-0"]


def cut_short(path: Path) -> None:
    with writer(path) as parts:
        parts.step(STEP, ONE)
        parts.part(Step((3,), (2,)), TWO)
        raise ZeroDivisionError


def test_parts_of_a_step_that_is_never_done_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cut_short(tmp_path)
    trace = open_trace(tmp_path)
    assert list(map(str, trace)) == ["l_out-0"]
    assert not trace.complete
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-000.safetensors", "trace.json"]


def test_parts_that_a_crash_left_are_replaced_by_the_next_trace(tmp_path: Path) -> None:
    with writer(tmp_path) as first:
        first.part(STEP, ONE)
        first._ahead.wait()
        (left,) = tmp_path.glob("*.part-*")
        os.link(left, tmp_path / "kept")
    (tmp_path / "kept").rename(left)
    with writer(tmp_path) as again:
        again.step(STEP, TWO)
    assert list(map(str, open_trace(tmp_path))) == ["l_out-1"]
    assert not left.exists()


def test_a_part_that_cannot_be_written_is_said_with_the_next_or_the_step(tmp_path: Path) -> None:
    with writer(tmp_path) as parts:
        (tmp_path / "step-000.part-000.safetensors.tmp").mkdir()
        parts.part(STEP, ONE)
        with pytest.raises(TraceError, match=r"step-000\.part-000\.safetensors: cannot be written"):
            parts.step(STEP, TWO)


def test_a_part_is_checked_as_a_step_is(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="tensor 'a/b'"), writer(tmp_path) as parts:
        parts.part(STEP, {"a/b": np.zeros(3, np.float32)})
