"""Explaining has an end: after its time the verdict says what was not searched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from builders.command_line import Command, assert_refused
from builders.hypotheses import plant
from builders.judging import judge
from builders.models import synthetic
from firstdiff.dumps import Site, Trace
from firstdiff.explaining.attempt import Fault, attempt
from firstdiff.explaining.budget import Budget, OutOfTime
from firstdiff.explaining.collecting import Judged, collect, surroundings
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE
from firstdiff.judging.case import Case
from firstdiff.model.engine import Model
from firstdiff.model.workers import workers
from firstdiff.reports import explanations, html, notebook
from firstdiff.reports.terminal import render
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import CounterCheck, Explanation, Verdict
from firstdiff.verdict.reading import read_verdict

PROMPT = [1, *range(70, 110)]
ADVICE = "search longer with --budget 600, or one site only: firstdiff explain TRACE Qcur_rope-2 --budget 600"


@pytest.fixture(scope="module")
def trace(small: Model) -> Trace:
    return plant(small, PROMPT, ("rope-base", 2), decode=0)[0]


@pytest.fixture(scope="module")
def cut_short(small: Model, trace: Trace) -> Verdict:
    return judge(small, trace, budget=0.0)


def test_without_time_all_that_diverges_is_told_to_be_unsearched(cut_short: Verdict) -> None:
    assert [(str(e.site), e.hypothesis, e.says, e.fix) for e in cut_short.explanations] == [
        ("Qcur_rope-2", None, "not searched within 0 s", ADVICE),
        ("Kcur_rope-2", None, "not searched within 0 s", ADVICE.replace("Q", "K")),
    ]
    assert [s.site for s in cut_short.diverging] == [site for e in cut_short.explanations for site in e.unsearched]
    assert cut_short.counter_check is None
    assert all(e.error > e.floor for e in cut_short.explanations)


def test_every_report_says_what_was_not_searched_and_what_to_do(cut_short: Verdict) -> None:
    said = f"Not searched within 0 s: Qcur_rope at layer 2; Kcur_rope at layer 2. To do: {ADVICE}."
    assert explanations.paragraphs(cut_short) == [said]
    for report in (render(cut_short, width=400), notebook.fragment(cut_short)):
        assert said in report
    assert "not searched within 0 s" in html.render(cut_short)


def test_what_was_not_searched_is_read_again(cut_short: Verdict, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(cut_short.to_json())
    assert read_verdict(path) == cut_short


def test_many_explanations_do_not_hide_what_was_not_searched(cut_short: Verdict) -> None:
    (first, _) = cut_short.explanations
    other = replace(first, says="not explained", fix="", unsearched=())
    many = replace(cut_short, explanations=(*[other] * 9, *cut_short.explanations))
    assert explanations.paragraphs(many)[-2:] == ["And 3 more explanations.", *explanations.paragraphs(cut_short)]


def outside_the_layers(trace: Trace) -> Trace:
    """The trace without any tensor of a layer."""
    kept = {s: trace[s] for s in trace.sites() if s.layer is None}
    return Trace.from_arrays(trace.steps, kept, engine=trace.engine, model={})


@pytest.fixture(autouse=True)
def _one_after_another() -> Iterator[None]:
    """A clock that counts how often it is looked at must be looked at in one order."""
    with workers(1):
        yield


@dataclass
class Clock:
    """A clock that goes on by a second whenever it is looked at."""

    seconds: Iterator[int]

    def __call__(self) -> float:
        return next(self.seconds)


def explained_within(
    model: Model, trace: Trace, seconds: float, **how: Any
) -> tuple[tuple[Explanation, ...], CounterCheck | None]:
    done = replayed(model, trace)
    budget = Budget(seconds, Clock(count()))
    return explain(model, trace, done.found, done.alignment, done.sites, failures=Failures(), budget=budget, **how)


def test_the_time_ends_inside_the_search_of_one_site(small: Model, trace: Trace) -> None:
    """A search looks at the clock before every attempt: the site is told to be unsearched, and so is the other."""
    made, check = explained_within(small, trace, 4)
    assert [e.says for e in made] == ["not searched within 4 s"] * 2
    assert check is None


@pytest.mark.slow
def test_what_explains_when_the_time_ends_stands_and_is_doubted(small: Model, trace: Trace) -> None:
    needed = next(n for n in range(4, 400, 4) if explained_within(small, trace, n)[0][0].hypothesis == "rope-base")
    (explanation,), check = explained_within(small, trace, needed)
    assert "the search of Qcur_rope-2 ended with its time" in (explanation.note or "")
    assert check is not None
    assert check.agrees
    assert explained_within(small, trace, 10_000)[0][0].note is None


def test_the_time_ends_inside_one_attempt_at_a_long_segment(small: Model) -> None:
    """Every call of a segment that is run again looks at the clock."""
    trace, _ = plant(small, PROMPT, ("rope-base", 2), decode=0)
    cases: list[Case] = []
    done = replayed(small, outside_the_layers(trace))
    judged = Judged(small, outside_the_layers(trace), done.found, done.alignment, tuple(done.sites))
    collect(judged, {Site(0, None, "result_norm")}, cases.append)
    budget = Budget(5, Clock(count()))
    with pytest.raises(OutOfTime):
        attempt(cases[0], surroundings(judged), Fault(((TABLE["rope-base"], {"base": 5e5}),)), budget=budget)
    assert next(budget.clock.seconds) < 10  # type: ignore[attr-defined] - of our clock


def test_only_the_site_asked_for_is_searched(small: Model) -> None:
    trace, _ = plant(small, PROMPT, ("rope-base", 2), ("norm-layernorm", 4), decode=0)
    made, _ = explained_within(small, trace, 10_000, only=Site(0, 2, "Kcur_rope"))
    by_site = {str(site): e for e in made for site in e.sites}
    assert by_site["Kcur_rope-2"].hypothesis == by_site["Qcur_rope-2"].hypothesis == "rope-base"
    assert by_site["attn_norm-4"].says == "not searched, because only Kcur_rope-2 was"


# What is tried of a long segment


@pytest.mark.slow
def test_a_long_segment_is_searched_at_all_of_its_layers_together(small: Model) -> None:
    (everywhere,), (one,) = (
        judge(small, outside_the_layers(plant(small, PROMPT, ("rope-base", layer), decode=0)[0])).explanations
        for layer in (None, 2)
    )
    assert everywhere.hypothesis == "rope-base"
    assert one.hypothesis is None
    assert "each was tried at all layers that were not recorded together, and not at one of them" in one.says


# The nearest


def test_what_leaves_half_of_the_error_is_not_called_the_nearest(small: Model) -> None:
    table = {id_: TABLE[id_] for id_ in ("rope-sign", "rope-none")}
    trace, _ = plant(small, PROMPT, ("rope-cos-sin", 2), decode=0)
    verdict = judge(small, trace, table=table)
    assert all(e.hypothesis is None and e.tried for e in verdict.explanations)
    assert all(e.next_best is None or e.next_best.residual < e.error / 2 for e in verdict.explanations)
    assert "nearest" not in render(verdict)
    assert "The best of them" not in html.render(verdict)


# The command


@pytest.mark.slow
def test_the_commands_take_a_budget(firstdiff: Command, tmp_path: Path) -> None:
    model, dump = synthetic(tmp_path, n_layer=3), tmp_path / "dump"
    firstdiff(
        "record", model, "--engine", "reference:f32", "--tokens", "1,70,71", "--bug", "rope-base@1", "--out", dump
    )
    made = firstdiff("explain", dump, "Kcur_rope-1", "--model", model, "--budget", "0")
    assert "Not searched within 0 s: Kcur_rope at layer 1" in " ".join(made.out.split())
    again = firstdiff("explain", dump, "Kcur_rope-1", "--model", model, "--budget", "60")
    assert "(rope-base)" in again.out
    assert_refused(firstdiff("explain", dump, "--model", model, "--budget", "-1"), 2, "--budget")
    assert firstdiff("run", model, "--candidate", dump, "--budget", "0", "--out", tmp_path / "run").code == 1
    assert_refused(firstdiff("explain", tmp_path / "run", "--budget", "60"), 2, "--budget", "give the trace")
