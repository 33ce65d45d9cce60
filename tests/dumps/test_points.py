"""The one table of points: it is whole, nothing else knows a point that it does not, and any point can be judged."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from tomllib import loads

import numpy as np
import numpy.typing as npt
import pytest

from builders.models import synthetic
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps import names as naming
from firstdiff.dumps.named_array import fitting_axes
from firstdiff.dumps.nearest import nearest
from firstdiff.dumps.points import (
    AXES,
    INSIDE,
    OUTSIDE,
    POINTS,
    Kind,
    Point,
    axes_of,
    carrying,
    of_kind,
    plural,
    token_axis,
)
from firstdiff.engines.pytorch_families import FAMILIES
from firstdiff.explaining.describing.describe import describe
from firstdiff.explaining.describing.findings import copies
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import record_planted
from firstdiff.judging.closeup import Details
from firstdiff.judging.layout_measured import KEYS
from firstdiff.judging.layouts import QUERIES, ROTATED, SCORES
from firstdiff.judging.measure import locate, measure
from firstdiff.judging.replay import Replay
from firstdiff.logs import statistics
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import ARCHITECTURES, open_model
from firstdiff.model.operations import rms_norm
from firstdiff.model.value import Value
from firstdiff.reports.map import label
from firstdiff.verdict import Status

PATTERNS = loads(files("firstdiff.dumps").joinpath("patterns.toml").read_text("utf-8"))
SIZES = {"token": 5, "query": 5, "key": 7}

every_point = pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)


def values(point: Point, seed: int = 0) -> npt.NDArray[np.float32]:
    """Numbers of a point's shape, three to an axis that has no other size."""
    shape = [SIZES.get(axis, 3) for axis in point.axes]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The table is whole


@every_point
def test_a_point_has_axes_usual_names_and_a_heading(point: Point) -> None:
    assert set(point.axes) <= set(AXES)
    assert len(set(point.axes)) == len(point.axes) > 1
    assert point.usual_names
    assert point.heading[1]


def test_every_axis_that_counts_tokens_is_one_of_two() -> None:
    assert {point.axes[token_axis(point.axes)] for point in POINTS.values()} == {"token", "query"}


def test_no_two_points_of_a_layer_have_one_heading_but_the_two_gates() -> None:
    headings = [point.heading for point in POINTS.values() if "geglu" not in point.name]
    assert len(set(headings)) == len(headings)


def test_points_stand_in_the_order_of_execution() -> None:
    assert (*OUTSIDE[:1], *INSIDE, *OUTSIDE[1:]) == tuple(POINTS)


@every_point
def test_a_point_is_the_nearest_to_its_usual_names(point: Point) -> None:
    where = "layer_3_" if point.inside else ""
    found = {nearest(where + name.replace(" ", "_")) for name in point.usual_names}
    assert point.name in found
    assert nearest(where + point.name) == point.name


def test_the_reference_gives_what_the_table_says(tmp_path: Path) -> None:
    writer = MemoryWriter()
    record_planted(open_model(synthetic(tmp_path)), [1, 2, 3], writer, arithmetic=F32)
    found = {site.point: (site.layer is not None, x.ndim) for site, x in writer.tensors.items()}
    assert found == {p: (POINTS[p].inside, len(POINTS[p].axes)) for p in found}


# Nothing else knows a point that the table does not

LISTS: dict[str, Iterable[str | None]] = {
    "names of llama.cpp": naming._LLAMA.values(),
    "rotations of llama.cpp's names": [*naming._ROTATED, *naming._ROTATED.values()],
    "modules of transformers": [*naming._HF_INSIDE.values(), *naming._HF_OUTSIDE.values(), *naming._HF_WHOLE.values()],
    "what conventions lack": [point for known in naming.CONVENTIONS.values() for point in known.lacks],
    "spellings in logs": PATTERNS["points"],
    "names that logs use twice": [point for _, _, point in PATTERNS["ggml"]["renamed"]],
    **{f"nodes of llama.cpp's {name}": of.NODES.values() for name, of in ARCHITECTURES.items()},
    "layouts": [
        *ROTATED,
        *SCORES,
        *QUERIES,
        *KEYS,
    ],
    "samples": statistics.SCORES,
    "hypotheses": [point for hypothesis in TABLE.values() for point in hypothesis.where.points],
}


@pytest.mark.parametrize("known", LISTS)
def test_no_list_knows_a_point_that_the_table_does_not(known: str) -> None:
    found = {point for point in LISTS[known] if point is not None}
    assert found
    assert found <= set(POINTS)


def test_the_recorder_of_pytorch_knows_no_other_point() -> None:
    found = {p for tap in FAMILIES.values() for p in (*tap.outputs.values(), *tap.inputs.values(), *tap.heads_first)}
    assert found <= set(POINTS)


@every_point
def test_a_report_takes_its_heading_from_the_table(point: Point) -> None:
    assert label(point.name) == point.heading


def test_a_name_that_the_table_does_not_have_is_cut_for_its_heading() -> None:
    assert [label(name) for name in ("ffn_moe_group_topk", "tiny", "attn_sinks")] == [
        ("moe", "group_topk"), ("", "tiny"), ("attn", "sinks"),
    ]  # fmt: skip


# What is read from the table


def test_the_points_of_one_operand_are_copies_of_each_other_but_for_the_norm() -> None:
    assert carrying("K") == ("Kcur", "Kcur_normed", "Kcur_rope", "k_cache")
    assert {p for p in POINTS if copies("Kcur_rope", p)} == set(carrying("K"))
    assert not copies("Kcur", "Kcur_normed")
    assert not copies("Qcur", "Kcur")
    assert not any(copies("ffn_norm", p) for p in POINTS)


def test_a_scale_that_is_folded_into_q_is_looked_for_in_all_that_carry_q() -> None:
    assert QUERIES == ("Qcur", "Qcur_normed", "Qcur_rope")


def test_axes_of_names_that_the_table_does_not_have_follow_from_their_number() -> None:
    assert axes_of("ffn_moe_group_topk", 2) == ("token", "feature")
    assert axes_of("attn_sinks", 3) == ("token", "head", "head_dim")
    assert axes_of("Qcur", 2) == ("token", "feature")
    assert axes_of("kq") == ("head", "query", "key")


def test_axes_are_plural_for_people() -> None:
    assert [plural(axis) for axis in ("token", "query", "head_dim", "axis 0")] == [
        "tokens", "queries", "head_dims", "axis 0",
    ]  # fmt: skip


def test_stated_axes_that_no_point_has_are_passed_on() -> None:
    assert fitting_axes("Qcur", (2, 3), 2, ("left", "right")) == ("left", "right")


def test_experts_are_selected_by_number() -> None:
    assert of_kind(Kind.SELECTION) == ("ffn_moe_topk",)


# Any point can be judged


@every_point
def test_a_wrong_point_is_measured_located_and_described_along_its_axes(point: Point) -> None:
    right = values(point)
    wrong = right.copy()
    token = token_axis(point.axes)
    np.moveaxis(wrong, token, 0)[2] *= 3
    axes = axes_of(point.name)
    assert measure(wrong, right, axes=axes, floor=1e-6).error == pytest.approx(2)
    where = locate(wrong, right, axes=axes, floor=1e-6)
    assert where == {axis: "2" if axis == axes[token] else "all" for axis in axes}
    assert describe(wrong, right, axes=axes, floor=1e-6)


@pytest.mark.parametrize("point", of_kind(Kind.NORM))
def test_a_wrong_norm_is_judged_whatever_its_axes(point: str) -> None:
    x, site = values(POINTS[point]), Site(0, 0 if POINTS[point].inside else None, point)
    wrong = rms_norm(x, None, eps=1e-6, arithmetic=F32)
    wrong[3] *= 2
    tokens = tuple(range(len(x)))
    trace = Trace.from_arrays([Step(tokens, tokens)], {site: wrong}, engine={}, model={})
    probe = Replay(F32, trace, details=Details())
    probe.layer = site.layer
    probe(point, rms_norm, Value(x), None, eps=1e-6)
    (found,) = probe.sites
    assert (found.status, found.local_error) == (Status.DIVERGES, pytest.approx(1, rel=1e-3))
    assert found.where == {axis: "3" if axis == "token" else "all" for axis in POINTS[point].axes}
    assert probe.details is not None
    assert probe.details.taken[found.site].axes == POINTS[point].axes
