"""A hypothesis that raises costs no verdict, and does not stay hidden."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import firstdiff as fd
from builders.hypotheses import plant
from builders.judging import UNKNOWN, dump, judge
from builders.models import synthetic
from firstdiff.dumps import Site, Trace, TraceError
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.reports import html, notebook
from firstdiff.reports.terminal import render
from firstdiff.verdict import Failed, Verdict
from firstdiff.verdict.reading import read_verdict

PROMPT = [1, *range(70, 110)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("failing"), n_layer=4))


@pytest.fixture(scope="module")
def trace(small: Model) -> Trace:
    return plant(small, PROMPT, ("rope-base", 2), decode=0)[0]


@pytest.fixture(scope="module")
def right(small: Model, trace: Trace) -> Verdict:
    return judge(small, trace)


def fails(*_: object, **__: object) -> Any:
    raise ValueError("no such\nthing")


def fails_as_it_runs(*_: object, **__: object) -> Iterator[Any]:
    yield {}
    raise ValueError("no such\nthing")


def computes_nothing(call: Call, *_: object) -> Call:
    return dataclasses.replace(call, op=fails)


FAILING = {
    "its change": {"change": fails},
    "its ways": {"ways": fails},
    "a later way": {"ways": fails_as_it_runs},
    "its operation": {"change": computes_nothing},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILING)
def test_what_fails_is_noted_and_all_else_is_as_without_it(
    small: Model, trace: Trace, how: str, recwarn: pytest.WarningsRecorder
) -> None:
    sign = TABLE["rope-sign"]
    without = {id_: h for id_, h in TABLE.items() if h is not sign}
    verdict = judge(small, trace, table=TABLE | {"rope-sign": dataclasses.replace(sign, **FAILING[how])})
    assert verdict.failed == (Failed("rope-sign", Site(0, 2, "Qcur_rope"), "ValueError: no such thing"),)
    assert dataclasses.replace(verdict, failed=()) == judge(small, trace, table=without)
    assert list(recwarn) == []


@pytest.mark.slow
def test_what_fails_in_a_pair_only_is_noted_with_both(small: Model) -> None:
    """The second of a pair runs on the call that the first has made."""

    def change(call: Call, *rest: Any) -> Call | None:
        if call.attributes["pairing"] != "interleaved":
            raise OverflowError("half")
        return TABLE["rope-sign"].change(call, *rest)

    trace, _ = plant(small, PROMPT, ("rope-pairing", 2), ("rope-base", 2), decode=0)
    last = dataclasses.replace(TABLE["rope-sign"], change=change, stage=TABLE["rope-pairing"].stage + 1)
    verdict = judge(small, trace, table=TABLE | {"rope-sign": last})
    assert verdict.failed == (Failed("rope-pairing + rope-sign", Site(0, 2, "Qcur_rope"), "OverflowError: half"),)
    assert {e.hypothesis for e in verdict.explanations} == {"rope-pairing + rope-base"}


def holding_up(times: int) -> Hypothesis:
    """Rope's base, whose change fails after so many calls."""
    right, left = TABLE["rope-base"], iter(range(times))

    def change(call: Call, *rest: Any) -> Call | None:
        if next(left, None) is None:
            raise OverflowError("later")
        return right.change(call, *rest)

    return dataclasses.replace(right, change=change)


@pytest.mark.slow
def test_a_verdict_stands_whenever_a_hypothesis_begins_to_fail(small: Model, trace: Trace, right: Verdict) -> None:
    """As it is tried, at another site that it explains, where its calls are listed, and in the counter-check."""
    expected = judge(small, trace, table={"rope-base": TABLE["rope-base"]})
    for times in range(50):
        verdict = judge(small, trace, table={"rope-base": holding_up(times)})
        assert verdict.sites == right.sites
        assert {f.hypothesis for f in verdict.failed} <= {"rope-base"}
        if not verdict.failed:
            break
        explained = {e.hypothesis for e in verdict.explanations} == {"rope-base"}
        sites = {site for e in verdict.explanations if e.hypothesis is not None for site in e.sites}
        elsewhere = all(f.site not in sites for f in verdict.failed)  # where it was asked if it could show
        measured = any(e.measured is not None for e in verdict.explanations)  # what it did is seen all the same
        assert verdict.counter_check is None or not verdict.counter_check.agrees or elsewhere or measured
    assert times > 5
    assert explained  # it failed in the counter-check only
    assert verdict == expected


@pytest.mark.slow
def test_what_fails_where_an_arithmetic_is_sought_is_noted(tmp_path: Path) -> None:
    """What looks like an unknown arithmetic is held against the hypotheses, though nothing diverges in the end."""
    model = open_model(synthetic(tmp_path, n_layer=6))
    before, after = UNKNOWN["noise of 2e-3 on norms"]
    trace = dump(model, PROMPT, before=before, after=after)
    verdict = judge(model, trace, table=TABLE | {"norm-eps": dataclasses.replace(TABLE["norm-eps"], change=fails)})
    assert {f.hypothesis for f in verdict.failed} == {"norm-eps"}
    assert dataclasses.replace(verdict, failed=()) == judge(model, trace)
    assert verdict.verdict == "agrees"
    assert "One hypothesis could not be tried at " in render(verdict, width=500)


def test_every_report_says_what_could_not_be_tried(right: Verdict) -> None:
    failed = (
        Failed("rope-sign", Site(0, 2, "Qcur_rope"), "ValueError: no such thing"),
        Failed("norm-eps + rope-sign", Site(0, 2, "Qcur_rope"), "KeyError: 'x'"),
    )
    verdict = dataclasses.replace(right, failed=failed)
    said = (
        "2 hypotheses could not be tried at Qcur_rope-2: rope-sign (ValueError: no such thing), "
        "norm-eps + rope-sign (KeyError: 'x'). This is a defect of firstdiff: please report it."
    )
    assert said in render(verdict, width=500)
    assert said in unescape(html.render(verdict))
    assert said in unescape(notebook.fragment(verdict))
    assert said in str(fd.explain(verdict))
    assert said in str(fd.explain(verdict, "Qcur_rope-2"))
    assert "could not be tried" not in render(right, width=500)


def test_what_could_not_be_tried_is_read_again_and_only_of_a_site_that_is_there(right: Verdict, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    failed = Failed("rope-sign", Site(0, 2, "Qcur_rope"), "ValueError: no such thing")
    file.write_text(dataclasses.replace(right, failed=(failed,)).to_json())
    assert read_verdict(file).failed == (failed,)
    file.write_text(
        dataclasses.replace(right, failed=(dataclasses.replace(failed, site=Site(0, 9, "Qcur_rope")),)).to_json()
    )
    with pytest.raises(TraceError, match=r"failed\[0\] is of a site that is not there: 'Qcur_rope-9'"):
        read_verdict(file)
    record = json.loads(right.to_json())
    file.write_text(json.dumps(record | {"failed": [{"hypothesis": "rope-sign"}]}))
    with pytest.raises(TraceError, match=r"failed\[0\] lacks 'site'"):
        read_verdict(file)


def test_a_hypothesis_of_ours_that_fails_fails_the_test() -> None:
    """The guard in conftest.py."""
    with pytest.raises(TypeError):
        Failures().note(Site(0, 2, "Qcur_rope"), (TABLE["rope-sign"],), TypeError())
    with pytest.raises(TypeError), Failures().at(Site(0, 2, "Qcur_rope"), TABLE["rope-sign"], TABLE["rope-base"]):
        raise TypeError
