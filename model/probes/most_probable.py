"""What the log probabilities of the most probable tokens say of a probe model's logits.

Such numbers are logits up to one number, the same for all tokens. A probe model has tokens whose rows of the output
matrix are zeros: their logit is 0, so that their log probability is that number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model.rounding import round_to

Floats = npt.NDArray[np.float32]

FIRST = 259
"""The id of the first token of ours: those before it are control tokens and bytes."""

LETTER = 0x4E00
"""The character that is its text. It and those after it are in no other token, and no normalisation changes them."""

LETTERS = 20_000
"""How many there are of them, and some more."""

DIGITS = ("bf16", "f16", "tf32")
CLOSE, LARGE, ENOUGH = 4e-6, 0.05, 3
"""Logits of fewer digits are taken for that if all are as close to such a number as differences of two float32 numbers
of up to 16 may be off, and at least three are large enough for that to tell anything."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Which rows of an output matrix are none of zeros: those of the tokens from `FIRST` on.

    Parameters
    ----------
    of
        What each number that shows is of: a coordinate of the stream, or a token of the model itself.
    scale
        How many times as large it shows, where it is a coordinate: it has two rows then, one with the other sign. None
        for a token's.
    """

    of: tuple[int, ...]
    scale: float | None = None

    @property
    def rows(self) -> int:
        """How many numbers of the last token show in its most probable tokens."""
        return len(self.of)

    @property
    def pairs(self) -> bool:
        """Whether each has two rows."""
        return self.scale is not None

    def element(self, token: int) -> tuple[int, float] | None:
        """What a token's logit is of, and how many times as large it is; None for one that is always 0."""
        if not FIRST <= token < self.last:
            return None
        if self.scale is None:
            return self.of[token - FIRST], 1.0
        place, negative = divmod(token - FIRST, 2)
        return self.of[place], -self.scale if negative else self.scale

    @property
    def last(self) -> int:
        """The id behind the last of its rows."""
        return FIRST + self.rows * (2 if self.pairs else 1)

    def logits(self, logprobs: Floats) -> Floats | None:
        """What the log probabilities say of all logits.

        Parameters
        ----------
        logprobs
            Of the last token [1, vocabulary]; NaN where none was given.

        Returns
        -------
        float32 [1, vocabulary]: logits that were not given are those of the pair's other token with the other sign, or
        else 0, than which they are not more. None where no token of zero is among those given.
        """
        x = np.asarray(logprobs[0], np.float64)
        zeros = np.concatenate([x[:FIRST], x[self.last :]])
        zeros = zeros[~np.isnan(zeros)]
        if not zeros.size:
            return None
        shown = x[FIRST : self.last] - zeros.max()
        if self.pairs:
            a, b = shown[::2].copy(), shown[1::2].copy()
            shown[::2] = np.where(np.isnan(a), -b, a)
            shown[1::2] = np.where(np.isnan(b), -a, b)
        made = np.zeros_like(logprobs, np.float32)
        made[0, FIRST : self.last] = with_its_digits(np.nan_to_num(shown, nan=0.0).astype(np.float32))
        return made


def with_its_digits(logits: Floats) -> Floats:
    """Logits without what their log probabilities' own rounding added, where they had fewer digits."""
    large = np.abs(logits) > LARGE
    if np.count_nonzero(large) < ENOUGH:
        return logits
    for digits in DIGITS:
        short = round_to(logits, digits)
        if (np.abs(logits - short)[large] <= CLOSE).all():
            return np.asarray(short, np.float32)
    return logits


def piece(token: int) -> str:
    """The text of a token of ours."""
    return chr(LETTER + token - FIRST)


def token_of(text: str) -> int | None:
    """The token of ours that has a text; None for no such token."""
    return FIRST + ord(text) - LETTER if len(text) == 1 and 0 <= ord(text) - LETTER < LETTERS else None
