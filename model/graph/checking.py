"""Checking a captured graph before it is followed: an order that can be run, and shapes that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from firstdiff.model.errors import ModelError
from firstdiff.model.graph.nodes import VIEWS, Graph, Node, Shape, Tensor

LARGEST = 1 << 33
"""More numbers than any tensor of a real graph has: 2,048 tokens' logits of a vocabulary of 262,144 are 2^29."""

BINARY = frozenset(("ADD", "SUB", "MUL", "DIV"))
ALIKE = frozenset(
    ("RMS_NORM", "NORM", "L2_NORM", "SCALE", "CLAMP", "SOFT_MAX", "ROPE", "ROPE_BACK", "SILU", "GELU", "TANH", "RELU",
     "SIGMOID", "EXP", "SQR", "SQRT", "NEG", "ABS", "SGN", "SOFTPLUS", "XIELU", "ARGSORT")
)  # fmt: skip
"""Operations whose result is shaped as what they read first."""

GATES = frozenset(("SWIGLU", "GEGLU", "REGLU", "SWIGLU_OAI", "SWIGLU_CLAMP"))
COPIES = frozenset(("CPY", "CONT", "DUP"))


def check(graph: Graph, weights: Mapping[str, Shape]) -> None:
    """Refuse a graph that cannot be followed; `weights` are the shapes of the file's tensors, [ne3, ne2, ne1, ne0].

    Raises
    ------
    ModelError
        Naming the node, and what of it does not fit.
    """
    known = {at: leaf.tensor for at, leaf in graph.leafs.items()}
    for leaf in graph.leafs.values():
        fault = _of_tensor(leaf.tensor, known)
        if fault is None and leaf.tensor.name in weights and weights[leaf.tensor.name] != leaf.tensor.shape:
            fault = f"has shape {_shown(leaf.tensor.shape)}, and {_shown(weights[leaf.tensor.name])} in the file"
        if fault is not None:
            raise ModelError(f"llama.cpp's graph cannot be followed: tensor {leaf.tensor.name!r:.70} {fault}")
    for number, node in enumerate(graph.nodes):
        fault = _of_node(node, known)
        if fault is not None:
            said = f"node {number}, {node.tensor.name!r:.70} ({node.op:.20}), {fault}"
            raise ModelError(f"llama.cpp's graph cannot be followed: {said}")
        if node.tensor.at == node.tensor.root:
            known[node.tensor.at] = node.tensor
    if not any(node.op not in VIEWS for node in graph.nodes):
        raise ModelError("llama.cpp's graph cannot be followed: it has no node that computes anything")


def _of_node(node: Node, known: Mapping[int, Tensor]) -> str | None:
    """What is wrong with a node."""
    for source in node.sources:
        itself = source is None or source.at == node.tensor.at  # what a cast writes to
        fault = None if itself or source is None else _of_tensor(source, known)
        if fault is not None and source is not None:
            return f"reads {source.name!r:.70}, which {fault}"
    makes = node.tensor.at == node.tensor.root
    fault = _of_tensor(node.tensor, {node.tensor.root: node.tensor} if makes else known)
    if fault is not None:
        return fault
    if 0 in node.tensor.shape:
        return None
    rule = next((rule for ops, rule in _RULES if node.op in ops), None)
    needs = 2 if node.op in _OF_TWO else 1
    if rule is None:
        return None
    read = node.sources[:needs]
    if len(read) < needs or any(s is None for s in read):
        return "lacks an operand"
    return rule(node, *(s for s in read if s is not None))


def _of_tensor(tensor: Tensor, known: Mapping[int, Tensor]) -> str | None:
    """What is wrong with a tensor by itself, and with what it is a view of."""
    if min(tensor.shape) < 0 or tensor.size > LARGEST or tensor.shape[3] % tensor.kind.block:
        return f"has the impossible shape {_shown(tensor.shape)}"
    root = known.get(tensor.root)
    if root is None:
        return "nobody computed before"
    if min(tensor.strides) < 0 or tensor.offset < 0:
        return f"has negative strides {_shown(tensor.strides)} or a negative offset {tensor.offset}"
    if 0 in tensor.shape:
        return None
    last = tensor.start + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.steps, strict=True))
    if last >= root.size:
        return f"ends at number {last:,} of {root.name!r:.70}, which has {root.size:,}"
    return None


def _shown(numbers: Shape) -> str:
    return f"[{', '.join(map(str, numbers))}]"


def _alike(node: Node, x: Tensor) -> str | None:
    if node.tensor.shape != x.shape:
        return f"makes {_shown(node.tensor.shape)} of {_shown(x.shape)}"
    if node.op.startswith("ROPE") and not 0 < node.params[1] + max(node.params[15], 0) <= x.shape[3]:
        return f"rotates {node.params[1]} of the {x.shape[3]} numbers of a head"
    return None


def _binary(node: Node, x: Tensor, y: Tensor) -> str | None:
    if node.tensor.shape != x.shape or any(m == 0 or n % m for n, m in zip(x.shape, y.shape, strict=True)):
        return f"makes {_shown(node.tensor.shape)} of {_shown(x.shape)} and {_shown(y.shape)}"
    return None


def _product(node: Node, w: Tensor, x: Tensor) -> str | None:
    out = (x.shape[0], x.shape[1], x.shape[2], w.shape[2])
    repeated = any(m == 0 or n % m for n, m in zip(x.shape[:2], w.shape[:2], strict=True))
    if w.shape[3] != x.shape[3] or repeated or (node.params[1] != 1 and node.tensor.shape != out):
        return f"makes {_shown(node.tensor.shape)} of {_shown(w.shape)} and {_shown(x.shape)}"
    return None


def _gate(node: Node, x: Tensor) -> str | None:
    other = node.sources[1] if len(node.sources) > 1 else None
    halves = other is None and x.shape[3] == 2 * node.tensor.shape[3] and x.shape[:3] == node.tensor.shape[:3]
    if not halves and (other is None or node.tensor.shape != x.shape or other.shape != x.shape):
        return f"makes {_shown(node.tensor.shape)} of {_shown(x.shape)}"
    return None


def _copy(node: Node, x: Tensor) -> str | None:
    return None if node.tensor.size == x.size else f"copies {x.size:,} numbers to {node.tensor.size:,}"


def _rows(node: Node, x: Tensor, ids: Tensor) -> str | None:
    out = (ids.shape[1], ids.shape[2], ids.shape[3], x.shape[3])
    return None if node.tensor.shape == out else f"makes {_shown(node.tensor.shape)} of rows of {_shown(x.shape)}"


_OF_TWO = BINARY | {"MUL_MAT", "GET_ROWS"}
_RULES: tuple[tuple[frozenset[str], Callable[..., str | None]], ...] = (
    (ALIKE, _alike),
    (BINARY, _binary),
    (frozenset(("MUL_MAT",)), _product),
    (GATES, _gate),
    (COPIES, _copy),
    (frozenset(("GET_ROWS",)), _rows),
)
