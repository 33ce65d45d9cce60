"""One tensor that is read by probe models, and what makes it of their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model.gguf_writing import Tensor
from firstdiff.model.probes.files import ProbeModel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One tensor of a layer, read by one or several runs.

    Parameters
    ----------
    point
        Which.
    models
        The probe models to run.
    read
        Makes the tensor [token, feature] of the logits of each [token, vocabulary].
    """

    point: str
    models: tuple[ProbeModel, ...]
    read: Callable[[Sequence[Floats]], Doubles]


def undone(logits: Floats, rows: Floats, known: int) -> Doubles:
    """What the last norm was given [token, n_embd], by the coordinate that nothing was added to."""
    y = np.asarray(logits, np.float64)[:, : rows.shape[1]]
    with np.errstate(all="ignore"):
        return np.asarray(y * (np.asarray(rows, np.float64)[:, known] / y[:, known])[:, None])


def rows_of(tensor: Tensor, start: int, count: int) -> Tensor:
    """Some rows of a weight, or some elements of a bias."""
    size = tensor.nbytes // tensor.shape[0]
    assert tensor.data is not None, "the layer that is read has its own numbers"
    data = tensor.data.reshape(tensor.shape[0], size)[start : start + count]
    return Tensor(tensor.kind, (count, *tensor.shape[1:]), np.ascontiguousarray(data).reshape(-1))


def joined(point: str, parts: Sequence[Reading]) -> Reading:
    """Readings of neighbouring features as one."""

    def read(logits: Sequence[Floats]) -> Doubles:
        left, found = list(logits), []
        for part in parts:
            found.append(part.read(left[: len(part.models)]))
            left = left[len(part.models) :]
        return np.concatenate(found, 1)

    return Reading(point, tuple(model for part in parts for model in part.models), read)
