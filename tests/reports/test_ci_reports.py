"""Markdown, JUnit and annotations: within their limits, and what traces hold stays text, whatever it is."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from builders.verdicts import site, verdict_of, wrong
from firstdiff.reports import annotations, junit, markdown
from firstdiff.verdict import Explanation, SiteVerdict, Verdict
from firstdiff.verdict.gated import Changes, Checked, Moved

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example",
    "a|b|c",
    "`code` ``more`` *bold* _under_ ~~gone~~ **b**",
    "line\n# heading\n\n- list\n::error::injected",
    "\x1b[31mred\x1b[0m\x00\x07",
    "$x^2$ @someone #12 &amp; &lt;b&gt;",
    "]]> <!-- ",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "lone \udc80 surrogate",
    "1. one",
    "- one",
    "> quote",
    "<details><summary>",
    "`",
    "   ",
    "",
]


def diverging(name: str) -> SiteVerdict:
    return wrong(replace(site("Qcur", 0), site=name), local_error=0.5, worst=None, where={"token": "all"})


def explanation_of(text: str) -> Explanation:
    return Explanation(
        text, (text,), f"{text} at every layer", "weight-transposed", f"says {text}", f"fix {text}", {}, 0.5, 1e-7, 1e-6
    )


def saying(text: str, *, sites: int = 1) -> Verdict:
    """A verdict whose every text is this one."""
    return verdict_of(
        [diverging(f"{text}{n or ''}") for n in range(sites)],
        candidate=text,
        against="reference:f32",
        model={"file": text},
        tokens=((1, 2),),
        arithmetic={"linear": text},
        notes=(text,),
        explanations=(explanation_of(text),),
    )


def failing(text: str, **rest: object) -> Checked:
    made = Checked(text, saying(text), (f"{text} is the first to go wrong.",), 1, notes=(text,), report=f"out/{text}")
    return replace(made, **rest)  # type: ignore[arg-type]


def passing(name: str) -> Checked:
    right = replace(saying("x"), sites=(site("embd", local_error=1e-8),), explanations=())
    return Checked(name, right, (), 0, report="out/verdict.json")


# Markdown


def parsed(text: str) -> list[Token]:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").parse(text)
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_becomes_markup(text: str) -> None:
    changes = Changes((Moved(text, "agrees", "diverges", 0.0, 1.0),), (), (text,), ((text, "not recorded"),))
    rendered = markdown.render([failing(text, changes=changes), passing(text)])
    kinds = {token.type for token in parsed(rendered)}
    assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image", "s_open", "em_open", "list_item_open"})
    assert kinds.isdisjoint({"code_block", "fence", "hr", "ordered_list_open"})
    headings = [token.tag for token in parsed(rendered) if token.type == "heading_open"]
    assert headings == ["h2", "h3"]
    bare = re.sub(r"(`+).*?[^`]\1(?!`)", "", rendered)  # GitHub makes links of addresses that are no code
    assert "://" not in bare
    assert "www." not in bare
    assert all(c.isprintable() or c == "\n" for c in rendered)
    rendered.encode()  # no lone surrogates


def test_every_row_of_a_table_has_all_its_cells() -> None:
    rendered = markdown.render([failing(text) for text in HOSTILE])
    cells: list[int] = []
    for token in parsed(rendered):
        if token.type == "tr_open":
            cells.append(0)
        elif token.type in ("td_open", "th_open"):
            cells[-1] += 1
    assert sorted(set(cells)) == [5, 6]
    assert len(cells) == (1 + len(HOSTILE)) + 2 * len(HOSTILE)
    assert all(len(line.split("|")) in (7, 8) for line in rendered.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("text", ["plain words", "<b>", "a_b-c", "1. x", "- x", "http://x.y", "a*b*c", "x & y", "\\n"])
def test_inert_text_reads_as_it_was(text: str) -> None:
    (inline,) = [token for token in parsed(markdown.inert(text)) if token.type == "inline"]
    assert "".join(child.content for child in inline.children or ()) == text


@pytest.mark.parametrize("text", ["Kcur_rope-3", "a`b", "``", "`x", "a <b> & *c*"])
def test_code_reads_as_it_was(text: str) -> None:
    (inline,) = [token for token in parsed(markdown.code(text)) if token.type == "inline"]
    assert [(child.type, child.content) for child in inline.children or ()] == [("code_inline", text)]


@pytest.mark.slow
def test_a_summary_of_anything_fits_its_limit() -> None:
    huge = [failing("名" * 5000, notes=("x" * 10_000,) * 20) for _ in range(100)]
    rendered = markdown.render(huge)
    assert 900_000 < len(rendered.encode()) <= 1 << 20
    assert rendered.endswith("sections left out: they do not fit, and verdict.json has all.\n")
    assert len(markdown.render(huge, most=1000).encode()) <= 1000


def test_a_summary_of_many_sites_names_the_first_and_counts_the_rest() -> None:
    rendered = markdown.render([failing("many", verdict=saying("s", sites=2000))])
    assert "`s19`" in rendered
    assert "`s20`" not in rendered
    assert "and 1,980 more" in rendered
    assert len(rendered) < 10_000


def test_a_clean_gate_is_one_table() -> None:
    rendered = markdown.render([passing("a"), passing("b")])
    assert rendered.startswith("## firstdiff: all 2 cases pass\n")
    assert "###" not in rendered
    assert markdown.render([passing("a")]).startswith("## firstdiff: passes\n")


def test_a_case_without_a_verdict_is_said() -> None:
    rendered = markdown.render([Checked("a", None, ("m.gguf: is no model",), 3)])
    assert rendered.startswith("## firstdiff: could not be judged\n")
    assert "**m.gguf: is no model**" in rendered


# The order of what is said


def test_the_sentence_comes_first_then_the_explanation_and_the_report_last() -> None:
    lines = junit.text(failing("s")).splitlines()
    assert lines[0] == "s is the first to go wrong."
    assert lines[1].startswith("s at every layer: says s")
    assert lines[-1] == "Report: out/s"


# JUnit


@pytest.mark.parametrize("text", HOSTILE)
def test_junit_is_xml_whatever_it_holds(text: str) -> None:
    rendered = junit.render([failing(text), passing(text), Checked(text, None, (text,), 3)])
    root = ET.fromstring(rendered.encode())
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [
        ["properties", "failure"], ["properties"], ["properties", "error"],
    ]  # fmt: skip


def test_junit_carries_the_verdict_as_properties() -> None:
    case = ET.fromstring(junit.render([failing("s")]))[0][0]
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["firstdiff.verdict"] == "diverges"
    assert properties["firstdiff.first"] == "s"
    assert str(properties["firstdiff.explanation"]).startswith("s at every layer: says s")
    assert properties["firstdiff.report"] == "out/s"


def test_the_same_cases_give_the_same_bytes() -> None:
    for render in (markdown.render, junit.render):
        assert render([failing("s"), passing("t")]) == render([failing("s"), passing("t")])


# Annotations


def test_at_most_ten_annotations_are_made_and_the_rest_counted() -> None:
    assert len(annotations.lines([failing(str(n)) for n in range(10)])) == 10
    lines = annotations.lines([failing(str(n)) for n in range(1234)])
    assert len(lines) == 10
    assert lines[-1] == "::error title=firstdiff::1,225 more cases do not pass"


def test_a_case_that_passes_is_no_annotation() -> None:
    assert annotations.lines([passing("a")]) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_an_annotation_is_one_line_and_one_command(text: str) -> None:
    (line,) = annotations.lines([failing(text)])
    assert line.startswith("::error title=firstdiff%3A ")
    title, _, message = line.removeprefix("::error title=").partition("::")
    assert ":" not in title
    assert "," not in title
    assert line.isprintable()
    assert "%0A" in message  # sentence and explanation
    assert len(line) < 10_000
