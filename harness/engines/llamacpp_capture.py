"""Capture from llama.cpp: every intermediate of a run, through the scheduler's eval callback."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Step, TraceWriter
from firstdiff.dumps.points import axes_of
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import PLAIN, Attention, LlamaCpp
from firstdiff.model.architecture import Nodes
from firstdiff.model.rounding import turn, turned

Array = npt.NDArray[Any]

_UNNAMED = re.compile(r"node_[0-9]+")
_OF_LAYER = re.compile(r"blk\.([0-9]+)\.(.+)")

MOST_SCORES = 1 << 23
"""Scores of one layer and step, 32 MB of float32, beyond which they are not kept: a prompt of 2,048 tokens has 150 MB
a layer twice. What is made of them, ``kqv_out``, is judged all the same."""


MOST_HELD = 1 << 26
"""Bytes of tensors beyond which those of the layers that are done are written before the step ends."""

Spill = Callable[[dict[str, Array]], None]
"""Takes tensors of layers that are done."""


def size(tensors: Mapping[str, Array]) -> int:
    """Bytes of some tensors."""
    return sum(x.nbytes for x in tensors.values())


@dataclass
class Hook:
    """The eval callback: decides which nodes are wanted and copies them out.

    `nodes` says which node is which point. `tensors` holds the current step's, by key (``Kcur_rope-3``), in execution
    order; with `spill` those of layers that are done go there when they are many. `tokens` is how many tokens the step
    has, and `keys` how many cached positions exist then, to which llama.cpp's padded attention tensors are cut. `watch`
    is called with the suffix of each layer that begins (``-3``).
    """

    nodes: Nodes
    attention: Attention = PLAIN
    tokens: int = 0
    keys: int = 0
    watch: Callable[[str], None] = lambda _layer: None
    spill: Spill | None = None
    head_dim: int = field(default=0, init=False)
    tensors: dict[str, Array] = field(default_factory=dict)
    failure: BaseException | None = None
    step: int = field(default=-1, init=False)
    _layer: str = ""
    _wanted: dict[tuple[str, int], tuple[str, str] | None] = field(default_factory=dict)

    def __call__(self, address: int, ask: bool, _user: object) -> bool:  # noqa: FBT001 - ggml's signature
        """Answer ggml whether this node is wanted (`ask`), and then, with its data ready, whether to go on."""
        if self.failure is not None:
            return False
        try:
            found = self._point(address)
            if ask or found is None:
                return found is not None
            self._take(address, *found)
        except BaseException as e:  # noqa: BLE001 - none may cross the C frames; it is raised after the decode
            self.failure = e
            return False
        return True

    def _point(self, address: int) -> tuple[str, str] | None:
        """Point and layer suffix of a node (``("kq", "-3")``), None where it is not wanted."""
        tensor = ggml.Tensor.from_address(address)
        name = tensor.name.decode(errors="replace")
        if _UNNAMED.fullmatch(name):  # numbered anew in every graph: it goes by the weight that it reads
            name = _weight(tensor)
        elif "-" not in name and (weight := _weight(tensor)):  # without its layer, as ffn_post_norm of olmo2 and gemma2
            name = f"{name}-{weight.rpartition('-')[2]}"
        key = (name, tensor.op)
        if key not in self._wanted:
            name, dash, layer = name.partition("-")
            point = self.nodes.get((name, ggml.library().ggml_op_desc(address).decode()))
            if dash and not layer.isdecimal():  # "kqv_out-3 (reshaped)", a view of it
                point = None
            self._wanted[key] = None if point is None else (point, dash + layer)
        return self._wanted[key]

    def _take(self, address: int, point: str, layer: str) -> None:
        self._enter(layer)
        if point == "v_cache":  # the first operand of kqv, transposed
            self._keep_cache(point + layer, _source(address).transpose(0, 1, 3, 2), values=True)
            return
        if point == "kq":
            self._keep_cache("k_cache" + layer, _source(address))
        if "query" in axes_of(point) and math.prod(ggml.Tensor.from_address(address).ne[1:]) * self.keys > MOST_SCORES:
            return
        x = ggml.read(address)[0]
        if point == "kqv_out":
            if flash := ggml.Tensor.from_address(address).src[0] if self.attention.flash else None:
                self._keep_cache("k_cache" + layer, _source(flash, 1))
                self._keep_cache("v_cache" + layer, _source(flash, 2), values=True)
            if (run := turned(self.attention.values, self.head_dim, values=True)) is not None:
                x = turn(x, run)  # llama.cpp turns it back in a node of no name
        if "query" in axes_of(point):  # [H, T, padded S] -> [H, T, S]
            x = x[:, :, : self.keys]
        elif x.shape[:2] == (1, self.tokens):  # [1, T, n] -> [T, n]
            x = x[0]
        self.tensors[point + layer] = np.ascontiguousarray(x)

    def _enter(self, layer: str) -> None:
        """Say that a layer begins, where one does, and hand on what there is of those before if that is much."""
        if layer == self._layer:
            return
        self._layer = layer
        if self.spill is not None and size(self.tensors) > MOST_HELD:
            self.spill(self.finish())
        self.watch(layer)

    def _keep_cache(self, key: str, cache: Array, *, values: bool = False) -> None:
        """Keep a cache [1, H_kv, padded S, D] as [S, H_kv, D], in the basis of keys and values."""
        self.head_dim = cache.shape[-1]
        x = np.ascontiguousarray(cache[0, :, : self.keys].transpose(1, 0, 2))
        run = turned(self.attention.values if values else self.attention.keys, self.head_dim, values=values)
        self.tensors[key] = x if run is None else turn(x, run)

    def begin(self, tokens: int, keys: int) -> None:
        """Get ready for a step."""
        self.tokens, self.keys, self.step = tokens, keys, self.step + 1

    def finish(self) -> dict[str, Array]:
        """The step's tensors with their heads apart; ready for more of them afterwards."""
        tensors, self.tensors = self.tensors, {}
        for key, x in tensors.items():
            point, dash, layer = key.partition("-")
            cache = tensors.get(("v_cache" if point == "Vcur" else "k_cache") + dash + layer)
            if "head_dim" in axes_of(point) and cache is not None:
                tensors[key] = x.reshape(len(x), -1, cache.shape[-1])
        return tensors


def _weight(tensor: ggml.Tensor) -> str:
    """The weight that a node reads, as a name with its layer (``attn_output.weight-3``); empty for none."""
    for address in tensor.src[:2]:
        name = ggml.Tensor.from_address(address).name.decode(errors="replace") if address else ""
        if (found := _OF_LAYER.fullmatch(name)) is not None:
            return f"{found[2]}-{found[1]}"
    return ""


def _source(address: int, index: int = 0) -> Array:
    """An operand of a node."""
    source = ggml.Tensor.from_address(address).src[index]
    assert source is not None
    return ggml.read(source)


def capture(
    engine: LlamaCpp,
    prompt: Sequence[int],
    writer: TraceWriter,
    *,
    nodes: Nodes,
    decode: int = 0,
    forced: Sequence[Sequence[int]] = (),
    watch: Callable[[int, int | None], None] = lambda _step, _layer: None,
) -> float | None:
    """Run a prompt and some decode steps through llama.cpp and write every intermediate, step by step.

    Parameters
    ----------
    engine
        The open model.
    prompt
        Token ids of step 0.
    nodes
        Which of llama.cpp's nodes are which points, as the model's architecture knows.
    writer
        Where each step goes as soon as it is done: what is written stays, whatever happens later.
    decode
        Steps to decode greedily after the prompt.
    forced
        Tokens of later steps that are given (a candidate's), in place of decoding.
    watch
        Called with the step and the layer whenever they have changed.

    Returns
    -------
    The largest difference between the logits of this hooked run and of the same run without a hook: 0.0 where
    the capture provably changed nothing, None where the unhooked logits are not finite.

    Raises
    ------
    CaptureError
        Where llama.cpp fails to decode, or a node cannot be read.
    """
    ggml.check_layout()
    hook = Hook(
        nodes,
        engine.attention,
        watch=lambda layer: watch(hook.step, int(layer[1:]) if layer[1:].isdecimal() else None),
    )
    return written(engine, hook, prompt, writer, decode=decode, forced=forced)


class StepHook(Protocol):
    """An eval callback that copies out what it wants of each step."""

    failure: BaseException | None
    spill: Spill | None

    def __call__(self, address: int, ask: bool, user: object, /) -> bool:  # noqa: FBT001 - ggml's signature
        """Answer ggml whether a node is wanted (`ask`), and then, with its data ready, whether to go on."""

    def begin(self, tokens: int, keys: int) -> None:
        """Get ready for a step of so many tokens, after which so many positions are cached."""

    def finish(self) -> dict[str, Array]:
        """The step's tensors by key, in execution order, but for those that were spilled."""


def written(
    engine: LlamaCpp,
    hook: StepHook,
    prompt: Sequence[int],
    writer: TraceWriter,
    *,
    decode: int = 0,
    forced: Sequence[Sequence[int]] = (),
) -> float | None:
    """Run steps as :func:`capture` does, write what a hook copies out, and return what it says of the logits."""
    total = len(prompt) + (sum(map(len, forced)) if forced else decode)
    widest = max(map(len, [prompt, *forced]))
    steps = [list(prompt), *map(list, forced)]
    logits: list[Array] = []
    with engine.context(total, widest, hook) as context:
        position = 0
        for index in range(1 + (len(forced) if forced else decode)):
            if index == len(steps):
                steps.append([int(logits[-1][-1].argmax())])
            tokens = steps[index]
            step = Step(tuple(tokens), tuple(range(position, position + len(tokens))))
            hook.begin(len(tokens), position + len(tokens))
            hook.spill = partial(writer.part, step)
            found = context.decode(tokens, position, kept=False)
            tensors = hook.finish()
            own = tensors.get("result_output")
            same = own is not None and np.array_equal(own, found)
            logits.append(own if own is not None and same else found.copy())
            writer.step(step, tensors)
            position += len(tokens)
    return difference(engine, steps, logits, total, widest)


def greedy(engine: LlamaCpp, steps: Sequence[Sequence[int]], decode: int) -> list[list[int]]:
    """Some steps, and `decode` more of one token each, which the model decodes greedily behind them."""
    done = [list(step) for step in steps]
    if not decode:
        return done
    with engine.context(sum(map(len, done)) + decode, max(map(len, done)), None) as context:
        position = 0
        for index in range(len(steps) + decode - 1):
            logits = context.decode(done[index], position)
            position += len(done[index])
            if index + 1 >= len(done):
                done.append([int(logits[-1].argmax())])
    return done


def difference(engine: LlamaCpp, steps: list[list[int]], hooked: list[Array], total: int, widest: int) -> float | None:
    """The largest difference that a hook made to any logit; None where logits are not finite."""
    worst, position = 0.0, 0
    with engine.context(total, widest, None) as context:
        for tokens, seen in zip(steps, hooked, strict=True):
            plain = context.decode(tokens, position, kept=False)
            for a, b in zip(plain, seen, strict=True):
                with np.errstate(invalid="ignore", over="ignore"):  # infinities, which are told of
                    apart = float(np.abs(a - b).max())
                if not np.isfinite(apart):
                    return None
                worst = max(worst, apart)
            position += len(tokens)
    return worst
