"""The page of a gate: a row a model, a column a prompt with an engine, a cell a case; names stay text."""

from __future__ import annotations

import re

from firstdiff.reports.sweep import render
from firstdiff.verdict.gated import Checked

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def case(name: str, *failures: str) -> Checked:
    return Checked(name, None, failures, 1 if failures else 0)


def test_models_are_rows_and_what_they_ran_is_columns() -> None:
    page = render([case("a/p/x"), case("a/q/x", "It fails."), case("b/q/x")], {"a/q/x": "a/q/x/report.html"})
    cells = re.findall(r"<t[hd].*?</t[hd]>", page)
    text = [re.sub(r"<[^>]*>", "", cell).strip() for cell in cells]
    assert text == ["model", "p/x", "q/x", "a", "· passes", "× not judged", "b", "", "· passes"]
    assert 'title="It fails."' in page
    assert '<a href="a/q/x/report.html">' in page
    assert "1 of 3 cases does not pass" in page


def test_all_that_pass_are_said_in_the_title() -> None:
    assert "<title>All 2 cases pass - firstdiff</title>" in render([case("a/p"), case("b/p")], {})


def test_names_and_reasons_stay_text() -> None:
    page = render([case(f"a/{HOSTILE}", HOSTILE)], {f"a/{HOSTILE}": HOSTILE}, [(HOSTILE, HOSTILE, {})])
    assert "<script" not in page
    assert "\x1b" not in page


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = render([case("a/p")], {})
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


def test_past_runs_stand_beside_each_case() -> None:
    past = [
        ("2026-01-01", "1.0", {"a/p": (False, "Qcur-1")}),
        ("2026-01-02", "1.1", {"a/p": (True, ""), "gone": (True, "")}),
    ]
    page = render([case("a/p"), case("a/new")], {}, past)
    assert page.count("<tr>") == 2 + 1 + 2
    assert 'title="2026-01-01, firstdiff 1.0"' in page
    assert '<td class="wrong" title="Qcur-1">' in page
    assert "gone" not in page
