"""Which nodes of a graph are attention over a cache, as llama.cpp builds it (``llm_graph_context::build_attn_mha``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.model.graph.nodes import Numbers, Tensor
from firstdiff.model.graph.reading import Reading
from firstdiff.model.graph.rows import slopes

CAP = ("SCALE", "TANH", "SCALE")
"""What scores may pass on their way to the softmax: a soft cap."""


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """The nodes of one layer's attention, by number.

    Parameters
    ----------
    kq, between, softmax, kqv
        Scores, what caps them, their softmax, and its product with the values.
    merged
        The node that puts the heads side by side; None where each head's result goes on by itself.
    keys, values
        The memory that they are read from; the same one where values are a part of the keys.
    columns
        Which numbers of a key the value is; None where values have a memory of their own.
    copied
        The node that copies these, which nothing else reads.
    """

    kq: int
    between: tuple[int, ...]
    softmax: int
    kqv: int
    merged: int | None
    keys: int
    values: int
    columns: tuple[int, int] | None = None
    copied: int | None = None

    @property
    def nodes(self) -> tuple[int, ...]:
        """All of them."""
        return (
            self.kq,
            *self.between,
            self.softmax,
            self.kqv,
            *(n for n in (self.merged, self.copied) if n is not None),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Writes:
    """A node that writes a step's keys or values into a cache, and the cells that it writes them to."""

    node: int
    rows: Tensor
    cells: tuple[int, ...]
    heads: int
    dim: int


def attentions(reading: Reading) -> tuple[list[Attention], dict[int, Writes]]:
    """Find attention over caches that nothing else reads, and what writes to these in this step, by memory."""
    found = [
        a for i, n in enumerate(reading.graph.nodes) if n.op == "SOFT_MAX" if (a := _around(reading, i)) is not None
    ]
    while True:
        writes = _writes(reading, found)
        sound = [a for a in found if a.keys in writes and a.values in writes and _alone(reading, a, found, writes)]
        if len(sound) == len(found):
            return found, writes
        found = sound


def _alone(reading: Reading, a: Attention, found: Sequence[Attention], writes: Mapping[int, Writes]) -> bool:
    """Whether only attention reads its caches, and one node writes each."""
    known = {n for each in found for n in each.nodes} | {w.node for w in writes.values()}
    return all(i in known for memory in (a.keys, a.values) for i, _ in reading.readers[memory])


def _around(reading: Reading, softmax: int) -> Attention | None:  # noqa: PLR0911 - each is another way of not being one
    nodes = reading.graph.nodes
    scores, mask, *_ = (*nodes[softmax].sources, None, None)
    if scores is None or mask is None or (leaf := reading.leaf(mask)) is None or leaf.values is None:
        return None
    between: list[int] = []
    number = reading.made(scores)
    while number is not None and nodes[number].op in CAP and reading.only(nodes[number]):
        if nodes[number].op == "SCALE" and nodes[number].number(1):
            return None
        between.insert(0, number)
        source = nodes[number].sources[0]
        number = None if source is None else reading.made(source)
    if (
        number is None
        or tuple(nodes[n].op for n in between) not in ((), CAP)
        or nodes[number].op != "MUL_MAT"
        or not reading.only(nodes[number])
    ):
        return None
    key, query, *_ = nodes[number].sources
    after = reading.only(nodes[softmax])
    if key is None or query is None or after is None or after[1] != 1 or nodes[after[0]].op != "MUL_MAT":
        return None
    if query.shape[0] != 1 or key.shape[0] != 1 or reading.leaf(key) is None:
        return None
    kqv = after[0]
    value = nodes[kqv].sources[0]
    if value is None:
        return None
    merged = _merged(reading, kqv)
    here = Attention(number, tuple(between), softmax, kqv, merged, key.root, value.root)
    if reading.leaf(value) is not None:
        return here
    copy = reading.made(value)
    source = None if copy is None or nodes[copy].op != "CONT" else nodes[copy].sources[0]
    if source is None or source.root != key.root or key.shape[1] != 1 or source.shape[3] != key.shape[2]:
        return None
    columns = source.start, source.start + source.shape[2]
    return replace(here, values=key.root, columns=columns, copied=copy)


def _merged(reading: Reading, kqv: int) -> int | None:
    """The node that puts heads side by side."""
    nodes = reading.graph.nodes
    after = reading.only(nodes[kqv])
    if after is None or nodes[after[0]].op != "CONT":
        return None
    source, out = nodes[after[0]].sources[0], nodes[kqv].tensor
    turned = (out.shape[0], out.shape[2], out.shape[1], out.shape[3])
    return after[0] if source is not None and source.shape == turned else None


def _writes(reading: Reading, found: Sequence[Attention]) -> dict[int, Writes]:
    """What writes to the caches of some attentions."""
    writes: dict[int, Writes] = {}
    several: set[int] = set()
    for number, node in enumerate(reading.graph.nodes):
        if node.op != "SET_ROWS":
            continue
        memory = node.tensor.root
        for a in found:
            key = reading.graph.nodes[a.kq].sources[0]
            value = reading.graph.nodes[a.kqv].sources[0]
            assert key is not None
            assert value is not None
            wrote = None
            if memory == a.keys:
                wrote = _rows(reading, number, key.shape[1], key.shape[3])
            elif memory == a.values and a.columns is None:
                wrote = _numbers(reading, number, value.shape[1], value.shape[2])
            if wrote is not None:
                if memory in writes and writes[memory].node != number:
                    several.add(memory)
                writes[memory] = wrote
    return {memory: w for memory, w in writes.items() if memory not in several}


def _rows(reading: Reading, number: int, heads: int, dim: int) -> Writes | None:
    """Keys: a row per token."""
    rows, ids = reading.graph.nodes[number].sources[:2]
    leaf = reading.leaf(ids)
    if rows is None or leaf is None or leaf.values is None or rows.shape[3] != heads * dim or rows.shape[:2] != (1, 1):
        return None
    cells = leaf.values.reshape(-1)
    return Writes(number, rows, tuple(int(c) for c in cells), heads, dim) if len(cells) == rows.shape[2] else None


def _numbers(reading: Reading, number: int, heads: int, dim: int) -> Writes | None:
    """Values, whose cache is transposed: each number is a row of its own."""
    rows, ids = reading.graph.nodes[number].sources[:2]
    leaf = reading.leaf(ids)
    if rows is None or leaf is None or leaf.values is None or rows.shape[3] != 1 or rows.size % (heads * dim):
        return None
    numbers = leaf.values.reshape(-1, heads * dim)
    into = reading.graph.nodes[number].tensor.size // (heads * dim)
    if not np.array_equal(numbers, numbers[:, :1] + np.arange(heads * dim) * into):
        return None
    return Writes(number, rows, tuple(int(c) for c in numbers[:, 0]), heads, dim)


def mask_of(
    mask: Numbers, cells: Sequence[int], tokens: int, bias: float, heads: int
) -> npt.NDArray[np.float32] | None:
    """What is added to the scores, of the cells in the order in which they were written.

    [token, position], or [head, token, position]; None where it only hides the future. A cell that was written again
    holds its last token alone.
    """
    order = np.array(cells, np.int64)
    last = {cell: place for place, cell in enumerate(cells)}
    rows = mask[0, :, :tokens].astype(np.float32)
    own = np.array([last[c] == place and c < rows.shape[-1] for place, c in enumerate(cells)])
    seen = np.where(own, rows[..., np.minimum(order, rows.shape[-1] - 1)], -np.inf)
    if bias > 0:
        with np.errstate(invalid="ignore"):
            return np.asarray(slopes(heads, bias)[:, None, None] * seen, np.float32)
    future = np.arange(len(cells)) > np.arange(len(cells) - tokens, len(cells))[:, None]
    plain = np.where(future, -np.inf, 0).astype(np.float32)
    if all(np.array_equal(x, plain) for x in seen):
        return None
    return np.asarray(seen[0] if len(seen) == 1 else seen, np.float32)
