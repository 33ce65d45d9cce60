"""Nodes of a graph that are one operation by hand: a norm and its weight, a product, its bias and its heads, a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from firstdiff.model.errors import ModelError
from firstdiff.model.graph.building import Builder, is_memory
from firstdiff.model.graph.elementwise import geglu, gelu
from firstdiff.model.graph.nodes import Node, Tensor
from firstdiff.model.graph.program import Input, Named, Operand, Shape
from firstdiff.model.graph.roles import ROTATED
from firstdiff.model.moves import columns
from firstdiff.model.operations import Operation, add, embed, layer_norm, linear, rms_norm, rope, swiglu

Fuse = Callable[[Builder, int, Node], bool]
"""Lowers a node, and those behind it that belong to it; False where it is not of that kind."""

NORMS: Mapping[str, Operation] = {"RMS_NORM": rms_norm, "NORM": layer_norm}
GATES: Mapping[str, Operation] = {"SWIGLU": swiglu, "GEGLU": geglu}
PAIRINGS = {0: "interleaved", 2: "half"}


def norm(b: Builder, number: int, node: Node) -> bool:
    """A norm with its weight, and its bias."""
    if node.op not in NORMS:
        return False
    last, weight = _then(b, number, "MUL", node.tensor.shape[3])
    bias = None
    if weight is not None and node.op == "NORM":
        b.done.add(last)
        last, bias = _then(b, last, "ADD", node.tensor.shape[3])
    source = node.sources[0]
    assert source is not None
    shape = b.shape(b.graph.nodes[last].tensor)
    operands: tuple[Operand, ...] = (b.shaped(b.read(source), shape), weight)
    if weight is not None and weight.name.endswith(".ffn_norm.weight"):
        b.rename(operands[0], "ffn_inp")
    b.emit_at(last, NORMS[node.op], operands if bias is None else (*operands, bias), shape, eps=float(node.number(0)))
    return True


def product(b: Builder, number: int, node: Node) -> bool:
    """A product with a matrix of the file, its bias, and its heads apart."""
    if node.op != "MUL_MAT" or node.params[1] == 1:
        return False
    weight, x = node.sources[:2]
    if weight is None or x is None or x.shape[:2] != (1, 1) or weight.shape[:2] != (1, 1) or weight.shape[2] == 1:
        return False
    of = b.read(weight)
    if not isinstance(of, Named) or weight.at != weight.root:
        return False
    out = node.tensor.shape[3]
    last, bias = _then(b, number, "ADD", out)
    shape: Shape = (x.shape[2], out)
    heads = _heads(b, b.graph.nodes[last].tensor)
    operands: tuple[Operand, ...] = (b.shaped(b.read(x), (x.shape[2], x.shape[3])), of)
    operands = operands if bias is None else (*operands, bias)
    if heads is None:
        b.emit_at(last, linear, operands, shape)
    else:
        b.emit_at(last, linear, operands, (shape[0], heads, out // heads), heads=heads)
    return True


def _heads(b: Builder, tensor: Tensor) -> int | None:
    """How many heads a product's rows are taken apart into by all that read it; None where they are not."""
    readers = [b.graph.nodes[i] for i in b.reading.children.get(tensor.at, ())]
    shapes = {node.tensor.shape for node in readers}
    if len(shapes) != 1 or any(node.op != "RESHAPE" for node in readers):
        return None
    (shape,) = shapes
    alike = shape[0] == 1 and shape[1] == tensor.shape[2] and shape[2] * shape[3] == tensor.shape[3]
    return shape[2] if alike and shape[3] > 1 else None


def _then(b: Builder, number: int, op: str, width: int) -> tuple[int, Named | None]:
    """The node that alone reads a result and puts a weight of one row to it, and this weight."""
    after = b.reading.only(b.graph.nodes[number])
    if after is None or b.graph.nodes[after[0]].op != op or after[1] > 1:
        return number, None
    node = b.graph.nodes[after[0]]
    own, other = node.sources[after[1]], node.sources[1 - after[1]]
    if own is None or other is None or node.tensor.root != node.tensor.at or own.shape != node.tensor.shape:
        return number, None
    leaf = b.graph.leafs.get(other.at)
    if leaf is None or leaf.values is not None or is_memory(leaf.tensor) or other.shape != (1, 1, 1, width):
        return number, None
    return after[0], Named(leaf.tensor.name)


def rotation(b: Builder, number: int, node: Node) -> bool:
    """A rotation without YaRN."""
    if node.op != "ROPE":
        return False
    x, at, factors, *_ = (*node.sources, None)
    mode, start = node.params[2], node.params[15]
    ext, magnitude = float(node.number(7)), float(node.number(8))
    if x is None or at is None or mode not in PAIRINGS or ext or magnitude != 1 or start or x.shape[0] != 1:
        return False
    if not _is(b, at, "inp_pos"):
        return False
    dims = node.params[1]
    if dims % 2 or not 0 < dims <= x.shape[3]:
        raise ModelError(f"llama.cpp's graph rotates {dims} of {x.shape[3]} dimensions, which are no pairs")
    of = None if factors is None else b.read(factors)
    if of is not None and not isinstance(of, Named):
        return False
    shape = x.shape[1:]
    operands: tuple[Operand, ...] = (b.shaped(b.read(x), shape), Input.POSITIONS)
    turned = {"pairing": PAIRINGS[mode], "base": float(node.number(5)), "scale": float(node.number(6))}
    if dims != x.shape[3]:
        turned["dim"] = dims
    operands = operands if of is None else (*operands, of)
    b.emit_at(number, rope, operands, shape, **turned)
    b.rename(len(b.made) - 1, ROTATED.get(b.point_of(operands[0]) or ""))
    return True


def embedding(b: Builder, number: int, node: Node) -> bool:
    """Rows of an embedding; rows of all tokens in turn are no operation."""
    if node.op != "GET_ROWS":
        return False
    table, ids = node.sources[:2]
    assert table is not None
    leaf = b.reading.leaf(ids)
    if ids is None or leaf is None or leaf.values is None or ids.shape[:3] != (1, 1, 1):
        return False
    given = Input.TOKENS if _is(b, ids, "inp_tokens") else Input.POSITIONS if _is(b, ids, "inp_pos") else None
    of = b.read(table)
    if isinstance(of, Named) and given is not None and table.at == table.root:
        b.emit_at(number, embed, (given, of), (ids.shape[3], table.shape[3]))
        return True
    every = np.array_equal(leaf.values.reshape(-1), np.arange(table.shape[2]))
    if isinstance(of, int) and every and table.shape[:2] == (1, 1) and "out_ids" in ids.name:
        b.write(node.tensor, of)
        return True
    return False


def _is(b: Builder, tensor: Tensor, name: str) -> bool:
    leaf = b.graph.leafs.get(tensor.root)
    return leaf is not None and leaf.tensor.name == name and tensor.size == b.tokens


def gated(b: Builder, number: int, node: Node) -> bool:
    """A gate of two tensors or of the halves of one, or GELU by itself."""
    shape, first = b.shape(node.tensor), node.sources[0]
    if first is None or node.op not in (*GATES, "GELU"):
        return False
    if node.op == "GELU":
        b.emit_at(number, gelu, (b.shaped(b.read(first), shape),), shape)
        return True
    whole = b.shape(first)
    if node.sources[1] is not None:
        read = tuple(b.shaped(b.read(s), shape) for s in node.sources[:2] if s is not None)
    elif len(whole) == 2:  # noqa: PLR2004 - [T, 2 n], of which one half is the gate
        of, n = b.shaped(b.read(first), whole), shape[1]
        halves = [b.emit(columns, (of,), shape, {"start": at, "stop": at + n}) for at in (0, n)]
        read = tuple(halves[::-1] if node.params[1] else halves)
    else:
        return False
    b.emit_at(number, GATES[node.op], read, shape)
    return True


def gated_in_two(b: Builder, number: int, node: Node) -> bool:
    """Silu and then a product."""
    after = b.reading.only(node)
    if node.op != "SILU" or after is None or b.graph.nodes[after[0]].op != "MUL":
        return False
    of, source = b.graph.nodes[after[0]], node.sources[0]
    other = of.sources[1 - after[1]]
    if source is None or other is None or other.root not in b.memory:
        return False
    if other.shape != of.tensor.shape or source.shape != other.shape:
        return False
    shape = b.shape(node.tensor)
    read = (b.shaped(b.read(source), shape), b.shaped(b.read(other), shape))
    b.emit_at(after[0], swiglu, read, shape)
    return True


def summed(b: Builder, number: int, node: Node) -> bool:
    """A sum of two branches."""
    if node.op != "ADD" or node.tensor.root != node.tensor.at:
        return False
    one, other = node.sources[:2]
    if one is None or other is None or one.shape != other.shape:
        return False
    read = b.read(one), b.read(other)
    if not all(isinstance(x, int) for x in read):
        return False
    shape = b.shape(node.tensor)
    b.emit_at(number, add, tuple(b.shaped(x, shape) for x in read), shape)
    return True


FUSED: tuple[Fuse, ...] = (norm, product, rotation, embedding, gated, gated_in_two, summed)
