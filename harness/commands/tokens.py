"""``firstdiff tokens``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.vocabulary import Vocabulary
from firstdiff.preflight.tokens import check_tokens, checked, describe, listed


def tokens_command(
    *, model: Path, prompt: str, chat: bool = False, special: bool = True, ids: Sequence[int] | None = None
) -> tuple[str, dict[str, Any], int]:
    """``firstdiff tokens``: the ids of a text with their pieces, or a comparison with given ids.

    Returns
    -------
    Text, JSON, and exit code: 1 where the given ids differ.

    Raises
    ------
    CaptureError, UsageError
        See :func:`check_tokens`.
    """
    with LlamaCpp(model, vocabulary_only=True) as engine:
        if ids is not None:
            check = check_tokens(engine, ids, prompt, chat=chat, special=special)
            return describe(check), check.plain(), 0 if check.agrees else 1
        plain = Vocabulary.of(engine)
        text = engine.chat(checked(prompt)) if chat else checked(prompt)
        own = plain.tokenize(text, around=special, control=special)
        pieces = [plain.piece(token) for token in own]
    return listed(own, pieces), {"text": text, "ids": list(own), "pieces": pieces}, 0


def tokens(options: argparse.Namespace) -> int:
    """Print a text's tokens, or compare ids with them."""
    return print_result(
        options,
        tokens_command(
            model=options.model, prompt=options.prompt, chat=options.chat, special=options.special, ids=options.ids
        ),
    )
