"""The table of hypotheses for people."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from firstdiff.errors import UsageError
from firstdiff.hypotheses.hypothesis import Hypothesis
from firstdiff.hypotheses.table import EQUIVALENT, TABLE

MEASURED = "any point, where no hypothesis explains it"
"""Where statements are measured."""

TOKENS = {
    "token-missing-bos": "BOS is missing in front",
    "token-double-bos": "BOS from the template and from the tokeniser",
    "token-added-bos": "a BOS that the model does not ask for",
    "token-appended-eos": "EOS appended to the prompt",
    "token-special-as-text": "control tokens spelt as characters",
    "token-space-prefix": "SentencePiece's space missing or doubled",
    "token-whitespace": "white space mapped, dropped or stripped",
    "token-pretokenizer": "another way of splitting the text before BPE",
    "template": "another chat template, or one on one side only",
}
"""What preflight tries on the way from a text to ids: harness/preflight/token_causes.py has the ways."""

TOKENS_FIX = "firstdiff tokens MODEL --prompt TEXT --ids YOURS says which, and what to do"


def no_such(id_: str) -> str:
    """Say that no bug of an id can be planted, which one is probably meant, and what lists them all."""
    near = difflib.get_close_matches(id_[:80], TABLE, n=1, cutoff=0.5)
    perhaps = f": did you mean {near[0]}?" if near else ""
    return f"no such bug{perhaps} (firstdiff demo --list names all)"


def listed(id_: str | None = None, measured: Mapping[str, Hypothesis] = MappingProxyType({})) -> list[dict[str, Any]]:
    """The hypotheses as plain records, or the one with an id; behind them statements that are `measured`.

    Raises
    ------
    UsageError
        For an id that is not in the table.
    """
    rows = [
        {"id": t, "points": ["tokens"], "says": says, "fix": TOKENS_FIX, "source": "", "same_numbers_as": []}
        for t, says in TOKENS.items()
    ]
    for h in TABLE.values():
        same = sorted({other for pair in EQUIVALENT if h.id in pair for other in pair if other != h.id})
        rows.append(
            {
                "id": h.id,
                "points": list(h.where.points),
                "says": h.told({}),
                "fix": h.advice(),
                "source": h.source,
                "same_numbers_as": same,
            }
        )
    rows += [
        {"id": h.id, "points": [MEASURED], "says": h.told({}), "fix": h.advice(), "source": "", "same_numbers_as": []}
        for h in measured.values()
    ]
    if id_ is None:
        return rows
    found = [row for row in rows if row["id"] == id_]
    if not found:
        near = difflib.get_close_matches(id_, [str(row["id"]) for row in rows], n=1)
        hint = f"did you mean {near[0]}?" if near else "firstdiff hypotheses lists them"
        raise UsageError(f"{id_!r:.80} is no hypothesis: {hint}")
    return found


def table(rows: list[dict[str, Any]], width: int) -> str:
    """One hypothesis a line, or more where its phrase is long."""
    names = max(len(row["id"]) for row in rows) + 2
    lines = []
    for row in rows:
        wrapped = textwrap.wrap(row["says"], max(20, width - names - 1)) or [""]
        lines.append(f"{row['id']:{names}}{wrapped[0]}")
        lines += [" " * names + line for line in wrapped[1:]]
    return "\n".join([*lines, "", f"{counted(rows)}. firstdiff hypotheses ID shows one in full."])


def counted(rows: list[dict[str, Any]]) -> str:
    """How many of the rows are of tensors, which can be planted, how many of tokens, and how many are measured."""
    tensors, tokens = (sum(row["id"] in of for row in rows) for of in (TABLE, TOKENS))
    told = f"{tensors} hypotheses of tensors, and {tokens} of tokens"
    rest = len(rows) - tensors - tokens
    return told + (f"; {rest} statements are measured where none of them explains" if rest else "")


def one(row: dict[str, Any]) -> str:
    """One hypothesis in full."""
    told = {
        "says": row["says"],
        "to do": row["fix"],
        "at": ", ".join(row["points"]),
        "seen in": row["source"],
        "can give the same numbers as": ", ".join(row["same_numbers_as"]),
        "plant it": "" if row["id"] not in TABLE else f"firstdiff demo --bug {row['id']}",
    }
    lines = [textwrap.fill(f"{label}: {text}", 79, subsequent_indent="  ") for label, text in told.items() if text]
    return "\n".join([row["id"], *lines])
