"""The results of a run through the suite: as text, as a record, and as a badge."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from firstdiff.conformance.running import Outcome, Result
from firstdiff.verdict.gated import Checked

FORMAT, VERSION = "firstdiff-conformance", 1

COLOURS = {0: "brightgreen", 1: "red"}


def exit_code(results: Sequence[Result]) -> int:
    """0 where nothing fails and something passes, 1 where something fails, 4 where no test could be run."""
    count = Counter(r.outcome for r in results)
    if count[Outcome.FAILED]:
        return 1
    return 0 if count[Outcome.PASSED] else 4


def lines(results: Sequence[Result], arithmetic: str | None, *, width: int) -> Iterator[str]:
    """A line for each test, what is wrong with those that failed, and the sum."""
    name = max((len(r.test.name) for r in results), default=0)
    for r in results:
        error = "" if r.error is None or r.floor is None else f"error {r.error:.2g}, floor {r.floor:.2g}"
        yield f"{r.test.name:{name}}  {r.outcome:7}  {error}".rstrip()
        if r.outcome is Outcome.FAILED:
            yield from _wrapped(f"isolates {r.test.isolates}", width)
        if r.outcome is Outcome.LEFT_OUT:
            continue
        if r.outcome is Outcome.REFUSED:
            said = r.says.rpartition("its last words: ")[2]
            yield "    " + textwrap.shorten(said, width - 4, placeholder=" …")
        elif r.says:
            yield from _wrapped(r.says, width)
    yield from _left_out(results, width)
    yield ""
    yield summed_up(results) + (f" The engine computes as {arithmetic} does." if arithmetic else "")
    if results and results[0].outcome is Outcome.FAILED:
        yield ("The plain model is not right already, so that other failures may be of the same fault: mend it first.")


def summed_up(results: Sequence[Result]) -> str:
    """How many tests passed, failed and were refused."""
    count = Counter(r.outcome for r in results)
    refused = f", {count[Outcome.REFUSED]} refused by the engine" if count[Outcome.REFUSED] else ""
    left_out = f", {count[Outcome.LEFT_OUT]} left out" if count[Outcome.LEFT_OUT] else ""
    return f"{count[Outcome.PASSED]} of {len(results)} tests passed, {count[Outcome.FAILED]} failed{refused}{left_out}."


def _left_out(results: Sequence[Result], width: int) -> Iterator[str]:
    """Why tests were left out, each reason once."""
    for said in dict.fromkeys(r.says for r in results if r.outcome is Outcome.LEFT_OUT):
        yield from _wrapped(f"left out: {said}", width)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - 4, initial_indent="    ", subsequent_indent="    ")


def record(results: Sequence[Result], arithmetic: str | None) -> dict[str, Any]:
    """All results as JSON has them."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "arithmetic": arithmetic,
        "tests": [
            {
                "name": r.test.name,
                "isolates": r.test.isolates,
                "outcome": str(r.outcome),
                "says": r.says,
                "error": r.error,
                "floor": r.floor,
            }
            for r in results
        ],
    }


def badge(results: Sequence[Result]) -> dict[str, Any]:
    """A badge as shields.io reads it from an address (https://shields.io/badges/endpoint-badge)."""
    passed = sum(r.outcome is Outcome.PASSED for r in results)
    ran = sum(r.outcome in (Outcome.PASSED, Outcome.FAILED) for r in results)
    return {
        "schemaVersion": 1,
        "label": "firstdiff conformance",
        "message": f"{passed} of {ran}",
        "color": COLOURS.get(exit_code(results), "lightgrey"),
    }


def cases(results: Sequence[Result]) -> list[Checked]:
    """The results as cases of a gate, which JUnit and Markdown are made of. What was not judged is no case."""
    return [
        Checked(
            r.test.name,
            r.verdict,
            (f"isolates {r.test.isolates}: {r.says}",) if r.outcome is Outcome.FAILED else (),
            1 if r.outcome is Outcome.FAILED else 0,
        )
        for r in results
        if r.outcome in (Outcome.PASSED, Outcome.FAILED)
    ]
