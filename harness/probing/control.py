"""Whether an engine's logits are those of the model and of the tokens that it was given.

Two models are asked for that have one layer, which passes on what it is given, and other embedding rows. So each row of
logits is an embedding row, divided by its root mean square, and the rows of the two are known to differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Step
from firstdiff.engines.reference import Recording
from firstdiff.errors import CaptureError
from firstdiff.model.arithmetic import F32
from firstdiff.model.probes.files import EMBEDDING, HEAD
from firstdiff.probing.asking import Answer, Asking
from firstdiff.probing.engine import Floats

ALIKE = 0.9
"""The cosine from which a row of logits is taken for that of an embedding row: arithmetics of 4 bits leave more."""

FEW, SURELY, TOO_FEW = 32, 0.999, 6
"""Of fewer logits a cosine may be as large by chance, so that this one is asked for; of so few it says nothing."""

SUMS = 1e-3
"""How far from 1 a sum may be where it is taken for one of probabilities."""


def control(asking: Asking, tokens: Sequence[int]) -> Answer:
    """Ask for both models, and return what was given for the one with the model's own embedding.

    Raises
    ------
    CaptureError
        Where the logits are not those of the models or of the tokens, with what they are.
    """
    other = asking.model_of((0,), _drawn(len(tokens), asking.run.model.hp.n_embd), frozenset({0}))
    second = asking.ask(other, "rows of our own")
    shown = _rows(second)
    own = asking.model_of((0,), tokens, frozenset({0}))
    first = asking.ask(own, "the embedding")
    for answer in (second, first):
        _check_numbers(answer, asking.option)
        _check_kind(answer, asking.option)
    if np.array_equal(first.logits, second.logits, equal_nan=True):
        raise CaptureError(
            f"{asking.option}: it gave the same logits for two models with other embedding rows: it does not read the "
            "file that {model} stands for, or it kept the first model"
        )
    _check_rows(second, shown, asking.option)
    return first


def _drawn(count: int, n_embd: int) -> Floats:
    return np.random.default_rng(0).standard_normal((count, n_embd)).astype(np.float32)


def _rows(answer: Answer) -> npt.NDArray[np.float64]:
    """The embedding rows of its tokens as its output matrix shows them [token, vocabulary], but for their size."""
    gguf = answer.model.gguf
    embedding, head = (
        gguf.raw(name if name in gguf.tensors else EMBEDDING).view(np.float32).reshape(-1, answer.model.hp.n_embd)
        for name in (EMBEDDING, HEAD)
    )
    return np.asarray(embedding[list(answer.tokens)] @ head.T, np.float64)


def _check_numbers(answer: Answer, option: str) -> None:
    rows = answer.logits[answer.given]
    bad = ~np.isfinite(rows)
    if bad.any() and not _is_finite(answer):
        raise CaptureError(
            f"probe: the reference gives NaN or infinities too for a model of {answer.model.architecture} whose layer "
            "passes on its input: this architecture cannot be probed; dump its tensors instead (firstdiff run --engine)"
        )
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise CaptureError(
            f"{option}: {np.count_nonzero(bad):,} of {rows.size:,} logits are NaN or infinite, the first at token "
            f"{answer.given[row]}, id {column}, of a model whose only layer passes on its input: look at the last "
            "norm, the output matrix, and what is done with logits afterwards"
        )
    if not rows.any():
        raise CaptureError(
            f"{option}: all logits are 0 for a model whose only layer has weights of zeros, so that its input passes "
            "on: perhaps the input is not added to what the layer gives, or logits are written before they are computed"
        )
    if (np.ptp(rows, -1) == 0).all():
        raise CaptureError(
            f"{option}: all logits of a token are the same number ({rows[0, 0]:.6g}), where its embedding row was "
            "expected: see that it writes the logits after they are computed"
        )


def _check_kind(answer: Answer, option: str) -> None:
    """Whether they are logits: what leaves a softmax sums up to 1, which rows of root mean square 1 do not."""
    rows = answer.logits[answer.given].astype(np.float64)
    with np.errstate(all="ignore"):
        whole, of_logs = rows.sum(-1), np.exp(rows).sum(-1)
    for sums, kind, what in ((whole, (rows >= 0).all(), "probabilities"), (of_logs, True, "log probabilities")):
        if kind and (np.abs(sums - 1) <= SUMS).all():
            raise CaptureError(
                f"{option}: what it gives are {what}, where logits are wanted: write them as they leave the output "
                "matrix, before the softmax"
            )


def _is_finite(answer: Answer) -> bool:
    """Whether the reference's own logits are numbers."""
    step = Step(answer.tokens, tuple(range(len(answer.tokens))))
    with np.errstate(all="ignore"):
        return all(np.isfinite(logits).all() for logits in answer.model.forward([step], Recording(F32)))


def _check_rows(answer: Answer, rows: npt.NDArray[np.float64], option: str) -> None:
    """Whether each row is that of its own token; where none is of any, a fault of the engine is to be found."""
    given = answer.logits[answer.given].astype(np.float64)
    with np.errstate(all="ignore"):
        cosines = (given / np.linalg.norm(given, axis=1, keepdims=True)) @ (
            rows / np.linalg.norm(rows, axis=1)[:, None]
        ).T
    nearest, own = cosines.argmax(1), answer.given
    count = np.count_nonzero(rows.any(0))
    if count < TOO_FEW:
        return
    least = ALIKE if count >= FEW else SURELY
    others = (nearest != own) & ~(cosines[np.arange(len(own)), own] >= least)
    if not (cosines.max(1) >= least).all() or not others.any():
        return
    place = int(np.flatnonzero(others)[0])
    raise CaptureError(
        f"{option}: the logits of token {own[place]} are those of token {nearest[place]}: it ran other tokens than "
        "those that it was given, or wrote the rows in another order. Run the ids as they are, add no BOS, and write "
        "the rows in the order of the tokens"
    )
