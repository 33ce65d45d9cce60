"""Attention over a cache as the calls that it is by hand: append, scores, softmax, and a product with the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from firstdiff.model import moves
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.graph.attending import Attention, Writes, attentions, mask_of
from firstdiff.model.graph.building import Builder
from firstdiff.model.graph.names import Name, name_of
from firstdiff.model.graph.nodes import Node, Tensor
from firstdiff.model.graph.program import Held, Operand, Seen, Shape


def attention_calls(b: Builder) -> dict[int, Callable[[], None]]:
    """What to do where each node of a step's attention stands; its other nodes are noted as done."""
    found, writes = attentions(b.reading)
    appended: dict[int, int] = {}
    at: dict[int, Callable[[], None]] = {}
    for memory, wrote in writes.items():
        keys = next((a.kq for a in found if a.keys == memory), None)
        by = next(a.kqv for a in found if a.values == memory) if keys is None else keys
        at[wrote.node] = partial(_append, b, appended, memory, wrote, by, values=keys is None)
    for a in found:
        one = _Attending(b, a, writes[a.keys], writes[a.values], appended)
        at |= {a.kq: one.scores, a.softmax: one.probabilities, one.last: one.attended}
        b.done |= set(a.nodes)
    return at


def _append(b: Builder, appended: dict[int, int], memory: int, wrote: Writes, by: int, *, values: bool) -> None:
    """Write a step's keys or values into their cache, which the node `by` reads."""
    name = b.keys[memory]
    rows = b.shaped(b.read(wrote.rows), (b.tokens, wrote.heads, wrote.dim))
    cells = (*b.history.cells.get(name, ()), *wrote.cells)
    point = Name("v_cache" if values else "k_cache", name_of(b.graph.nodes[wrote.node]).layer, True, "SET_ROWS")
    seen = None
    if len(set(cells)) == len(cells):  # what was written over is gone
        seen = Seen(by, 0, (2, 0, 1) if values else (1, 0, 2), cells)
    shape, more = (len(cells), wrote.heads, wrote.dim), {"values": True} if values else {}
    value = b.emit(append, (Held(name), rows), shape, more, seen=seen, name=point)
    b.history.cells[name] = cells
    appended[memory] = b.kept[name] = value


@dataclass
class _Attending:
    """One layer's attention; `value` is what was made of it so far."""

    b: Builder
    a: Attention
    keys: Writes
    values: Writes
    appended: dict[int, int]
    value: int = field(default=-1, init=False)
    factor: float = field(init=False)

    def __post_init__(self) -> None:
        self.factor = self._factor()

    @property
    def query(self) -> Tensor:
        """Queries as the graph has them, [1, H, T, D]."""
        query = self._node(self.a.kq).sources[1]
        assert query is not None
        return query

    @property
    def last(self) -> int:
        """The node whose result is the attention's."""
        return self.a.kqv if self.a.merged is None else self.a.merged

    def _node(self, number: int) -> Node:
        return self.b.graph.nodes[number]

    @property
    def _cells(self) -> tuple[int, ...]:
        return self.b.history.cells[self.b.keys[self.a.keys]]

    def _mask(self) -> dict[str, Any]:
        """The mask as an attribute; nothing where it only hides the future."""
        softmax = self._node(self.a.softmax)
        leaf = self.b.reading.leaf(softmax.sources[1])
        assert leaf is not None
        assert leaf.values is not None
        made = mask_of(leaf.values, self._cells, self.b.tokens, float(softmax.number(1)), self.query.shape[1])
        return {} if made is None else {"mask": made}

    def _name(self, number: int, point: str) -> Name:
        return replace(self.b.name(number), point=point)

    def scores(self) -> None:
        """Emit the scores."""
        query, of = self.query, self.appended[self.a.keys]
        _, heads, tokens, dim = query.shape
        if self.factor == 1:
            s = query.strides
            turned = replace(query, at=0, shape=(1, tokens, heads, dim), strides=(s[0], s[2], s[1], s[3]))
        else:
            unscaled = self._node(self.b.reading.producer[query.root]).sources[0]
            assert unscaled is not None
            turned = unscaled
        q = self.b.shaped(self.b.read(turned), (tokens, heads, dim))
        shape = (heads, tokens, self.b.made[of].shape[0])
        more = {"group": heads // self.keys.heads, **({} if self.factor == 1 else {"factor": self.factor})}
        seen = Seen(self.a.kq, cells=self._cells, along=2, factor=self.factor)
        name = self._name(self.a.kq, "kq")
        self.value = self.b.emit(scores, (q, of), shape, more | self._mask(), seen=seen, name=name)

    def probabilities(self) -> None:
        """Emit the softmax."""
        softmax, whole = self._node(self.a.softmax), self.b.made[self.value].shape
        sinks = softmax.sources[2]
        operands: tuple[Operand, ...] = (self.value,) if sinks is None else (self.value, self.b.read(sinks))
        scale, cap = float(softmax.number(0)) * self.factor, {}
        if self.a.between:
            before, _, after = (float(self._node(number).number(0)) for number in self.a.between)
            scale, cap = scale * before * after, {"cap": after * float(softmax.number(0))}
        more = {"scale": scale, **self._mask(), **cap}
        seen, name = Seen(self.a.softmax, cells=self._cells, along=2), self._name(self.a.softmax, "kq_soft_max")
        self.value = self.b.emit(soft_max, operands, whole, more, seen=seen, name=name)

    def attended(self) -> None:
        """Emit what is attended to."""
        of, heads, dim = self.appended[self.a.values], self.query.shape[1], self.values.dim
        if self.a.columns is not None:
            start, stop = self.a.columns
            dim = stop - start
            cut = (self.b.made[of].shape[0], self.values.heads, dim)
            of = self.b.emit(moves.head_columns, (of,), cut, {"start": start, "stop": stop})
        merged = self.a.merged is not None
        seen, name = (
            Seen(self.last, axes=(0, 1, 2) if merged else (1, 0, 2)),
            self._name(self.last, "kqv_out" if merged else "kqv"),
        )
        shape: Shape = (self.b.tokens, heads * dim)
        more = {"group": heads // self.values.heads}
        value = self.b.emit(attend, (self.value, of), shape, more, seen=seen, name=name)
        if not merged:
            value = self.b.emit(moves.heads_first, (value,), (heads, self.b.tokens, dim), {"heads": heads})
        self.b.write(self._node(self.last).tensor, value)

    def _factor(self) -> float:
        """What the graph multiplies queries by before their product with the keys; it is left to the softmax."""
        query, reading = self.query, self.b.reading
        number = reading.producer.get(query.root)
        if number is None or self._node(number).op != "SCALE":
            return 1.0
        scale = self._node(number)
        scaled, by = scale.tensor, float(scale.number(0))
        turned = (scaled.shape[0], scaled.shape[2], scaled.shape[1], scaled.shape[3])
        whole = query.shape == turned and not query.offset and query.steps[1] == scaled.steps[2]
        if not whole or by <= 0 or scale.number(1) or not reading.only(scale):
            return 1.0
        self.b.done.add(number)
        return by
