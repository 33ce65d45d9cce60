"""The page as a file: the same bytes for the same verdict, nothing fetched, names stay text, and not too large."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from builders.pages import DETAILED
from builders.verdicts import EVERY_KIND, verdict
from firstdiff.reports.html import GLYPHS, render


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_same_verdict_gives_the_same_bytes(kind: str) -> None:
    assert render(EVERY_KIND[kind]) == render(EVERY_KIND[kind])


def test_the_page_names_no_other_file_and_no_host() -> None:
    text = render(DETAILED)
    assert re.findall(r'(?:src|href|action|data|poster)="(?!#)[^"]*"', text) == []
    assert re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", text) == []
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}  # SVG's name, no address


class Elements(HTMLParser):
    """Every element of a page with its attributes' names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag, *(name for name, _ in attrs)] += 1


def test_hostile_names_add_no_element() -> None:
    elements = Elements(render(EVERY_KIND["hostile"])).found
    assert set(elements) <= {*Elements(render(DETAILED)).found, *Elements(render(EVERY_KIND["unexplained"])).found}
    assert sum(n for (tag, *_), n in elements.items() if tag == "script") == 2


def test_hostile_names_leave_no_character_that_acts() -> None:
    text = render(EVERY_KIND["hostile"])
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "{{7*7}}" in text


def test_only_the_pages_own_script_may_run() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', render(DETAILED))
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='(;|$)", policy)


@pytest.mark.slow
def test_smollm2s_page_has_less_than_1_mb() -> None:
    assert len(render(verdict(layers=30, steps=3, bug=17, details=True)).encode()) < 1e6


@pytest.mark.slow
def test_a_page_of_100_layers_has_less_than_5_mb() -> None:
    assert len(render(verdict(layers=100, steps=3, bug=57, details=True)).encode()) < 5e6


def test_every_status_has_a_mark_of_its_own() -> None:
    assert len(set(GLYPHS.values())) == len(GLYPHS)
