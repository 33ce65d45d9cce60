"""The points of llama.cpp's graph, copied out as its steps are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.engines import ggml
from firstdiff.engines.llamacpp_capture import MOST_HELD, Spill, size
from firstdiff.engines.llamacpp_graph import read
from firstdiff.model.graph.program import Instruction, Program


@dataclass
class PointHook:
    """The eval callback: copies out the results of a program's points, step by step.

    Parameters
    ----------
    programs
        What each step computes.
    watch
        Called with the step and the layer whenever they have changed.
    """

    programs: Sequence[Program]
    watch: Callable[[int, int | None], None] = lambda _step, _layer: None
    failure: BaseException | None = None
    spill: Spill | None = None
    _step: int = field(default=0, init=False)
    _asked: int = field(default=-1, init=False)
    _layer: int | None = field(default=None, init=False)
    _tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict, init=False)
    _wanted: dict[int, list[Instruction]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._want()

    def _want(self) -> None:
        self._wanted = {}
        for made in self.programs[self._step].instructions if self._step < len(self.programs) else ():
            if made.point and made.seen is not None:
                self._wanted.setdefault(made.seen.node, []).append(made)

    def __call__(self, address: int, ask: bool, _user: object) -> bool:  # noqa: FBT001 - ggml's signature
        """Answer ggml whether this node is wanted (`ask`), and then, with its data ready, whether to go on."""
        if self.failure is not None:
            return False
        if ask:
            self._asked += 1
            return self._asked in self._wanted
        try:
            for made in self._wanted.get(self._asked, ()):
                self._take(address, made)
        except BaseException as e:  # noqa: BLE001 - none may cross the C frames; it is raised after the decode
            self.failure = e
            return False
        return True

    def _take(self, address: int, made: Instruction) -> None:
        seen = made.seen
        assert seen is not None
        if made.layer != self._layer:
            self._layer = made.layer
            if self.spill is not None and size(self._tensors) > MOST_HELD:
                self.spill(self._in_order())
            self.watch(self._step, made.layer)
        source = address if seen.place is None else ggml.Tensor.from_address(address).src[seen.place]
        assert source is not None
        assert seen.tensor is not None
        x = read(source, seen.tensor)
        if seen.axes != (0, 1, 2):
            x = x[0].transpose(seen.axes)
        if seen.cells is not None:
            x = x[0] if x.ndim > 3 else x  # noqa: PLR2004 - without the sequence
            cells = np.array(seen.cells)
            inside = np.minimum(cells, x.shape[seen.along] - 1)
            x = x.take(inside, seen.along)
            last = {cell: place for place, cell in enumerate(seen.cells)}
            gone = np.array([last[c] != place for place, c in enumerate(seen.cells)])
            if gone.any():  # cells that were written again: nothing is looked at there
                x = np.where(np.expand_dims(gone, tuple(i for i in range(x.ndim) if i != seen.along)), 0, x)
        x = x if seen.factor == 1 else x / x.dtype.type(seen.factor)
        key = made.point if made.layer is None else f"{made.point}-{made.layer}"
        self._tensors[key] = np.ascontiguousarray(x).reshape(made.shape)

    def begin(self, _tokens: int, _keys: int) -> None:
        """Get ready for a step, which its program describes."""

    def finish(self) -> dict[str, npt.NDArray[Any]]:
        """The step's tensors in execution order; ready for the next step afterwards."""
        tensors = self._in_order()
        self._step, self._asked, self._layer = self._step + 1, -1, None
        self._want()
        return tensors

    def _in_order(self) -> dict[str, npt.NDArray[Any]]:
        order = [m.point if m.layer is None else f"{m.point}-{m.layer}" for m in self.programs[self._step].instructions]
        tensors, self._tensors = {key: self._tensors[key] for key in order if key in self._tensors}, {}
        return tensors
