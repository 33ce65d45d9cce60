"""Which layer is the first to go wrong: models that end after a layer, halving what is left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.errors import ModelError
from firstdiff.model.probes.files import probe_model
from firstdiff.model.rounding import round_to
from firstdiff.probing.asking import LOGITS, Answer, Asking
from firstdiff.verdict import SiteVerdict, Status

Array = npt.NDArray[np.floating]

ARITHMETICS = (
    "f32",
    "ggml-cpu+kv=f16",
    "ggml-cpu",
    "bf16",
    "f16",
    "tf32",
    "bf16-operands",
    "f16-operands",
    "f16-operands+kv=f16",
    *(f"f32+{held}" for held in ("held=bf16", "held=f16", "matrices=q8_0", "matrices=i8-row", "matrices=f8_e4m3-row")),
    *(f"{base}+matrices={kind}" for base in ("bf16", "f16") for kind in ("q8_0", "i8-row", "f8_e4m3-row")),
)
"""What an engine may compute in, the exact ones first."""

ALIKE = 2.0
"""Errors that differ by less than this factor do not tell two arithmetics apart."""

EXACTLY = 1e-5
"""The error of a layer up to which an arithmetic is the engine's own to the digit."""


def results_of(arithmetic: str) -> str | None:
    """What an arithmetic rounds the result of each operation to; None for float32."""
    base = arithmetic.partition("+")[0]
    return base if base in ("bf16", "f16") else None


@dataclass(slots=True, eq=False)
class Depth:
    """What is known of an engine's layers.

    Parameters
    ----------
    asking
        The engine.
    tokens
        The prompt.
    free
        What the reference gives for the prompt, by site.
    arithmetic
        What the engine computes in; None where that is not known.
    read
        Tensors that were read and are right, by their site in the model.
    judged
        What was found of each model that ends after a layer, by layer.
    of_all
        Whether the engine gives the logits of all tokens: of the last one only, nothing is read to go on with.
    """

    asking: Asking
    tokens: tuple[int, ...]
    free: Mapping[Site, Array]
    arithmetic: str | None = None
    read: dict[Site, Array] = field(default_factory=dict)
    judged: dict[int, SiteVerdict] = field(default_factory=dict)
    of_all: bool = True
    _given: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def known(self, layer: int) -> dict[Site, Array]:
        """What was read of the layers before one."""
        return {site: x for site, x in self.read.items() if site.layer is None or site.layer < layer}

    def judge(self, answer: Answer, known: Mapping[Site, Array], arithmetic: str | None = None) -> SiteVerdict:
        """Judge the logits of a model, given what is known of it."""
        named = arithmetic or self.arithmetic or ARITHMETICS[0]
        trace = answer.trace(known, self.asking.engine.name, named)
        replay = Replay(arithmetic_named(named), trace)
        run_trace(answer.model, trace, replay, frozenset({LOGITS}).__contains__)
        return next(s for s in replay.settled() if s.site == LOGITS)

    def cut(self, layer: int) -> Answer:
        """The model that ends after a layer."""
        probe = probe_model(self.asking.run.model.gguf, range(layer + 1), self.tokens)
        return self.asking.ask(probe, f"layers 0 to {layer}")

    def agrees(self, layer: int) -> bool:
        """Whether the model that ends after a layer agrees; what it gave is taken for what was read then."""
        answer = self.cut(layer)
        found = self.judged[layer] = self.judge(answer, self.known(layer + 1))
        if found.status is Status.DIVERGES:
            self._given[layer] = answer.logits
            return False
        site = Site(0, layer, "l_out")
        if self.of_all:
            self.read[site] = scaled_like(answer.logits, self.free[site])
        return True

    def wrong(self, layer: int) -> Answer:
        """The model that ends after a layer, as it was answered; its file is there from now on."""
        probe = probe_model(self.asking.run.model.gguf, range(layer + 1), self.tokens)
        return self.asking.answered(probe, self._given[layer])

    def first_wrong(self) -> int | None:
        """The first layer after which the model goes wrong, given that the whole does; None for no layer."""
        last = self.asking.run.model.hp.n_layer - 1
        if self.agrees(last):
            return None
        right, wrong = -1, last
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
        gguf, last = self.asking.run.model.gguf, self.asking.run.model.hp.n_layer - 1
        layer = last // 2
        rows = self.input_of(layer)
        alike = self.asking.run.model.tier == "hand"  # of other architectures a layer's number may say what it does
        before = () if alike else tuple(range(layer))
        alone = probe_model(gguf, (*before, layer), rows, passing=frozenset(before))
        best = self.nearest(self.asking.ask(alone, f"layer {layer} alone"))
        if alike and (best is None or best[0] > EXACTLY):
            other = 0 if layer else last
            behind = probe_model(gguf, (other, layer), rows, passing=frozenset({other} - {layer}))
            if other != layer:
                found = self.nearest(self.asking.ask(behind, f"layer {layer} behind one that passes on its input"))
                best = min((of for of in (best, found) if of is not None), default=None)
        if best is not None:
            self.arithmetic = best[1]

    def nearest(self, answer: Answer) -> tuple[float, str] | None:
        """The arithmetic in which a model's logits are nearest to right, and how near; None where they fit none."""
        errors: dict[str, float] = {}
        for name in self.possible(answer.logits[answer.given]):
            with suppress(ModelError):  # rows that are no whole groups of a kind
                found = self.judge(answer, {}, name)
                if found.status is not Status.DIVERGES and found.local_error is not None:
                    errors[name] = found.local_error
        least = min(errors.values(), default=0.0)
        return next(((error, name) for name, error in errors.items() if error <= ALIKE * least), None)

    def possible(self, logits: Array) -> list[str]:
        """The arithmetics whose results have the digits that logits have."""
        digits = next((kind for kind in ("bf16", "f16") if np.array_equal(round_to(logits, kind), logits)), None)
        return [name for name in ARITHMETICS if results_of(name) == digits]

    def input_of(self, layer: int) -> npt.NDArray[np.float32]:
        """What a layer is given, as it was read; where it was not, as the reference computes it."""
        site = Site(0, layer - 1, "l_out") if layer else Site(0, None, "embd")
        return np.asarray(self.read.get(site, self.free[site]), np.float32)


def scaled_like(logits: Array, right: Array) -> npt.NDArray[np.float32]:
    """What the last norm was given: each row of logits times the number by which it is nearest to the right row."""
    y = np.asarray(logits, np.float64)[:, : right.shape[-1]]
    x = np.asarray(right, np.float64)
    return np.asarray(y * ((x * y).sum(1) / np.square(y).sum(1))[:, None], np.float32)
