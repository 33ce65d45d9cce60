"""Pages opened in a browser: every complaint of one is noted, and what is shown on it can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builders.verdicts import verdict

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page, ViewportSize

WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


class Opened:
    """Opens pages, and takes note of every complaint, and of everything that a page asks for beside itself."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.complaints: list[str] = []
        self._browser, self._folder = browser, folder

    def __call__(
        self, text: str, *, size: ViewportSize = WIDE, scheme: str = "light", site: str = "", script: bool = True
    ) -> Page:
        file = self._folder / "report.html"
        file.write_text(text, encoding="utf-8")
        context = self._browser.new_context(
            viewport=size,
            color_scheme="dark" if scheme == "dark" else "light",
            java_script_enabled=script,
        )
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: self.complaints.extend([asked.url] * (not asked.url.startswith("file:"))))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.goto(file.as_uri() + (f"#{site}" if site else ""))
        return page


DETAILED = verdict(layers=3, bug=1, details=True)


def shown(page: Page) -> str:
    return page.inner_text("#site-title")


def follow(page: Page, link: str) -> None:
    """Click on the link to another site. The browser tells the page of the new address only after the click."""
    before = shown(page)
    page.click(link)
    page.wait_for_function("before => document.getElementById('site-title').innerText !== before", arg=before)


def cell(name: str) -> str:
    return f'#grid a.cell[title^="{name}:"]'


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.title")).partition(":")[0]


def overlapping(page: Page) -> list[str]:
    """Neighbours that lie upon each other."""
    return list(
        page.evaluate("""() => {
        const found = [];
        const parts = [...document.querySelectorAll(
          "main > section, .bench > section, #finding > *, #look > *, #legend > *, nav > *, dl > *, .ends > *")];
        for (const part of parts) {
          const next = part.nextElementSibling;
          if (!next || !part.getClientRects().length || !next.getClientRects().length) continue;
          const [a, b] = [part.getBoundingClientRect(), next.getBoundingClientRect()];
          const over = Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
          if (over) found.push(`${part.outerHTML.slice(0, 60)} / ${next.outerHTML.slice(0, 60)}`);
        }
        return found;
      }""")
    )
