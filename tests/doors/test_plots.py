"""Plots: figures that say what they show, drawn from what was measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstdiff as fd
from firstdiff.api import opened_model
from firstdiff.dumps import Site, Step, Trace
from firstdiff.errors import UsageError
from firstdiff.hypotheses import TABLE
from firstdiff.runs.pair import free, local
from firstdiff.verdict import Status, Verdict

pytestmark = pytest.mark.notebook

BUG = "rope-base@2"
TOKENS = (1, *range(70, 82))


@pytest.fixture(scope="module")
def trace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    out = tmp_path_factory.mktemp("wrong") / "trace"
    return fd.record(model, tokens=TOKENS, engine="reference:f32", bugs=[BUG], decode=1, out=out)


@pytest.fixture(scope="module")
def right(model: Path, trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return fd.record(model, tokens=trace, engine="reference:f64", out=tmp_path_factory.mktemp("right") / "trace")


@pytest.fixture(scope="module")
def verdict(model: Path, trace: Trace) -> Verdict:
    return fd.compare(trace, model)


Draw = Callable[[Path, Trace, Trace, Verdict], Any]

FIGURES: dict[str, Draw] = {
    "heatmap": lambda _m, _t, _r, v: fd.plot.heatmap(v),
    "heatmap of a decode step": lambda _m, _t, _r, v: fd.plot.heatmap(v, step=1),
    "depth": lambda _m, _t, _r, v: fd.plot.depth(v),
    "positions": lambda m, t, _r, _v: fd.plot.positions(t, ("Kcur_rope", 2), m),
    "positions of a cache": lambda m, t, _r, _v: fd.plot.positions(t, "k_cache-2@1", m),
    "positions, freely": lambda _m, t, r, _v: fd.plot.positions(t, "l_out-3", against=r),
    "heads": lambda m, t, _r, _v: fd.plot.heads(t, "kq-2", m),
    "histogram": lambda m, t, _r, _v: fd.plot.histogram(t, "Kcur_rope-2", m),
    "scatter": lambda m, t, _r, _v: fd.plot.scatter(t, "kq-2", m),
    "logits": lambda _m, t, r, _v: fd.plot.logits(t, r),
    "rope_angles": lambda m, _t, _r, _v: fd.plot.rope_angles(m),
    "rope_angles of a trace": lambda m, t, _r, _v: fd.plot.rope_angles(m, trace=t, layer=2),
    "rope_similarity": lambda m, _t, _r, _v: fd.plot.rope_similarity(m, positions=range(32)),
    "attention": lambda _m, t, _r, _v: fd.plot.attention(t, 2, 1, pieces=["$x$", "\n", *"abcdefghijk"]),
    "attention of a decode step": lambda _m, t, _r, _v: fd.plot.attention(t, 2, 1, step=1),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_says_what_it_shows(draw: Draw, model: Path, trace: Trace, right: Trace, verdict: Verdict) -> None:
    figure = draw(model, trace, right, verdict)
    image = figure._repr_png_()
    assert image.startswith(b"\x89PNG")
    assert len(image) < 60_000
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    plain = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert plain[0].get_title()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in plain if axes.lines or axes.patches)
    assert all(bar.get_ylabel() for bar in bars)
    legends = [*figure.legends, *(axes.get_legend() for axes in plain if axes.get_legend())]
    assert legends or bars


def assert_titles_are_whole(figure: Any) -> None:
    """No title, legend or label of an axis is cut off by the figure's edge."""
    figure.draw_without_rendering()
    texts = [figure._suptitle, figure._supxlabel, *figure.legends]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, axes.get_legend()]
    for text in filter(None, texts):
        box = text.get_window_extent(figure.canvas.get_renderer())
        inside = 0 <= box.x0 <= box.x1 <= figure.bbox.x1 and 0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert inside or not box.width, (getattr(text, "get_text", lambda: "legend")(), box, figure.bbox)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_titles_and_labels_lie_within_the_figure(
    draw: Draw, model: Path, trace: Trace, right: Trace, verdict: Verdict
) -> None:
    assert_titles_are_whole(draw(model, trace, right, verdict))


def test_the_longest_finding_of_rope_lies_within_the_figure() -> None:
    from firstdiff.reports import rope_plots

    phrases = sorted((h.told({}) for h in TABLE.values() if "rope" in h.id), key=len)
    says = "; ".join((*phrases[-3:], "turned by angles that no hypothesis gives, in steps 1, 3 and 5"))
    assert len(says) > 200
    zero = np.zeros((8, 32))
    figure = rope_plots.fitted(zero[0] + 1, zero[0] + 1, zero, zero, range(8), layer=17, says=says)
    assert_titles_are_whole(figure)
    assert " ".join(figure.get_suptitle().split()).lower() == f"{says}.".lower()


def test_no_figure_touches_pyplot(model: Path) -> None:
    script = (
        "import sys, firstdiff as fd\n"
        f"fd.plot.rope_angles({str(model)!r})._repr_png_()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-P", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_error_by_position_is_the_one_that_is_judged(model: Path, trace: Trace, verdict: Verdict) -> None:
    judged = {s.site: s.local_error for s in verdict.sites}
    for site in (Site(0, 2, "Kcur_rope"), Site(1, 2, "Qcur_rope")):
        pair = local(opened_model(model), trace, site)
        assert pair.errors(pair.token_axis).max() == pytest.approx(judged[site], rel=1e-6)
    (line, *_) = fd.plot.positions(trace, "Kcur_rope-2", model).axes[0].lines
    assert list(line.get_xdata()) == list(range(len(TOKENS)))
    assert line.get_ydata()[0] == 1e-9  # position 0 is not turned
    assert max(line.get_ydata()) == pytest.approx(judged[Site(0, 2, "Kcur_rope")], rel=1e-6)


def test_where_the_last_token_alone_is_recorded_nothing_is_said_of_the_others(model: Path) -> None:
    steps = [Step((1, 70, 71), (0, 1, 2))]
    whole = fd.record(model, tokens=steps[0].tokens, engine="reference:f32", out=model.parent / "whole")
    sites = {site: whole[site] for site in whole.sites()}
    sites[Site(0, None, "result_output")] = whole[Site(0, None, "result_output")][-1:]
    last = Trace.from_arrays(steps, sites, engine={"name": "mine", "arithmetic": "f32"}, model={})
    for figure in (
        fd.plot.positions(last, "result_output", model),
        fd.plot.positions(last, "result_output", against=whole),
    ):
        assert list(figure.axes[0].lines[0].get_xdata()) == [2]


def test_traces_of_different_layouts_are_not_compared_blindly() -> None:
    steps = [Step((1, 2), (0, 1))]
    site = Site(0, 0, "Qcur")
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    plain = Trace.from_arrays(steps, {site: x}, engine={}, model={})
    turned = {"Qcur": ("head", "token", "head_dim")}
    stated = Trace.from_arrays(steps, {site: x.transpose(1, 0, 2)}, engine={}, model={}, layouts=turned)
    unstated = Trace.from_arrays(steps, {site: x.transpose(1, 0, 2)}, engine={}, model={})
    assert free(stated, plain, site).errors(0).max() == 0
    for one, other in ((unstated, plain), (plain, stated)):
        with pytest.raises(UsageError, match="lay it out in different ways"):
            free(one, other, site)


def test_attention_and_logits_of_what_does_not_fit_are_refused() -> None:
    steps = [Step((1, 2), (0, 1))]
    soft, out = Site(0, 0, "kq_soft_max"), Site(0, None, "result_output")
    odd = {soft: np.zeros((2, 4, 3), np.float32), out: np.zeros((2, 7), np.float32)}
    one = Trace.from_arrays(steps, odd, engine={"name": "one"}, model={})
    other = Trace.from_arrays(steps, {out: np.zeros((2, 9), np.float32)}, engine={"name": "other"}, model={})
    bare = Trace.from_arrays(steps, {}, engine={"name": "bare"}, model={})
    with pytest.raises(UsageError, match=r"recorded shape \[2, 4, 3\] is not \[head, query, key\]"):
        fd.plot.attention(one, 0)
    with pytest.raises(UsageError, match="7 logits in one trace and 9 in the other"):
        fd.plot.logits(one, other)
    with pytest.raises(UsageError, match="bare did not record it"):
        fd.plot.logits(one, bare)
    layouts = {"kq_soft_max": ("query", "head", "key")}
    weights = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # [query, head, key]
    turned = Trace.from_arrays(steps, {soft: weights}, engine={}, model={}, layouts=layouts)
    image = fd.plot.attention(turned, 0, head=1).axes[0].images[0].get_array()
    assert np.array_equal(image, weights[:, 1])


def test_the_map_marks_every_site_that_is_not_right(verdict: Verdict) -> None:
    figure = fd.plot.heatmap(verdict)
    marks = [text.get_text() for axes in figure.axes for text in axes.texts]
    here = [s for s in verdict.sites if s.step == 0]
    assert marks.count("X") == sum(s.status is Status.DIVERGES for s in here) == 2
    assert marks.count("~") == sum(s.status is Status.INHERITS for s in here)
    assert "X diverges" in figure._supxlabel.get_text()


def test_errors_that_are_not_finite_are_drawn(verdict: Verdict) -> None:
    broken = replace(verdict, sites=tuple(replace(s, local_error=np.inf, drift=np.nan) for s in verdict.sites))
    assert fd.plot.heatmap(broken)._repr_png_()
    assert fd.plot.depth(broken)._repr_png_()
    values = np.array([np.nan, 1.0, np.inf, 2.0], np.float32)
    from firstdiff.reports import plots

    for other in (values[::-1], np.zeros(4, np.float32), np.full(4, np.nan)):
        assert plots.histogram(values, other, title="t", called="a", of="b")._repr_png_()
        assert plots.scatter(values, other, title="t", called="a", of="b")._repr_png_()


def test_the_angles_of_a_trace_are_fitted(model: Path, trace: Trace) -> None:
    wrong, fine = (fd.plot.rope_angles(model, trace=trace, layer=layer) for layer in (2, 1))
    assert "base of 500000" in wrong.get_suptitle()
    assert "are those that the model's file asks for" in fine.get_suptitle()


def test_the_angles_of_a_trace_of_another_layout_are_the_same(model: Path, trace: Trace) -> None:
    turned = {s: x.transpose(1, 0, 2) if s.point in ("Qcur", "Qcur_rope") else x for s in trace for x in (trace[s],)}
    other = Trace.from_arrays(trace.steps, turned, engine=trace.engine, model={})
    wrong, same = (fd.plot.rope_angles(model, trace=t, layer=2).get_suptitle() for t in (trace, other))
    assert wrong == same


def test_similarity_is_one_on_the_diagonal_and_depends_on_the_distance(model: Path) -> None:
    image = fd.plot.rope_similarity(model, positions=range(100, 140)).axes[0].images[0].get_array()
    assert np.allclose(np.diag(image), 1)
    assert np.allclose(image[0, 3], image[20, 23])
    assert image[0, 30] < 0.9


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda m, t, _v: fd.plot.positions(t, "Qcur-99", m), "Qcur-99: reference:f32 did not record it"),
        (lambda _m, t, _v: fd.plot.positions(t, "Qcur-1"), "give the model"),
        (lambda m, t, _v: fd.plot.heads(t, "ffn_up-1", m), "has no heads, its axes are token, feature"),
        (lambda _m, _t, v: fd.plot.heatmap(v, step=7), "step 7: there are steps 0 to 1"),
        (lambda _m, t, _v: fd.plot.attention(t, 1, 99), "head 99: kq_soft_max-1 has heads 0 to 7"),
        (lambda m, t, _v: fd.plot.rope_angles(m, trace=t, layer=99), "Qcur-99 and Qcur_rope-99 are not both recorded"),
    ],
)
def test_what_is_not_there_is_not_drawn(
    draw: Callable[[Path, Trace, Verdict], Any], said: str, model: Path, trace: Trace, verdict: Verdict
) -> None:
    with pytest.raises(UsageError, match=said):
        draw(model, trace, verdict)
