"""Who reads what in a graph."""

from __future__ import annotations

from firstdiff.model.graph.nodes import VIEWS, Graph, Leaf, Node, Tensor


class Reading:
    """Who reads what in a graph.

    `producer` is the node that computes a tensor; `readers` are the nodes that compute something of a memory, each with
    the place of the operand; `children` are those that read a tensor itself, views among them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = {n.tensor.at: i for i, n in enumerate(graph.nodes)}
        self.readers: dict[int, list[tuple[int, int]]] = {}
        self.children: dict[int, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            for source in node.sources:
                if source is not None:
                    self.children.setdefault(source.at, []).append(i)
            if node.op not in VIEWS:
                for place, source in enumerate(node.sources):
                    if source is not None:
                        self.readers.setdefault(source.root, []).append((i, place))

    def only(self, node: Node) -> tuple[int, int] | None:
        """The one node that reads a node's result, or a view of it, and in which place; None where it is not one."""
        found = self.readers.get(node.tensor.at, [])
        return found[0] if len(found) == 1 and node.tensor.root == node.tensor.at else None

    def made(self, tensor: Tensor) -> int | None:
        """The node that computed what a tensor shows all of, in the same order; None where none did."""
        number = self.producer.get(tensor.root)
        if number is None or not tensor.contiguous or tensor.offset:
            return None
        return number if self.graph.nodes[number].tensor.size == tensor.size else None

    def leaf(self, tensor: Tensor | None) -> Leaf | None:
        """The leaf that a tensor shows."""
        return None if tensor is None else self.graph.leafs.get(tensor.root)
