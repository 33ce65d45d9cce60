"""Which layer is the first to go wrong: models that end after a layer, halving what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.probing.arithmetics import ARITHMETICS, judged_in, nearest, nearest_of_one
from firstdiff.probing.asking import Answer, Asking
from firstdiff.verdict import SiteVerdict, Status

Array = npt.NDArray[np.floating]

EXACTLY = 1e-5
"""The error of a layer up to which an arithmetic is the engine's own to the digit."""


@dataclass(slots=True, eq=False)
class Depth:
    """What is known of an engine's layers.

    Parameters
    ----------
    asking
        The engine.
    tokens, parts
        The prompt, and how many of its tokens are run at a time; all at once where there are no parts.
    free
        What the reference gives for the prompt, by site.
    arithmetic
        What the engine computes in; None where that is not known.
    read
        Tensors that were read and are right, by their site in the model.
    judged
        What was found of each model that ends after a layer, by layer.
    reads
        Whether tensors are read from the logits, to go on with: not where the engine gives those of the last token
        only, nor where the last norm takes away more than a row's size.
    in_parts
        The same where the prompt is run in parts; None where it is not.
    one_token
        What the engine computes in where it is given one token, if that is something else than elsewhere.
    found
        What was found of the model itself; None where it was not asked for.
    own
        What the engine gives for the model itself; None where it was not asked for yet.
    own_rows
        How many rows of the model's own output matrix were looked at, where the engine gives its most probable tokens
        only.
    """

    asking: Asking
    tokens: tuple[int, ...]
    free: Mapping[Site, Array]
    arithmetic: str | None = None
    read: dict[Site, Array] = field(default_factory=dict)
    judged: dict[int, SiteVerdict] = field(default_factory=dict)
    reads: bool = True
    parts: tuple[int, ...] = ()
    in_parts: Depth | None = None
    one_token: str | None = None
    found: SiteVerdict | None = None
    own_rows: int | None = None
    own: Answer | None = None
    _given: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def whole(self) -> Answer:
        """What the engine gives for the model itself."""
        if self.own is None:
            self.own = self.asking.original(self.tokens, self.parts)
        return self.own

    def whole_agrees(self) -> bool:
        """Whether the model itself agrees."""
        self.found = self.judge(self.whole, self.read)
        return self.found.status is not Status.DIVERGES

    def known(self, layer: int) -> dict[Site, Array]:
        """What was read of the layers before one."""
        return {site: x for site, x in self.read.items() if site.layer is None or site.layer < layer}

    def judge(self, answer: Answer, known: Mapping[Site, Array]) -> SiteVerdict:
        """Judge the logits of a model, given what is known of it."""
        return judged_in(answer, known, self.asking.engine.name, self.arithmetic or ARITHMETICS[0])

    def cut(self, layer: int) -> Answer:
        """The model that ends after a layer."""
        probe = self.asking.model_of(range(layer + 1), self.tokens)
        return self.asking.ask(probe, f"layers 0 to {layer}{', in parts' if self.parts else ''}", self.parts)

    def agrees(self, layer: int) -> bool:
        """Whether the model that ends after a layer agrees; what it gave is taken for what was read then."""
        answer = self.cut(layer)
        found = self.judged[layer] = self.judge(answer, self.known(layer + 1))
        if found.status is Status.DIVERGES:
            self._given[layer] = answer.logits
            return False
        site = Site(0, layer, "l_out")
        if self.reads:
            self.read[site] = scaled_like(answer.logits, self.free[site])
        return True

    def most_wrong(self) -> int:
        """The layer whose end is furthest from right, of those that are right, and whose input was read."""
        ends = {layer: found.local_error or 0.0 for layer, found in self.judged.items() if self._has_input(layer)}
        return max(ends, key=lambda layer: ends[layer], default=0)

    def _has_input(self, layer: int) -> bool:
        site = Site(0, layer - 1, "l_out") if layer else Site(0, None, "embd")
        return site in self.read and self.judged[layer].status is not Status.DIVERGES

    def wrong(self, layer: int) -> Answer:
        """The model that ends after a layer, as it was answered; its file is there from now on."""
        probe = self.asking.model_of(range(layer + 1), self.tokens)
        return self.asking.answered(probe, self._given[layer], self.parts)

    def first_wrong(self) -> int | None:
        """The first layer after which the model goes wrong, as far as it was asked for; None for no layer."""
        last = self.asking.run.model.hp.n_layer - 1
        if last not in self.judged:
            self.agrees(last)
        wrong = min((layer for layer, found in self.judged.items() if found.status is Status.DIVERGES), default=None)
        if wrong is None:
            return None
        right = max((layer for layer in self.judged if layer < wrong), default=-1)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self.agrees(middle):
                right = middle
            else:
                wrong = middle
        return wrong

    def find_arithmetic(self) -> None:
        """Find what the engine computes in, by a middle layer: alone, and if that is not exact, behind another one.

        A fault of the first layer, or of the second, would else be taken for an arithmetic.
        """
        last = self.asking.run.model.hp.n_layer - 1
        layer = last // 2
        rows = self.input_of(layer)
        alike = self.asking.run.model.tier == "hand"  # of other architectures a layer's number may say what it does
        before = () if alike else tuple(range(layer))
        alone = self.asking.model_of((*before, layer), rows, frozenset(before))
        best = nearest(self.asking.ask(alone, f"layer {layer} alone"), self.asking.engine.name)
        if alike and (best is None or best[0] > EXACTLY):
            other = 0 if layer else last
            behind = self.asking.model_of((other, layer), rows, frozenset({other} - {layer}))
            if other != layer:
                answer = self.asking.ask(behind, f"layer {layer} behind one that passes on its input")
                found = nearest(answer, self.asking.engine.name)
                best = min((of for of in (best, found) if of is not None), default=None)
        if best is not None:
            self.arithmetic = best[1]

    def arithmetic_of_one(self) -> str | None:
        """What else than its arithmetic the engine computes one token in, by a middle layer alone; None for nothing."""
        layer = (self.asking.run.model.hp.n_layer - 1) // 2
        alone = self.asking.model_of((layer,), self.input_of(layer))
        answer = self.asking.ask(alone, f"layer {layer} alone, in parts", self.parts)
        if self.judge(answer, {}).status is not Status.DIVERGES:
            return None
        return nearest_of_one(answer, self.asking.engine.name, self.arithmetic or ARITHMETICS[0])

    def input_of(self, layer: int) -> npt.NDArray[np.float32]:
        """What a layer is given, as it was read; where it was not, as the reference computes it."""
        site = Site(0, layer - 1, "l_out") if layer else Site(0, None, "embd")
        return np.asarray(self.read.get(site, self.free[site]), np.float32)


def scaled_like(logits: Array, right: Array) -> npt.NDArray[np.float32]:
    """What the last norm was given: each row of logits times the number by which it is nearest to the right row."""
    y = np.asarray(logits, np.float64)[:, : right.shape[-1]]
    x = np.asarray(right, np.float64)
    size = np.square(y).sum(1)
    factor = np.divide((x * y).sum(1), size, out=np.zeros_like(size), where=size > 0)
    return np.asarray(y * factor[:, None], np.float32)
