"""Rows: dumps that hold other rows than their step's tokens are read, told and judged; nothing right is accused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.hypotheses import plant
from builders.judging import judge, with_status
from builders.models import synthetic
from builders.relaid import LAYOUTS, SCORES, relaid
from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of, token_axis
from firstdiff.judging.layouts import Alignment, Layout
from firstdiff.judging.partial import padding
from firstdiff.judging.readers import merged_last, plain
from firstdiff.judging.rows import Rows, held, placed, usual
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model, open_model
from firstdiff.runs.pair import local
from firstdiff.verdict import Status

Array = npt.NDArray[np.floating]
PROMPT = [1, *range(300, 311)]
CACHES = ("k_cache", "v_cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("rows"), n_layer=4))


def unstated(trace: Trace) -> Trace:
    return replace(trace, engine={"name": "unknown"})


def along_tokens(site: Site, x: Array, change: Callable[[Array], Array]) -> Array:
    """A change of the rows [row, ...] of a tensor."""
    axis = token_axis(axes_of(site.point, x.ndim))
    return np.moveaxis(change(np.moveaxis(x, axis, 0)), 0, axis)


def padded(rows: int) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        whole = np.zeros((rows, *x.shape[1:]), x.dtype)
        whole[: len(x)] = x
        return whole

    return change


REDUCED: dict[str, Callable[[Site, Array], Array | None]] = {
    "last row": lambda s, x: None if s.point in CACHES else along_tokens(s, x, lambda y: y[-1:]),
    "last row, as a vector": lambda s, x: (
        None if s.point in (*CACHES, *SCORES) else along_tokens(s, x, lambda y: y[-1:]).reshape(-1)
    ),
    "last three rows": lambda s, x: None if s.point in CACHES else along_tokens(s, x, lambda y: y[-3:]),
    "first three rows": lambda s, x: None if s.point in CACHES else along_tokens(s, x, lambda y: y[:3]),
    "buffers of 40 rows": lambda s, x: along_tokens(s, x, padded(40)),
    "scores of 40 by 40": lambda s, x: (
        np.pad(x, ((0, 0), (0, 40 - x.shape[1]), (0, 40 - x.shape[2]))) if s.point in SCORES else x
    ),
}


@pytest.mark.parametrize("layout", ["plain", "as transformers has it", "ggml's axis order", "heads first"])
@pytest.mark.parametrize("name", REDUCED)
def test_a_right_engine_is_not_accused_whatever_rows_it_dumps(model: Model, name: str, layout: str) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32, decode=2)
    cut = relaid(trace, REDUCED[name])
    if layout != "plain" and "vector" not in name:
        cut = relaid(cut, LAYOUTS[layout])
    verdict = judge(model, unstated(cut))
    assert with_status(verdict.sites, Status.DIVERGES) == []
    assert with_status(verdict.sites, Status.NOT_COMPARABLE) == []
    assert verdict.verdict == "agrees"
    assert verdict.coverage["recorded"] == len(cut.sites())
    assert any("rows than the step has tokens" in note for note in verdict.notes)


@pytest.mark.parametrize(
    "bug",
    [("norm-weight-missing", 1), ("rope-base", 2), ("rope-offset", 2), ("weight-transposed", 3), ("gqa-map", 0)],
)
def test_a_fault_is_found_in_the_last_row_and_nothing_behind_it_is_accused(model: Model, bug: tuple[str, int]) -> None:
    trace, touched = plant(model, PROMPT, bug, arithmetic=F32, decode=2)
    verdict = judge(model, unstated(relaid(trace, REDUCED["last row"])))
    assert verdict.first is not None
    assert {str(s.site) for s in verdict.diverging} <= set(touched)
    assert str(verdict.first.site) == touched[0]
    assert bug[0] in [e.hypothesis for e in verdict.explanations]


def test_what_depends_on_rows_behind_a_fault_is_said_not_to_be_judged(model: Model) -> None:
    trace, _ = plant(model, PROMPT, ("norm-weight-missing", 1), arithmetic=F32)
    verdict = judge(model, unstated(relaid(trace, REDUCED["last row"])))
    behind = [s for s in verdict.sites if s.status is Status.NOT_COMPARABLE]
    assert {s.point for s in behind} <= {"kq", "kq_soft_max", "kqv_out"}
    assert {s.layer for s in behind} <= {1, 2, 3}
    assert behind


def begun_later(trace: Trace, *, caches: bool) -> Trace:
    """A dump of the steps behind the prompt: the cache they begin with may be dumped with them."""
    tensors = {
        Site(s.step - 1, s.layer, s.point): np.array(trace[s])
        for s in trace.sites()
        if s.step and (caches or s.point not in CACHES)
    }
    return Trace.from_arrays(trace.steps[1:], tensors, engine={"name": "unknown"}, model={})


@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("layout", ["plain", "as transformers has it"])
def test_a_dump_that_begins_in_the_middle_is_judged_as_far_as_it_goes(
    model: Model, *, caches: bool, layout: str
) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32, decode=3)
    later = begun_later(trace if layout == "plain" else relaid(trace, LAYOUTS[layout]), caches=caches)
    verdict = judge(model, later)
    assert with_status(verdict.sites, Status.DIVERGES) == []
    unknown = {s.point for s in verdict.sites if s.status is Status.NOT_COMPARABLE}
    assert unknown == (set() if caches else {"kq", "kqv_out"})
    assert verdict.preflight["positions"].startswith("agrees")


@pytest.mark.parametrize("bug", [("rope-base", 2), ("norm-eps", 0), ("weight-transposed", 1)])
def test_a_fault_of_a_later_step_is_found_without_its_past(model: Model, bug: tuple[str, int]) -> None:
    trace, touched = plant(model, PROMPT, bug, arithmetic=F32, decode=3)
    verdict = judge(model, begun_later(trace, caches=False))
    later = {str(Site(s.step - 1, s.layer, s.point)) for s in map(Site.parse, touched) if s.step}
    assert verdict.first is not None
    assert {str(s.site) for s in verdict.diverging} <= later


def test_a_step_that_was_not_recorded_is_computed(model: Model) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32, decode=2)
    verdict = judge(model, unstated(trace.without(lambda s: s.step == 0)))
    assert with_status(verdict.sites, Status.DIVERGES) == []
    assert with_status(verdict.sites, Status.NOT_COMPARABLE) == []


@pytest.mark.parametrize("turned", [False, True])
def test_logits_wider_than_the_vocabulary_are_judged_and_a_padded_column_that_wins_is_a_fault(
    model: Model, *, turned: bool
) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32)

    def wide(value: float) -> Trace:
        def padded(site: Site, x: Array) -> Array:
            if site.point != "result_output":
                return x
            y = np.pad(x, ((0, 0), (0, 9)), constant_values=value)
            return y.T if turned else y

        return unstated(relaid(trace, padded))

    verdict = judge(model, wide(-1e4))
    assert verdict.verdict == "agrees"
    assert "none of them is the largest at any step" in verdict.notes[0]
    wins = judge(model, wide(1e4))
    assert wins.verdict == "diverges"
    assert f"column {model.hp.n_vocab}" in wins.preflight["vocabulary"].replace(",", "")
    assert wins.diverging == ()


@pytest.mark.parametrize("points", [("embd", "attn_norm"), ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope")])
def test_fewer_rows_than_tokens_are_the_first_ones_where_tokens_or_positions_say_so(
    model: Model, points: tuple[str, ...]
) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32)
    few = relaid(trace, lambda s, x: (x[:-2] if s.step == 0 else x) if s.point in points else None)
    verdict = judge(model, unstated(few))
    assert with_status(verdict.sites, Status.DIVERGES) == []
    assert any("the rows are taken for the first tokens'" in note for note in verdict.notes)


def test_logits_with_more_tokens_than_the_vocabulary_has_are_not_padded(model: Model) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32, decode=0)
    logits = Site(0, None, "result_output")
    turned = {s: np.array(trace[s]).T if s == logits else np.array(trace[s]) for s in trace.sites()}
    dumped = Trace.from_arrays(trace.steps, turned, engine={"name": "unknown"}, model={})
    assert padding(dumped, Alignment({"result_output": Layout("[feature, token]", merged_last)}), 5) == ((), None)


@pytest.mark.parametrize("point", ["Qcur", "kqv_out", "kq", "result_output"])
def test_a_plot_of_one_site_shows_recorded_rows_only(model: Model, point: str) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32)
    site = Site(0, None if point == "result_output" else 2, point)
    pair = local(model, unstated(relaid(trace, REDUCED["last row"])), site)
    assert pair.candidate.shape[pair.token_axis] == pair.other.shape[pair.token_axis] == 1
    assert np.allclose(pair.candidate, np.take(trace[site], [-1], pair.token_axis))
    assert pair.errors(pair.token_axis).max() < 1e-3


def test_a_plot_of_a_dump_that_begins_in_the_middle_knows_what_is_cached(model: Model) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32, decode=3)
    pair = local(model, begun_later(trace, caches=True), Site(1, 2, "kq"))
    assert pair.errors(pair.token_axis).max() < 1e-5


def test_scores_with_fewer_keys_than_the_cache_has_positions_are_no_pass(model: Model) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32)
    verdict = judge(model, unstated(relaid(trace, lambda s, x: x[..., -1:] if s.step and s.point in SCORES else x)))
    odd = [s for s in verdict.sites if s.status is Status.NOT_COMPARABLE]
    assert {s.point for s in odd} == set(SCORES)
    assert all("1 key where 13 positions are in the cache" in (s.reason or "") for s in odd)


def test_a_pass_needs_the_logits_and_most_of_what_was_recorded(model: Model) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=F32)
    no_logits = judge(model, unstated(relaid(trace, lambda s, x: x[:, :-1] if "output" in s.point else x)))
    assert no_logits.verdict == "incomparable"
    assert "logits" in no_logits.uncompared
    few = judge(model, unstated(relaid(trace, lambda s, x: x[:, :-1] if s.point.startswith("ffn") else x)))
    assert few.verdict == "incomparable"
    assert few.exit_code == 4
    one = judge(model, unstated(relaid(trace, lambda s, x: x[:, :-1] if str(s) == "ffn_up-2" else x)))
    assert one.verdict == "agrees"


@given(tokens=st.integers(1, 9), rows=st.integers(1, 12), which=st.sampled_from(Rows))
def test_rows_are_put_where_they_lie(tokens: int, rows: int, which: Rows) -> None:
    recorded = np.arange(1.0, rows * 3 + 1).reshape(rows, 3)
    like = np.zeros((tokens, 3))
    assert held(recorded, plain, like.shape, ("token", "feature")) == rows
    whole, mask = placed(recorded, like, ("token", "feature"), which)
    assert whole.shape == like.shape
    few = min(rows, tokens)
    kept = whole[:few] if which is Rows.FIRST else whole[-few:]
    own = recorded[:few] if which is Rows.FIRST else recorded[-few:]
    assert np.array_equal(kept, own)
    assert (mask is None) == (rows >= tokens)
    assert mask is None or mask.sum() == few


def test_the_usual_place_of_rows() -> None:
    assert usual(1, 8, 8, fixed=False) is Rows.LAST
    assert usual(40, 8, 8, fixed=False) is Rows.FIRST
    assert usual(9, 1, 9, fixed=False) is Rows.LAST  # the whole sequence, dumped again at each step
    assert usual(9, 1, 9, fixed=True) is Rows.FIRST  # a buffer, which the sequence has filled by chance
    assert usual(4, 1, 9, fixed=False) is Rows.FIRST
