"""Which layer is the first to go wrong: models that end after a layer, halving what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.probes.files import probe_model
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
)
"""What an engine may compute in, the exact ones first."""


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
    """

    asking: Asking
    tokens: tuple[int, ...]
    free: Mapping[Site, Array]
    arithmetic: str | None = None
    read: dict[Site, Array] = field(default_factory=dict)
    judged: dict[int, SiteVerdict] = field(default_factory=dict)
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
        """Find what the engine computes in: the first arithmetic in which one of three layers, by itself, is right."""
        last = self.asking.run.model.hp.n_layer - 1
        for layer in dict.fromkeys((last // 2, last, 0)):
            rows = self.input_of(layer)
            answer = self.asking.ask(probe_model(self.asking.run.model.gguf, (layer,), rows), f"layer {layer} alone")
            known = {Site(0, None, "embd"): rows}
            fitting = [(found.floor or 0.0, name) for name, found in self._in_each(answer, known)]
            if fitting:
                self.arithmetic = min(fitting, key=lambda of: of[0])[1]
                return

    def _in_each(self, answer: Answer, known: Mapping[Site, Array]) -> list[tuple[str, SiteVerdict]]:
        judged = [(name, self.judge(answer, known, name)) for name in ARITHMETICS]
        return [(name, found) for name, found in judged if found.status in (Status.AGREES, Status.INHERITS)]

    def input_of(self, layer: int) -> npt.NDArray[np.float32]:
        """What a layer is given, as it was read; where it was not, as the reference computes it."""
        site = Site(0, layer - 1, "l_out") if layer else Site(0, None, "embd")
        return np.asarray(self.read.get(site, self.free[site]), np.float32)


def scaled_like(logits: Array, right: Array) -> npt.NDArray[np.float32]:
    """What the last norm was given: each row of logits times the number by which it is nearest to the right row."""
    y = np.asarray(logits, np.float64)[:, : right.shape[-1]]
    x = np.asarray(right, np.float64)
    return np.asarray(y * ((x * y).sum(1) / np.square(y).sum(1))[:, None], np.float32)
