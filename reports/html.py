"""The verdict as one HTML page: nothing is fetched, nothing but the page's own script runs, names stay text."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from firstdiff.reports import map as layers
from firstdiff.reports import words
from firstdiff.reports.escaped import escaped
from firstdiff.reports.explanations import drawing
from firstdiff.reports.facts import facts
from firstdiff.reports.payload import payload
from firstdiff.reports.sentences import sentences
from firstdiff.verdict import Explanation, SiteVerdict, Verdict

ROWS = 30  # of the table of diverging sites; the map has all
TOKENS = 4096  # that are shown one by one

GLYPHS = {status: "×" if mark == "X" else mark for status, (mark, _) in layers.MARKS.items()}
"""Those of the terminal, so that no status is told by colour alone."""


def render(verdict: Verdict) -> str:
    """Write a verdict as a page. The same verdict gives the same bytes.

    Parameters
    ----------
    verdict
        What to write; with details (``--html``, ``--details``) every site has a closer look.
    """
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            verdict=verdict,
            sentences=sentences(verdict),
            facts=facts(verdict),
            explanations=[_explanation(e) for e in verdict.explanations],
            diverging=[_row(s) for s in verdict.diverging[:ROWS]],
            left_out=max(0, len(verdict.diverging) - ROWS),
            tokens=_tokens(verdict),
            run=_run(verdict),
            data=payload(verdict, escaped),
            glyphs={status.value: glyph for status, glyph in GLYPHS.items()},
            style=style(),
            script=Markup(script),  # noqa: S704 - our own file
            digest=digest,
        )
    )


def environment() -> Environment:
    """What pages are written with: all that is put in is escaped."""
    made = Environment(
        autoescape=True,
        finalize=lambda x: escaped(x) if type(x) is str else x,
        keep_trailing_newline=True,
        loader=FunctionLoader(_source),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    made.filters["number"] = words.number
    return made


def style() -> Markup:
    """The style of every page."""
    return Markup(_source("page.css"))  # noqa: S704 - our own file


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _explanation(e: Explanation) -> dict[str, Any]:
    """An explanation in words."""
    left = ""
    if e.residual is not None:
        of = f"a local error of {words.number(e.error)}, floor {words.number(e.floor)}"
        left = f"Leaves {words.number(e.residual)} of {of}."
        if e.next_best is not None:
            left += f" The next best, {e.next_best.hypothesis}, leaves {words.number(e.next_best.residual)}."
    elif e.next_best is not None:
        left = f"The best of them, {e.next_best.hypothesis}, leaves {words.number(e.next_best.residual)}."
    if e.measured is not None:
        left += f" Measured on {words.counted(e.measured.numbers, 'number')} of the candidate."
    return {
        "extent": e.extent,
        "site": str(e.site),
        "hypothesis": e.hypothesis,
        "says": e.says,
        "fix": e.fix,
        "attributes": ", ".join(f"{name} {_plain(value)}" for name, value in e.attributes.items()),
        "left": left,
        "equals": [f"{t.hypothesis}: {t.says}" for t in e.equals],
        "separate": e.separate,
        "note": e.note,
        "findings": e.findings,
        "when": e.when,
        "drawing": "\n".join(drawing(e.measured.series)) if e.measured and e.measured.series else "",
    }


def _plain(value: object) -> str:
    """A parameter, the same whether it comes from memory or from a file."""
    return words.number(value, 6) if isinstance(value, float) else json.dumps(value, default=str).strip('"')


def _row(s: SiteVerdict) -> dict[str, str]:
    error, floor = words.apart(s.local_error, s.floor)
    return {
        "site": escaped(str(s.site)),
        "op": s.op,
        "error": error,
        "floor": floor,
        "drift": words.number(s.drift),
        "where": words.place(s),
        "inputs": words.inputs(s),
    }


def _tokens(verdict: Verdict) -> list[dict[str, Any]]:
    """Step by step, each token with its text where that is known."""
    told, room = [], TOKENS
    for step, ids in enumerate(verdict.tokens):
        pieces = verdict.pieces if step == 0 and len(verdict.pieces) == len(ids) else [None] * len(ids)
        told.append({
            "step": step,
            "tokens": list(zip(ids, pieces, strict=True))[:room],
            "left_out": max(0, len(ids) - room),
        })  # fmt: skip
        room -= min(room, len(ids))
    return told


def _run(verdict: Verdict) -> list[tuple[str, str]]:
    """What was run, so that it can be run again."""
    command, versions = verdict.run.get("command"), verdict.run.get("versions")
    prompt = ",".join(map(str, verdict.tokens[0])) if verdict.tokens else ""
    told = [
        ("command", _quoted(command) if isinstance(command, list) else ""),
        ("candidate", verdict.candidate),
        ("against", verdict.against),
        *((str(name), _plain(value)) for name, value in verdict.model.items()),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("machine", str(verdict.run.get("machine") or "")),
        ("tokens of step 0", prompt),
    ]
    return [(label, said) for label, said in told if said]


def _quoted(command: list[Any]) -> str:
    """A command as a shell takes it."""
    import shlex

    return shlex.join(map(str, command))
