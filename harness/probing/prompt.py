"""The prompt that probe models are run on: few tokens, all of them different."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from firstdiff.errors import UsageError
from firstdiff.runs.prompt import Input, tokens_of, vocabulary_of
from firstdiff.runs.run import Run

COUNT = 8
"""Tokens of the prompt where none is given: a tensor is read from differences of means over them."""

MOST = 128
"""Tokens of the longest prompt."""

AMONG = 0.02, 0.3
"""The part of the vocabulary that they are taken from: frequent tokens, whose rows were trained."""


def probe_tokens(run: Run, source: Input) -> tuple[int, ...]:
    """The ids to run: those asked for, or some of the vocabulary, for which no tokeniser is needed.

    Raises
    ------
    UsageError
        For a single token, one kind of token only (attention then has nothing to choose from), or too many.
    ModelError
        For ids that the model does not have, or more than its context holds.
    """
    model = run.model
    if source.tokens is None and source.prompt is None and not source.long:
        first, last = (part * model.hp.n_vocab for part in AMONG)
        ids = dict.fromkeys(int(i) for i in np.linspace(first, last, COUNT))
        tokens = tuple(ids)[: model.hp.n_ctx_train]
    else:
        with nullcontext() if source.tokens is not None else vocabulary_of(model) as vocabulary:
            tokens = tuple(tokens_of(model, source, vocabulary))
    if len(tokens) > MOST:
        raise UsageError(
            f"probe: a prompt of {len(tokens):,} tokens, where {MOST} are the most: give a shorter one, because all "
            "that the reference computes of it is kept"
        )
    if len(set(tokens)) < 2:  # noqa: PLR2004 - two tokens are the fewest that differ
        raise UsageError("probe: the prompt has one kind of token only: give one with at least two different ones")
    model.check_tokens(tokens)
    return tokens
