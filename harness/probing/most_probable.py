"""An engine that gives the most probable tokens only: which coordinates of the stream it shows, and how many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.errors import CaptureError
from firstdiff.model.probes.files import ProbeModel
from firstdiff.model.probes.most_probable import Shown
from firstdiff.verdict import Element, SiteVerdict

Ids = npt.NDArray[np.intp]

LEAST = 2
"""Tokens that are given at least: one of a number, and one of zero."""

MOST = 256
"""Numbers that are read at most where nobody asks for more: a server may sort for each, or look up its text."""


def best_shown(free: Mapping[Site, npt.NDArray[np.floating]]) -> Ids:
    """All coordinates of the stream, those first that are nearest to 1 behind each layer once they are normed.

    Beside a number that is far larger than the others, these would hardly count, and far smaller ones have few digits.

    Parameters
    ----------
    free
        What the reference gives for the prompt, by site.
    """
    rows = [np.asarray(x[-1], np.float64) for site, x in free.items() if site.point in ("embd", "l_out")]
    sizes = np.abs(np.array([row / max(np.sqrt(np.square(row).mean()), 1e-30) for row in rows]))  # [site, n_embd]
    nearness = np.minimum(sizes, 1 / np.maximum(sizes, 1e-30)).min(0)
    return np.argsort(-nearness, kind="stable").astype(np.intp)


def fewer(logprobs: npt.NDArray[np.float32], probe: ProbeModel, *, first: bool) -> int:
    """How many numbers show in what an engine gives, where it gave none for a token whose logit is 0.

    Parameters
    ----------
    logprobs
        What it gave for a model [1, vocabulary]; NaN for other tokens.
    probe
        The model.
    first
        Whether it is the first that it was asked for.

    Raises
    ------
    CaptureError
        Where it gave enough, but others; where it gave more before; or where these are too few.
    """
    given, rows = int(np.count_nonzero(~np.isnan(logprobs))), 0 if probe.shown is None else probe.shown.rows
    if given > rows:
        raise CaptureError(
            f"--server: its {given} most probable tokens hold none of those whose rows in the output matrix are zeros, "
            f"where {rows} logits at most are above 0: look at the output matrix, and at what is done with logits "
            "afterwards"
        )
    if given < LEAST:
        raise CaptureError(
            f"--server: it gives the log probability of {given} token only, where {LEAST} are the least that say "
            "anything: let it give more of the most probable tokens, or ask for more with --top"
        )
    if not first:
        raise CaptureError(
            f"--server: it gives {given} of the most probable tokens of a model, where it gave {rows + 1} of another: "
            "let it give as many each time, or ask for fewer with --top"
        )
    return given - 1


def as_shown(s: SiteVerdict, shown: Shown) -> SiteVerdict:
    """What was found of a probe model's logits, as what they are of: their places are those of tokens of ours."""
    worst, where = s.worst, s.where
    of = None if worst is None else shown.element(worst.index[-1])
    if worst is not None and of is not None:
        place, scale = of
        worst = Element((*worst.index[:-1], place), worst.candidate / scale, worst.reference / scale)
    tokens = None if where is None else dict(list(where.items())[:-1])
    return replace(s, worst=None if of is None else worst, where=tokens)


def of_most_probable(shown: int, n_embd: int, own_rows: int | None) -> Iterator[str]:
    """What was read of each model from its most probable tokens, and what was not, in words.

    Parameters
    ----------
    shown, n_embd
        How many coordinates of the stream show, and how many it has.
    own_rows
        How many rows of the model's own output matrix were looked at; None where it did not come to that.
    """
    which = "all" if shown == n_embd else f"{shown:,}"
    others = "" if shown == n_embd else ", or only the other coordinates,"
    yield (
        "your server gives the log probabilities of the most probable tokens only, so that each model showed "
        f"{shown:,} {'number' if shown == 1 else 'numbers'} of the prompt's last token: {which} of the {n_embd:,} "
        f"coordinates of the residual stream. A fault that changes only other tokens{others} does not show"
    )
    if own_rows == 0:
        yield "the last norm and the output matrix of the model itself were not looked at"
    elif own_rows is not None:
        yield (
            f"{own_rows:,} rows of the model's own output matrix were judged, those of the most probable tokens for "
            "this prompt: a fault that changes only other rows does not show"
        )
