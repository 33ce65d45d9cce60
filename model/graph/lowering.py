"""A captured graph as calls: what is one operation by hand is one here too, the rest goes node by node."""

from __future__ import annotations

import numpy as np

from firstdiff.model import moves
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.attention_calls import attention_calls
from firstdiff.model.graph.building import Builder, History
from firstdiff.model.graph.fusing import FUSED
from firstdiff.model.graph.moves import top_k
from firstdiff.model.graph.names import is_own, name_of
from firstdiff.model.graph.nodes import VIEWS, Graph, Node
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.graph.program import Named, Program, Seen
from firstdiff.model.graph.table import KERNELS
from firstdiff.model.moves import columns

WHOLE = ("I8", "I16", "I32", "I64")
"""Types of whole numbers."""


def lowered(graph: Graph, tokens: int, history: History) -> Program:
    """The calls that a graph of some tokens makes; `history` is of the steps before it, and has this one afterwards.

    Raises
    ------
    ModelError
        For a graph that reads what nobody computed, or has no node.
    """
    try:
        return _lowered(Builder(graph, tokens, history))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"llama.cpp's graph is not one that firstdiff can follow ({type(error).__name__}: {error})"
        ) from error


def _lowered(b: Builder) -> Program:
    attention = attention_calls(b)
    for number, node in enumerate(b.graph.nodes):
        if number in attention:
            attention[number]()
        elif number in b.done:
            continue
        elif node.op in VIEWS:
            _view(b, number, node)
        elif 0 in node.tensor.shape:
            _empty(b, node)
        elif not any(fuse(b, number, node) for fuse in FUSED):
            _any(b, number, node)
    last = next(node for node in reversed(b.graph.nodes) if node.op not in VIEWS)
    return b.program(b.memory[last.tensor.root].value)


def _empty(b: Builder, node: Node) -> None:
    """A tensor without numbers."""
    if node.tensor.root == node.tensor.at:
        empty = np.empty(node.tensor.shape, np.float32)
        b.write(node.tensor, b.emit(moves.given, (), empty.shape, {"value": empty}))


def _view(b: Builder, number: int, node: Node) -> None:
    """A view that llama.cpp has a name for is a site: a part of a fused product."""
    source = node.sources[0]
    if node.op != "VIEW" or source is None or not is_own(node.tensor.name) or 0 in node.tensor.shape:
        return
    if node.tensor.root not in b.memory or b.reading.leaf(node.tensor) is not None:
        return
    if node.tensor.kind.name == "I32" and _chosen(b, number, node):
        return
    if node.tensor.kind.name != "F32":
        return
    shape, tensor = b.shape(node.tensor), node.tensor
    whole = b.memory[tensor.root]
    rows = b.made[whole.value].shape
    heads = len(shape) == 3  # noqa: PLR2004 - [T, H, D]
    flat = shape[-1] if not heads else shape[1] * shape[2]
    steps = (rows[-1], shape[2], 1) if heads else (rows[-1], 1)
    if len(rows) == 2 and rows[0] == shape[0] and tensor.steps[-len(shape) :] == steps:  # noqa: PLR2004
        start = tensor.start
        named = {"start": start, "stop": start + flat, "heads": shape[1] if heads else None}
        value = b.emit(columns, (whole.value,), shape, named, seen=Seen(number), name=name_of(node))
    else:
        view = {"start": tensor.start, "steps": tensor.steps[-len(shape) :], "shape": shape}
        value = b.emit(moves.viewed, (whole.value,), shape, view, seen=Seen(number), name=name_of(node))
    b.sites.setdefault(tensor.root, []).append((tensor, value))


def _chosen(b: Builder, number: int, node: Node) -> bool:
    """The first columns of what was sorted: experts that each token chose."""
    sorted_ = b.reading.producer.get(node.tensor.root)
    if sorted_ is None or node.tensor.offset or node.tensor.shape[:2] != (1, 1):
        return False
    by = b.graph.nodes[sorted_]
    if by.op != "ARGSORT" or by.params[0] != 1 or by.sources[0] is None:
        return False
    shape = node.tensor.shape[2:]
    of = b.shaped(b.read(by.sources[0]), by.tensor.shape[2:])
    value = b.emit(top_k, (of,), shape, {"k": shape[1]}, seen=Seen(number), name=name_of(node))
    b.sites.setdefault(node.tensor.root, []).append((node.tensor, value))
    return True


def _any(b: Builder, number: int, node: Node) -> None:
    """A node as it is."""
    kernel = KERNELS.get(node.op)
    attributes = {} if kernel is None else kernel.attributes(node)
    shape = b.shape(node.tensor)
    read = tuple(b.read(s) for s in node.sources if s is not None and s.at != node.tensor.at)
    takes = tuple((s.shape, s.kind.name in WHOLE) for s in node.sources if s is not None and s.at != node.tensor.at)
    name = b.name(number)
    op = NodeOperation(node, shape, takes)
    named = name.own and (is_own(node.tensor.name) or not name_of(node).own)
    site = node.tensor.root == node.tensor.at and (named or any(isinstance(x, Named) for x in read))
    site = site and (node.tensor.kind.name == "F32" or op.selects)
    value = b.emit(op, read, shape, attributes, seen=Seen(number), name=name if site else None)
    b.write(node.tensor, value)
