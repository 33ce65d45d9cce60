"""What a server answers to a prompt: the log probabilities of the most probable tokens behind it, checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from firstdiff.errors import CaptureError, escaped
from firstdiff.model.probes.most_probable import FIRST, token_of
from firstdiff.model.synthetic import LEAST_VOCABULARY, vocabulary
from firstdiff.probing.engine import Floats

AT_LEAST = -1e3
"""Log probabilities below it stand for none: vLLM writes -9999, llama.cpp float32's lowest. Ours are above -200."""

COARSE = 5
"""Decimals that are too few: numbers with so many are off by more than a right engine's logits are."""

ENABLE = "start it with log probabilities (llama-cpp-python: --logits_all true; vLLM: --max-logprobs N)"

_BY_ID = re.compile(r"token_id:(\d{1,9})")
_BYTE = re.compile("[\\x00-\\xff\u2581]?|bytes?:.*|\ufffd+", re.DOTALL)


def logprobs_of(answer: Mapping[str, Any], tokens: Sequence[int], width: int) -> Floats:
    """The log probabilities that a server gave for the first token behind a prompt.

    Parameters
    ----------
    answer
        What it answered, in the form of OpenAI's completions or of llama.cpp's.
    tokens, width
        The prompt, and how many tokens the model's vocabulary has.

    Returns
    -------
    float32 [1, width]; NaN for tokens that it does not name.

    Raises
    ------
    CaptureError
        For an answer without them, with tokens of another model or prompt, or with numbers that are none.
    """
    _check_prompt(answer, len(tokens))
    made = np.full((1, width), np.nan, np.float32)
    given: list[float] = []
    for name, value in _first(answer):
        if isinstance(value, bool) or not isinstance(value, int | float) or not AT_LEAST < value < -AT_LEAST:
            raise CaptureError(
                f"--server: the log probability of {_shown(name)} is {_shown(value)}, which says nothing of its logit: "
                "let it give those of the logits themselves, before anything is chosen of them"
            )
        token = _token(name, width)
        known = made[0, token]
        if token >= FIRST and not np.isnan(known) and known != np.float32(value):
            raise CaptureError(
                f"--server: it gives two log probabilities for {_shown(name)}, {known:.6g} and {value:.6g}: see that "
                "its tokens are those of the file, each with its own text"
            )
        made[0, token] = np.fmax(known, np.float32(value))
        given.append(float(value))
    if len(set(given)) > 1 and all(x == round(x, COARSE) for x in given):
        raise CaptureError(
            f"--server: its log probabilities are rounded to {COARSE} decimals or fewer ({given[0]:.6g}): let it write "
            "all digits of float32"
        )
    return made


def _check_prompt(answer: Mapping[str, Any], tokens: int) -> None:
    usage = answer.get("usage")
    ran = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(ran, int) and ran != tokens:
        raise CaptureError(
            f"--server: it ran a prompt of {ran:,} tokens, where {tokens} were given: let it add no BOS, no space and "
            "no chat template, and see that it reads tokenizer.ggml.add_bos_token and add_space_prefix of the file"
        )


def _first(answer: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    """What was given for the first token: each of the most probable ones, by its id or its text."""
    choice = _item(answer.get("choices"))
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    if not isinstance(logprobs, dict):
        raise CaptureError(f"--server: its answer has no choices[0].logprobs: {ENABLE}")
    of = _item(logprobs.get("content")) or _item(logprobs.get("top_logprobs"))
    if isinstance(of, dict) and "top_logprobs" in of:  # llama.cpp, and the form of chats
        of = of["top_logprobs"]
    if not of:
        raise CaptureError(f"--server: it gives no log probabilities of the token behind the prompt: {ENABLE}")
    if isinstance(of, dict):
        yield from of.items()
        return
    for entry in of if isinstance(of, list) else [of]:
        if not isinstance(entry, dict) or "logprob" not in entry:
            raise CaptureError(f"--server: what it gives for a probable token is no log probability: {_shown(entry)}")
        name = entry.get("id")
        yield (name if isinstance(name, int) else entry.get("token")), entry["logprob"]


def _item(of: object) -> object:
    return of[0] if isinstance(of, list) and of else None


def _token(name: object, width: int) -> int:
    """The token that a server means: by its id, or its text; 0 for any whose row in the output matrix is zeros."""
    if isinstance(name, str):
        found = _BY_ID.fullmatch(name)
        token = int(found[1]) if found else token_of(name)
        if token is None and (_BYTE.fullmatch(name) or name in _CONTROLS):
            return 0
    else:
        token = name if isinstance(name, int) and not isinstance(name, bool) else None
    if token is None or not 0 <= token < width:
        raise CaptureError(
            f"--server: it names the token {_shown(name)}, which the model does not have: it did not load the file "
            "that {model} stands for, or kept another model"
        )
    return token if token >= FIRST else 0


_CONTROLS = frozenset(vocabulary(LEAST_VOCABULARY)[0][:FIRST])


def _shown(value: object) -> str:
    return escaped(repr(value)[:60])
