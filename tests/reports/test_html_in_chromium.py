"""The page in a real Chromium: it can be read, clicked, walked by keyboard and printed, and complains of nothing."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from builders.command_line import Command
from builders.pages import DETAILED, PHONE, WIDE, Opened, cell, focused, follow, overlapping, shown
from builders.verdicts import EVERY_KIND, HOSTILE, LLAMA, NAME, verdict
from firstdiff.dumps import Site
from firstdiff.reports.escaped import escaped
from firstdiff.reports.html import render
from firstdiff.verdict.reading import read_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, ViewportSize

ON_A_PHONE = 1.0  # pixels that rounding may add to a width

FLAGS = [
    "--no-sandbox",  # root has none
    "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",  # it looks nothing up
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium. CI must have one; elsewhere these tests say that they did not run."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = f"no Chromium here ({', '.join(NAMES)}): install one, on Debian with apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CHROMIUM_REQUIRED") else pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Opens a page; whatever a test looks at, the page must not complain."""
    opener = Opened(browser, tmp_path)
    yield opener
    for context in browser.contexts:
        context.close()
    assert opener.complaints == []


@pytest.mark.sweep
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_of_verdict_fits_the_screen(kind: str, size: ViewportSize, scheme: str, opened: Opened) -> None:
    page = opened(render(EVERY_KIND[kind]), size=size, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"] + ON_A_PHONE
    assert overlapping(page) == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("layers", [2, 80])
def test_the_finding_is_on_the_first_screen(layers: int, size: ViewportSize, opened: Opened) -> None:
    page = opened(render(verdict(layers=layers, steps=2, bug=layers - 1)), size=size)
    assert page.inner_text("h1").startswith(f"Qcur_rope-{layers - 1} is the first to go wrong")
    assert "half-split pairs in place of interleaved ones" in page.inner_text("article")
    for part in ("h1", "article"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < size["height"]


def test_a_cell_opens_a_closer_look_at_its_site(opened: Opened) -> None:
    page = opened(render(DETAILED))
    assert shown(page) == "Qcur_rope-1"  # the finding comes first
    follow(page, cell("ffn_norm-2"))
    assert shown(page) == "ffn_norm-2"
    assert page.url.endswith("#ffn_norm-2")
    text = page.inner_text("#look")
    detail = DETAILED.details[Site(0, 2, "ffn_norm")]
    assert "inherits" in text
    assert "2e-7 against a floor of 1e-6" in text
    rows = [line.inner_text().split("\t") for line in page.locator("#look table").first.locator("tbody tr").all()]
    low = next(row for row in rows if row[0] == "lowest")
    assert [float(x) for x in low[1:]] == [detail.candidate.low, detail.reference.low]
    worst = page.locator("#look table").nth(1).locator("tbody tr").first.inner_text().split("\t")
    assert worst[0] == str(list(detail.worst[0].index))
    assert float(worst[1]) == detail.worst[0].candidate


def test_the_closer_look_has_every_chart_and_what_was_tried(opened: Opened) -> None:
    page = opened(render(DETAILED), site="Kcur_rope-1")
    captions = page.locator("#look figcaption").all_inner_texts()
    kinds = ("Error by token", "Error by head", "Error by head_dim", "Histogram", "Candidate (up) against")
    assert [c.startswith(k) for c, k in zip(captions, kinds, strict=True)] == [True] * 5
    detail = DETAILED.details[Site(0, 1, "Kcur_rope")]
    bars = [page.locator(f'#look svg[aria-label="Error by {p.axis}"] rect').count() for p in detail.profiles]
    assert bars == [len(p.errors) for p in detail.profiles]
    assert page.locator("#look svg circle").count() == len(detail.scatter)
    assert page.locator("#look h3").last.inner_text() == "Hypotheses tried at Qcur_rope-1, and what each leaves"
    assert "rope-pairing (explains)\t2e-7" in page.inner_text("#look")
    assert "rope-base\t0.41" in page.inner_text("#look")


def test_what_is_drawn_is_what_was_measured(opened: Opened) -> None:
    page = opened(render(DETAILED), site="Qcur_rope-1")
    (heads,) = (p for p in DETAILED.details[Site(0, 1, "Qcur_rope")].profiles if p.axis == "head")
    told = page.locator('#look svg[aria-label="Error by head"] rect title').all_text_contents()
    drawn = [float(t.partition("about ")[2]) for t in told]
    assert drawn == pytest.approx(heads.errors, rel=0.17)  # an eighth of a decade, and two digits


def test_a_verdict_without_details_says_how_to_get_them(opened: Opened) -> None:
    page = opened(render(verdict(bug=1)))
    assert "Judge again with --html or --details" in page.inner_text("#look")
    assert "0.83 against a floor of 1e-6" in page.inner_text("#look")


def test_a_link_to_a_site_of_another_step_shows_that_step(opened: Opened) -> None:
    page = opened(render(DETAILED), site="l_out-2@1")
    assert shown(page) == "l_out-2@1"
    assert page.get_attribute("#steps button >> nth=1", "aria-pressed") == "true"
    assert page.locator(cell("l_out-2@1")).get_attribute("aria-current") == "true"
    page.click("#steps button >> nth=0")
    assert page.locator(cell("l_out-2")).count() == 1


@pytest.mark.parametrize("site", ["none-9", "%", "%E0%A4%A", "<b>", "constructor"])
def test_a_link_to_no_site_shows_the_finding(site: str, opened: Opened) -> None:
    assert shown(opened(render(DETAILED), site=site)) == "Qcur_rope-1"


def test_the_map_has_a_cell_for_every_site_of_a_step(opened: Opened) -> None:
    page = opened(render(DETAILED))
    assert page.locator("#grid .cell").count() == 3 * len(LLAMA) + 3
    counted = {k: page.locator(f"#grid .cell.{k}").count() for k in ("agrees", "inherits", "diverges")}
    sites = [s for s in DETAILED.sites if s.step == 0]
    assert counted == {k: sum(s.status == k for s in sites) for k in counted}
    assert page.locator(cell("Qcur_rope-1")).inner_text() == "×"


def test_a_larger_error_is_darker(opened: Opened) -> None:
    told = verdict()
    errors = {"Qcur-0": 1e-8, "Kcur-0": 1e-7, "Vcur-0": 9e-7}
    page = opened(
        render(replace(told, sites=tuple(replace(s, local_error=errors.get(str(s.site), 0.0)) for s in told.sites)))
    )
    shade = "e => getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    shades = [page.locator(cell(site)).evaluate(shade) for site in errors]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 3


def test_the_keyboard_goes_everywhere(opened: Opened) -> None:
    page = opened(render(DETAILED))
    page.keyboard.press("Escape")
    assert focused(page) == "Qcur_rope-1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert focused(page) == "Kcur_rope-2"
    page.keyboard.press("Enter")
    assert shown(page) == "Kcur_rope-2"
    page.keyboard.press("p")
    assert shown(page) == "Kcur_rope-1"
    page.keyboard.press("n")
    assert shown(page) == "Qcur_rope-1@1"
    page.keyboard.press("n")
    page.keyboard.press("n")  # there is no further one
    assert shown(page) == "Kcur_rope-1@1"


def test_one_tab_stop_leads_into_the_map(opened: Opened) -> None:
    page = opened(render(DETAILED))
    assert page.locator('#grid .cell[tabindex="0"]').count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page):
            break
    assert focused(page) == "Qcur_rope-1"


def test_curves_follow_the_point_and_the_step(opened: Opened) -> None:
    page = opened(render(DETAILED))
    assert page.locator("#depth-chart circle").count() == 3
    assert page.locator("#depth-chart circle.wrong").count() == 1
    page.select_option("#depth-point", label="ffn_up")
    assert page.locator("#depth-chart circle.wrong").count() == 0
    assert "ffn_up" in page.inner_text("#depth-chart figcaption")
    page.click("#steps button >> nth=1")
    assert page.inner_text("#depth-chart figcaption").startswith("Step 1")
    assert all(page.locator(f"#depth-chart path.{name}").count() == 1 for name in ("error", "drift", "floor"))


def test_an_infinite_error_is_drawn_as_one(opened: Opened) -> None:
    page = opened(render(EVERY_KIND["unexplained"]))
    labels = {e.text_content(): e.get_attribute("y") for e in page.locator("#depth-chart svg text").all()}
    dot = page.locator("#depth-chart circle.wrong").get_attribute("cy")
    assert float(labels["inf"] or 0) - 4 == float(dot or 0)
    assert "local error inf" in (page.locator("#depth-chart title").last.text_content() or "")


def test_tokens_coverage_and_the_command_are_told(opened: Opened) -> None:
    page = opened(render(DETAILED))
    assert page.locator("#tokens li").first.inner_text().split() == ["0", "w0", "1"]
    assert page.locator("#tokens li").count() == 41
    assert "recorded: agrees" in page.inner_text("#coverage")
    run = page.inner_text("#run")
    assert all(word in run for word in ("firstdiff run 'a b.gguf'", "firstdiff 0.1.0", "ab" * 32, "1,2,3,4"))


def test_hostile_names_are_shown_as_they_are(opened: Opened) -> None:
    page = opened(render(EVERY_KIND["hostile"]))
    assert page.evaluate("window.pwned") is None
    assert shown(page) == f"{escaped(NAME)}-0"
    assert escaped(HOSTILE) in page.inner_text("h1")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    assert escaped(HOSTILE) in page.inner_text("#look")
    page.locator("#diverging a").first.click()
    assert shown(page) == f"{escaped(NAME)}-0"
    assert page.evaluate("window.pwned") is None
    assert page.title().endswith("- firstdiff")


def test_without_its_script_the_page_has_the_finding(opened: Opened) -> None:
    page = opened(render(DETAILED), script=False)
    text = page.inner_text("body")
    assert "Qcur_rope-1 is the first to go wrong" in text
    assert "half-split pairs" in text
    assert "are drawn by a script, which is switched off" in text
    assert page.locator("#diverging tbody tr").count() == 4


def test_the_page_prints(opened: Opened) -> None:
    page = opened(render(DETAILED), scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('#site').scrollHeight <= document.querySelector('#site').offsetHeight")
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")


CONTRAST = """() => {
  const style = getComputedStyle(document.documentElement);
  const channel = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => channel(parseInt(hex.slice(i, i + 2), 16) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const pairs = [["--ink", "--paper"], ["--ink", "--panel"], ["--soft", "--paper"], ["--soft", "--panel"],
    ["--link", "--paper"], ["--mark", "--diverges"], ["--mark", "--agrees"]];
  return Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str, opened: Opened) -> None:
    ratios = opened(render(DETAILED), scheme=scheme).evaluate(CONTRAST)
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.2, 1.4.3


COLOURS = """() => {
  const style = getComputedStyle(document.documentElement);
  return ["--agrees", "--inherits", "--diverges"].map((name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
  });
}"""

# Viénot, Brettel and Mollon 1999, in linear RGB: how protanopes and deuteranopes see a colour.
BLIND: dict[str, tuple[tuple[float, float, float], ...]] = {
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    "grey": ((0.2126, 0.7152, 0.0722),) * 3,
}


@pytest.mark.parametrize("blind", BLIND)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_statuses_are_told_apart_without_seeing_every_colour(scheme: str, blind: str, opened: Opened) -> None:
    seen = [as_seen(colour, blind) for colour in opened(render(DETAILED), scheme=scheme).evaluate(COLOURS)]
    agrees, inherits, diverges = seen
    far = {"agrees, diverges": apart(agrees, diverges), "inherits, diverges": apart(inherits, diverges)}
    limit = 0.05 if blind == "grey" else 0.25
    assert min(far.values()) > limit, far


def as_seen(colour: list[float], blind: str) -> list[float]:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    mixed = [max(0.0, sum(w * x for w, x in zip(row, linear, strict=True))) for row in BLIND[blind]]
    return [12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in mixed]


def apart(a: list[float], b: list[float]) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)


# A real run


def test_the_demo_writes_a_page_of_a_real_model(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Page]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = Command(capfd)("demo", "--out", "out", "--html", "demo.html")
    assert ran.code == 0
    assert "\nPage: demo.html\n" in ran.out
    text = (tmp_path / "demo.html").read_text("utf-8")
    assert len(text.encode()) < 1e6
    assert text == render(read_verdict(tmp_path / "out" / "verdict.json"))
    page = opened(text)
    assert page.inner_text("h1").startswith("Qcur_rope-17 is the first to go wrong")
    assert "rope base" in page.inner_text("article")
    follow(page, cell("kq_soft_max-20"))
    assert shown(page) == "kq_soft_max-20"
    assert page.locator("#look figure").count() == 5
    run: dict[str, Any] = {label.inner_text(): None for label in page.locator("#run dt").all()}
    assert {"command", "sha256", "versions"} <= set(run)
