"""Engines that give nothing but logits, to be probed: the reference with a fault planted, and what is right of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.engines.opening import open_reference
from firstdiff.hypotheses.hypothesis import Values
from firstdiff.hypotheses.planting import Planted, Planting
from firstdiff.model.arithmetic import F32, Arithmetic
from firstdiff.model.engine import Model
from firstdiff.probing.asking import steps_of

Floats = npt.NDArray[np.float32]


@dataclass(eq=False)
class ReferenceBox:
    """The reference as an engine of which only logits are seen, with faults planted.

    Parameters
    ----------
    planted
        Faults, each in one way for all models.
    arithmetic
        What it computes in.
    last
        Whether it gives the logits of the last token only.
    decodes
        Whether it runs a prompt in parts.
    runs, touched
        How often it was run, and the sites that a fault changed in the last run.
    """

    planted: Sequence[Planted] = ()
    arithmetic: Arithmetic = F32
    last: bool = False
    decodes: bool = False
    name: str = "a black box"
    runs: int = 0
    touched: list[Site] = field(default_factory=list)
    _ways: dict[tuple[str, str], Values] = field(default_factory=dict)

    def settle(self, model: Model, tokens: Sequence[int]) -> None:
        """Let each fault be one: with the values that it first has in a run of the model, at all of its points."""
        self.run(model, tokens)
        first = {id_: values for (id_, _), values in reversed(self._ways.items())}
        self.planted = [replace(of, values=first.get(of.hypothesis.id, of.values)) for of in self.planted]
        self.run(model, tokens)

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        self.runs += 1
        given = self.run(open_reference(model), tokens, parts)
        assert given.shape[1] == width
        return given[-1:] if self.last else given

    def run(self, model: Model, tokens: Sequence[int], parts: Sequence[int] = ()) -> Floats:
        """Run a model that is open."""
        probe = Planting(self.arithmetic, model, self.planted)
        probe._ways = self._ways  # a faulty engine keeps to one way in all models
        with np.errstate(all="ignore"):
            logits = [np.array(x, np.float32) for x in model.forward(steps_of(tokens, parts), probe)]
        self.touched = probe.touched
        return np.concatenate(logits)


@dataclass(eq=False)
class TopBox(ReferenceBox):
    """The reference as an engine that gives the log probabilities of its most probable tokens only.

    Parameters
    ----------
    most
        How many it gives at most.
    """

    most: int = 20

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        return most_probable(super().logits(model, tokens, width, parts)[-1], self.most)


def most_probable(logits: Floats, count: int) -> Floats:
    """The log probabilities of the most probable tokens, in float32 as servers compute them; NaN for others."""
    x = (logits - logits.max()).astype(np.float32)
    x = x - np.log(np.exp(x).sum(dtype=np.float32))
    made = np.full((1, x.size), np.nan, np.float32)
    top = np.argsort(-x, kind="stable")[:count]
    made[0, top] = x[top]
    return made
