"""``verdict.json``: the same verdict gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from math import isfinite
from typing import Any

from firstdiff.dumps.site import Site
from firstdiff.verdict.explanations import CounterCheck, Explanation
from firstdiff.verdict.sites import Detail, SiteVerdict
from firstdiff.verdict.verdict import Verdict, Witness

FORMAT, VERSION = "firstdiff-verdict", 1


def to_json(verdict: Verdict) -> str:
    """The verdict as ``verdict.json`` holds it, ending in a newline. The same verdict gives the same bytes."""
    logits = [asdict(x) | {"top1_agrees": x.top1_agrees, "within_noise": x.within_noise} for x in verdict.logits]
    record = {
        "format": FORMAT,
        "version": VERSION,
        "verdict": verdict.verdict,
        "first": None if verdict.first is None else _plain(verdict.first),
        "diverging": [_plain(s) for s in verdict.diverging],
        "dump_next": [site.key for site in verdict.dump_next],
        "explanations": [_explained(e) for e in verdict.explanations],
        "counter_check": None if verdict.counter_check is None else _checked(verdict.counter_check),
        "failed": verdict.failed,
        "candidate": verdict.candidate,
        "against": verdict.against,
        "witness": None if verdict.witness is None else _plain_witness(verdict.witness),
        "model": verdict.model,
        "tokens": verdict.tokens,
        "pieces": verdict.pieces,
        "preflight": verdict.preflight,
        **({"dump": verdict.dump} if verdict.dump else {}),
        **({"sensitivity": verdict.sensitivity} if verdict.sensitivity else {}),
        "arithmetic": verdict.arithmetic,
        "layouts": verdict.layouts,
        "coverage": verdict.coverage,
        "logits": _worst_logits(logits),
        "notes": verdict.notes,
        "run": verdict.run,
        "sites": [_plain(s) for s in verdict.sites],
    }
    text = json.dumps(strict(record), indent=1, allow_nan=False)
    return text.removesuffix("\n}") + f',\n "details": {{{_details(verdict.details)}}}\n}}\n'


def _plain_witness(witness: Witness) -> dict[str, Any]:
    """The witness's fields; whether it is judged too, and what is broken, are said only where that is so."""
    return {k: v for k, v in _fields(witness).items() if k not in {"broken", "judged_too"} or v}


def _explained(explanation: Explanation) -> dict[str, Any]:
    """An explanation's fields; where it was searched, and what was not, are said only where there is more to say."""
    return {
        k: v
        for k, v in _fields(explanation).items()
        if k not in {"searched", "unsearched", "when", "measured", "inside"} or v
    }


def _checked(check: CounterCheck) -> dict[str, Any]:
    """The counter-check's fields, without the number that is not known."""
    return {k: v for k, v in _fields(check).items() if k != "judged" or v} | {"agrees": check.agrees}


def _worst_logits(logits: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The step that disagrees most, and all steps beside it."""
    if not logits:
        return None
    return max(logits, key=lambda x: (not x["top1_agrees"], x["kl"])) | {"steps": list(logits)}


def _details(details: dict[Site, Detail]) -> str:
    """A line a site: a number a line would make the file several times as long."""
    lines = (
        f"\n  {json.dumps(str(site))}: {json.dumps(strict(detail), separators=(',', ':'), allow_nan=False)}"
        for site, detail in details.items()
    )
    return ",".join(lines) + ("\n " if details else "")


def _plain(site: SiteVerdict) -> dict[str, Any]:
    """A site's fields, without those that have nothing to say."""
    told = {f.name: v for f in fields(site) if (v := getattr(site, f.name)) != f.default or f.name in _KEPT}
    of = {name: getattr(site, name) for name in PARTS}
    return {"site": told.pop("site")} | of | told


PARTS = ("point", "layer", "step")
"""What a site's name says, beside it in the file for those who do not want to take it apart."""

_KEPT = {"site", "op", "status", "local_error", "floor", "inputs_right"}


def _fields(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any record
    return {f.name: getattr(record, f.name) for f in fields(record)}


def strict(value: Any) -> Any:  # noqa: ANN401 - any value of a record, or JSON value
    """Give a record as JSON has it: a site by its name, records as objects, NaN and infinities as strings.

    The strings are ``"nan"``, ``"inf"`` and ``"-inf"``.
    """
    match value:
        case float() if not isfinite(value):
            return str(value)
        case dict():
            return {str(k): strict(v) for k, v in value.items()}
        case list() | tuple():
            return [strict(v) for v in value]
        case Site():
            return str(value)
        case _ if is_dataclass(value):
            return strict(_fields(value))
    return value
