"""Random numbers to be described: of every form of axes, as an engine records them in f32 or f16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from firstdiff.dumps.points import axes_of, token_axis
from firstdiff.explaining.describing.describe import Finding, describe

Floats = npt.NDArray[np.float64]

FLAT, HEADED, SCORES = axes_of("l_out"), axes_of("Qcur"), axes_of("kq")
SHAPES = {FLAT: (12, 96), HEADED: (12, 6, 16), SCORES: (6, 12, 12)}
CAUSAL = np.tril(np.ones((12, 12), np.bool_))
NOISE, F32, F16 = 1e-7, 1e-6, 1.25e-3


@dataclass(frozen=True)
class Setting:
    """Random numbers of one axes form as an engine records them."""

    axes: tuple[str, ...]
    half: bool
    seed: int = 0

    def __str__(self) -> str:
        return f"{'-'.join(self.axes)}-{'f16' if self.half else 'f32'}"

    @property
    def reference(self) -> Floats:
        """Tokens of different size, the first one far larger, as residual streams are."""
        x = np.random.default_rng(self.seed).standard_normal(SHAPES[self.axes])
        size = np.geomspace(50, 0.5, 12)
        return x * self.along(self.token, size)

    @property
    def token(self) -> str:
        """The axis of tokens."""
        return self.axes[token_axis(self.axes)]

    @property
    def seen(self) -> npt.NDArray[np.bool_] | None:
        return CAUSAL if self.axes == SCORES else None

    def recorded(self, x: Floats) -> npt.NDArray[Any]:
        """What is hidden is minus infinity; what is recorded is rounded."""
        rng = np.random.default_rng(self.seed + 1)
        stored = x.astype(np.float16) if self.half else x * (1 + NOISE * rng.standard_normal(x.shape))
        return np.where(CAUSAL, stored, -np.inf) if self.axes == SCORES else stored

    def findings(self, wrong: Floats, **more: Any) -> tuple[Finding, ...]:
        floor = F16 if self.half else F32
        return describe(self.recorded(wrong), self.reference, axes=self.axes, floor=floor, seen=self.seen, **more)

    def along(self, name: str, values: Any) -> Floats:
        """Shape numbers for broadcasting along an axis."""
        return np.reshape(values, [-1 if axis == name else 1 for axis in self.axes])


CASES = [Setting(axes, half) for axes in SHAPES for half in (False, True)]
ROWS_OF_THEIR_OWN = [case for case in CASES if case.axes != SCORES]  # a row of scores sees keys of its own
ALONG = [(case, name) for case in CASES for name in case.axes if name != "key"]
PERMUTED = [(case, name) for case, name in ALONG if (case.axes, name) != (SCORES, "query")]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_row = pytest.mark.parametrize("case", ROWS_OF_THEIR_OWN, ids=str)
every_axis = pytest.mark.parametrize(("case", "name"), ALONG, ids=str)


def slices(x: Floats, axes: tuple[str, ...], name: str) -> Floats:
    """Slices along an axis first: writing to them writes to x."""
    return np.moveaxis(x, axes.index(name), 0)
