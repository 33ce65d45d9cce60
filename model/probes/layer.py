"""What can be read of one layer of a dense decoder, and by which changes of its tensors.

A layer is given rows of our choice as embedding. What is to be read is led to the residual stream by a matrix that
holds a power of two on some places and zeros elsewhere: it enlarges the numbers, so that the stream that they are added
to takes no digits from them. One coordinate of the stream gets nothing added. It says what the last norm divided by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model.architecture import Hyperparameters
from firstdiff.model.gguf import GGUF
from firstdiff.model.gguf_writing import Tensor
from firstdiff.model.probes.files import ProbeModel, of_layer, probe_model, zeros_like
from firstdiff.model.probes.reading import Doubles, Floats, Reading, joined, rows_of, undone

ENLARGED = 16.0
"""How many times the largest number of the stream the numbers that are read are enlarged to, about."""

CODE = 127.0
"""The largest code of int8. A matrix whose only number in a row is this one, or a power of two times it, stays what it
is where an engine holds it in Q8_0, int8, fp8 or 16 bits: its scale is the power of two."""

NEARLY_ONE = np.float32(CODE / 128)
"""What stands for a one, so that it stays what it is."""

WELL_APART = 1e3
"""The condition number of the rows of tokens up to which each can be told from the others: equal tokens cannot."""

OPEN, NOT_SMALL = 32.0, 0.05
"""What a gate is held at: silu(32) is 32 in float32; and the size of the input that opens it, beside all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerProbes:
    """Probes of one layer.

    Parameters
    ----------
    gguf, hp
        The model.
    layers
        The layers that the probe models have; the last one is read, those before pass on what they are given.
    rows
        What the layer is given, float32 [token, n_embd].
    """

    gguf: GGUF
    hp: Hyperparameters
    layers: tuple[int, ...]
    rows: Floats

    @property
    def base(self) -> ProbeModel:
        """The layer as it is."""
        return probe_model(self.gguf, self.layers, self.rows, passing=frozenset(self.layers[:-1]))

    @property
    def known(self) -> int:
        """The coordinate of the stream that gets nothing added: one that is large at every token."""
        return int(np.abs(self.rows).min(0).argmax())

    def name(self, of: str) -> str:
        """The name of a tensor of the layer in the probe models."""
        return of_layer(of, len(self.layers) - 1)

    def own(self, of: str) -> Tensor | None:
        """A tensor of the layer; None where it has none of that name."""
        return self.base.tensors.get(self.name(of))

    def changed(self, tensors: Mapping[str, Tensor | None], *left_out: str) -> ProbeModel:
        """The layer with other tensors, and without what some give: zeros.

        What is left out is a tensor, or all that have a name: ``ffn_down.bias``, ``ffn_down``.
        """
        base = self.base
        new = {self.name(of): tensor for of, tensor in tensors.items() if tensor is not None}
        for of in left_out:
            for name in (self.name(of), self.name(f"{of}.weight"), self.name(f"{of}.bias")):
                if name in base.tensors:
                    new[name] = zeros_like(base.tensors[name])
        return base.changed(new)

    # The attention's side

    def kqv_out(self, size: float) -> Reading:
        """What attention gives [token, head * head_dim], through an output matrix of our own."""
        return self._attended("kqv_out", {}, (), self.heads_wide, size)

    def values(self, size: float) -> Reading:
        """Values [token, KV head * head_dim]: queries of zeros attend to all keys alike, so that means are seen."""
        return self._means("Vcur", {}, (), size)

    def keys(self, size: float) -> Reading | None:
        """Keys before their rotation, made in the values' place: their matrix has the same shape."""
        weight, bias = self.own("attn_k.weight"), self.own("attn_k.bias")
        if (bias is None) != (self.own("attn_v.bias") is None):
            return None
        return self._means("Kcur", {"attn_v.weight": weight, "attn_v.bias": bias}, (), size)

    def queries(self, size: float) -> Reading | None:
        """Queries before their rotation, made in the values' place, some heads at a time."""
        weight, bias = self.own("attn_q.weight"), self.own("attn_q.bias")
        assert weight is not None, "a dense decoder has queries"
        if (bias is None) != (self.own("attn_v.bias") is None):
            return None
        made = []
        for start in range(0, self.heads_wide, self.values_wide):
            part = {"attn_v.weight": rows_of(weight, start, self.values_wide)}
            if bias is not None:
                part["attn_v.bias"] = rows_of(bias, start, self.values_wide)
            made.append(self._means("Qcur", part, (), size))
        return joined("Qcur", made)

    def attn_norm(self, size: float) -> Reading:
        """What the products of attention are given, through a matrix of values that is the identity, part by part."""
        made = []
        for start in range(0, self.hp.n_embd, self.values_wide):
            count = min(self.values_wide, self.hp.n_embd - start)
            identity = np.zeros((self.values_wide, self.hp.n_embd), np.float32)
            identity[np.arange(count), start + np.arange(count)] = 1
            made.append(self._means("attn_norm", {"attn_v.weight": Tensor.of(identity)}, ("attn_v.bias",), size, count))
        return joined("attn_norm", made)

    @property
    def heads_wide(self) -> int:
        """Numbers of all query heads."""
        return self.hp.n_head * self.hp.head_dim

    @property
    def values_wide(self) -> int:
        """Numbers of all heads of keys."""
        return self.hp.n_head_kv * self.hp.head_dim

    def probabilities(self, normed: Doubles) -> Reading | None:
        """What each query attends to [token, head * key]: the value of each token is a one at a place of its own.

        `normed` is what the products of attention are given, as it was read.
        """
        tokens, dim = len(self.rows), self.hp.head_dim
        if tokens > dim or np.linalg.cond(normed) > WELL_APART:
            return None
        select = np.zeros((self.values_wide, self.hp.n_embd), np.float32)
        for head in range(self.hp.n_head_kv):
            select[head * dim : head * dim + tokens] = np.linalg.pinv(normed).T
        places = (np.arange(self.hp.n_head)[:, None] * dim + np.arange(tokens)).reshape(-1)
        return self._through(
            "kq_soft_max", "attn_output", {"attn_v.weight": Tensor.of(select)}, ("attn_v.bias", "ffn_down"), places, 0.3
        )

    def _attended(
        self, point: str, tensors: Mapping[str, Tensor | None], left_out: Sequence[str], count: int, size: float
    ) -> Reading:
        return self._through(point, "attn_output", tensors, (*left_out, "ffn_down"), np.arange(count), size)

    def _means(
        self,
        point: str,
        tensors: Mapping[str, Tensor | None],
        left_out: Sequence[str],
        size: float,
        count: int | None = None,
    ) -> Reading:
        """What stands in the values' place, from its means over the tokens so far, which each query head shows."""
        hp = self.hp
        group, dim = hp.n_head // hp.n_head_kv, hp.head_dim
        places = (np.arange(hp.n_head_kv)[:, None] * group * dim + np.arange(dim)).reshape(-1)[:count]
        left_out = (*left_out, "attn_q", "attn_k", "ffn_down")
        of = self._through(point, "attn_output", tensors, left_out, places, size)
        seen = np.arange(1, len(self.rows) + 1)[:, None]

        def read(logits: Sequence[Floats]) -> Doubles:
            return np.diff(of.read(logits) * seen, axis=0, prepend=0.0)

        return Reading(point, of.models, read)

    # The feed-forward network's side: the rows are what stands in the stream before it

    def ffn_norm(self, normed: Doubles, size: float) -> Reading | None:
        """What the products of the feed-forward network are given; `normed` is about what it will be."""
        if self.hp.n_ff < self.hp.n_embd:  # not all of it goes through
            return None
        places = np.arange(self.hp.n_embd)
        identity = Tensor.of(NEARLY_ONE * np.eye(self.hp.n_ff, self.hp.n_embd, dtype=np.float32))
        opener = self._open(normed)
        if opener is None:
            return None
        gate, opened = opener
        own = self._through("ffn_norm", "ffn_down", self._gated(gate, identity), self._no_biases(), places, OPEN * size)

        def read(logits: Sequence[Floats]) -> Doubles:
            x = own.read(logits) / NEARLY_ONE  # times what the gate was at, which goes with the numbers themselves
            at = x @ opened
            return np.asarray(x / np.sqrt(np.maximum(at, 1e-30))[:, None])

        return Reading("ffn_norm", own.models, read)

    def up(self, normed: Doubles, size: float) -> Reading | None:
        """What `ffn_up` gives, beside a gate that is open; `normed` is what both are given, as it was read."""
        return self._beside_open("ffn_up", self.own("ffn_up.weight"), self.own("ffn_up.bias"), normed, size)

    def gate(self, normed: Doubles, size: float) -> Reading | None:
        """What `ffn_gate` gives before its activation, made in the place of `ffn_up`."""
        return self._beside_open("ffn_gate", self.own("ffn_gate.weight"), self.own("ffn_gate.bias"), normed, size)

    def swiglu(self, size: float) -> Reading:
        """What `ffn_down` is given."""
        places = np.arange(self.hp.n_ff)
        return self._through("ffn_swiglu", "ffn_down", {}, ("attn_output",), places, size)

    def _beside_open(
        self, point: str, weight: Tensor | None, bias: Tensor | None, normed: Doubles, size: float
    ) -> Reading | None:
        opener = self._open(normed)
        if opener is None:
            return None
        gate, opened = opener
        at = normed @ opened
        tensors = self._gated(gate, weight)
        if bias is not None:
            tensors |= {"ffn_up.bias": bias}
        left_out = ("attn_output", *(("ffn_gate.bias",) if self.own("ffn_gate.bias") else ()))
        own = self._through(point, "ffn_down", tensors, left_out, np.arange(self.hp.n_ff), OPEN * size)
        return Reading(point, own.models, lambda logits: own.read(logits) / at[:, None])

    def _gated(self, gate: Floats, up: Tensor | None) -> dict[str, Tensor | None]:
        return {"ffn_gate.weight": Tensor.of(gate), "ffn_up.weight": up}

    def _no_biases(self) -> tuple[str, ...]:
        return ("attn_output", "ffn_gate.bias", "ffn_up.bias")

    def _open(self, normed: Doubles) -> tuple[Floats, Doubles] | None:
        """A gate's weight that holds it open for every token, and the row that it is made of.

        One input alone opens it, which has one sign at all tokens and is not small at any: nothing is added up then,
        so that every engine has the same number. None where there is no such input, as in long prompts.
        """
        row = np.zeros(self.hp.n_embd)
        sign = np.where((normed > 0).all(0), 1.0, np.where((normed < 0).all(0), -1.0, 0.0))
        least = np.abs(normed).min(0) * np.abs(sign)
        best = int(least.argmax())
        if least[best] < NOT_SMALL * np.sqrt(np.square(normed).mean()):
            return None
        row[best] = sign[best] * CODE * 2.0 ** math.ceil(math.log2(OPEN / least[best] / CODE))
        return np.repeat(row.astype(np.float32)[None], self.hp.n_ff, 0), row

    # Through the stream

    def _through(
        self,
        point: str,
        matrix: str,
        tensors: Mapping[str, Tensor | None],
        left_out: Sequence[str],
        places: npt.NDArray[np.intp],
        size: float,
    ) -> Reading:
        """Read some inputs of a matrix that adds to the stream, as many at a time as the stream has coordinates."""
        n_embd, known = self.hp.n_embd, self.known
        free = np.setdiff1d(np.arange(n_embd), [known])
        enlarged = ENLARGED * max(float(np.abs(self.rows).max()), 1e-6) / max(size, 1e-6)
        factor = CODE * 2.0 ** math.ceil(math.log2(enlarged / CODE))
        width = self.heads_wide if matrix == "attn_output" else self.hp.n_ff
        parts = [places[start : start + len(free)] for start in range(0, len(places), len(free))]
        models = []
        for part in parts:
            led = np.zeros((n_embd, width), np.float32)
            led[free[: len(part)], part] = factor
            models.append(self.changed({f"{matrix}.weight": Tensor.of(led), **tensors}, *left_out, f"{matrix}.bias"))

        def read(logits: Sequence[Floats]) -> Doubles:
            found = []
            for part, of in zip(parts, logits, strict=True):
                stream = undone(of, self.rows, known)
                found.append((stream[:, free[: len(part)]] - self.rows[:, free[: len(part)]]) / factor)
            return np.concatenate(found, 1)

        return Reading(point, tuple(models), read)
