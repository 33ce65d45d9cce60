"""What to run: token ids, or a text."""

from __future__ import annotations

from dataclasses import dataclass

from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.errors import UsageError
from firstdiff.model.engine import Model

PROMPT = (
    "A stitch in time saves nine, they say; but what does it save when 1,234 stitches are needed, "
    "the thread is short, and nobody remembers who asked for the coat?"
)
"""What is run where nothing else is asked for: over 32 tokens, with digits and punctuation."""

LONG = 2048
"""Tokens of ``--long``: from some 2,000 on, frequency factors and the precision of angles show in every pair."""


@dataclass(frozen=True, slots=True)
class Input:
    """What to run: token ids, or a text to tokenise.

    Parameters
    ----------
    tokens
        Token ids; given, they are used as they are.
    prompt
        A text, tokenised by llama.cpp.
    chat
        Put the text into the model's chat template.
    special
        Add the tokens that the model wants around a text, and read control tokens written in it.
    long
        Run a text of our own of `LONG` tokens, or of half as many as the context holds, where that is less.
    """

    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    chat: bool = False
    special: bool = True
    long: bool = False

    def ids(self, engine: LlamaCpp) -> list[int]:
        """Token ids, by llama.cpp's tokeniser where they are not given."""
        if self.tokens is not None:
            return list(self.tokens)
        text = PROMPT if self.prompt is None else self.prompt
        if self.long:
            text = "\n".join(f"{number}. {PROMPT}" for number in range(1, LONG // 16))
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise UsageError(f"--prompt: character {e.start} of the text is no UTF-8: give it in UTF-8") from None
        ids = engine.tokenize(engine.chat(text) if self.chat else text, special=self.special)
        return ids[:LONG] if self.long else ids


def tokens_of(model: Model, source: Input, vocabulary: LlamaCpp | None = None) -> list[int]:
    """Token ids of what to run; llama.cpp is asked only where there is a text, and opened where it is not open."""
    if source.tokens is not None:
        return list(source.tokens)
    if vocabulary is None:
        with vocabulary_of(model) as opened:
            return tokens_of(model, source, opened)
    ids = source.ids(vocabulary)
    return ids[: model.hp.n_ctx_train // 2] if source.long else ids


def vocabulary_of(model: Model) -> LlamaCpp:
    """The model in llama.cpp without its weights, which is enough to tokenise. Use as a context manager."""
    return LlamaCpp(model.gguf.path, vocabulary_only=True)
