"""Captured graphs that are damaged: each is followed, or refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.every_architecture import toy
from firstdiff.dumps import Step
from firstdiff.engines.llamacpp_graph import capture_of
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import open_graph
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import open_gguf
from firstdiff.model.graph.nodes import Graph, Node, Tensor
from firstdiff.model.probe import Probe

pytestmark = [pytest.mark.llama, pytest.mark.slow]

TOKENS = (3, 4, 5)
ARCHITECTURES = ("gemma3", "olmoe", "gpt2", "mamba2", "rwkv6", "deepseek2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@cache
def captured(arch: str, folder: Path) -> tuple[Path, Graph]:
    path = toy(arch, folder)
    (graph,) = capture_of(open_gguf(path))([TOKENS])
    return path, graph


def follow(path: Path, graph: Graph) -> None:
    model = open_graph(path, lambda steps: [graph for _ in steps])
    with np.errstate(all="ignore"):
        for _ in model.forward([Step(TOKENS, (0, 1, 2))], Probe(F32)):
            pass


def refused(path: Path, graph: Graph) -> str:
    with pytest.raises(ModelError) as e:
        follow(path, graph)
    assert "\n" not in str(e.value)
    return str(e.value)


def with_node(graph: Graph, number: int, **changes: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[number] = replace(nodes[number], **changes)
    return replace(graph, nodes=tuple(nodes))


def product_of(graph: Graph) -> int:
    return next(i for i, n in enumerate(graph.nodes) if n.op == "MUL_MAT")


def test_a_right_graph_is_followed(folder: Path) -> None:
    for arch in ARCHITECTURES:
        follow(*captured(arch, folder))


def test_a_graph_with_a_cycle_is_refused(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    number = product_of(graph)
    node = graph.nodes[number]
    later = graph.nodes[number + 10].tensor
    said = refused(path, with_node(graph, number, sources=(node.sources[0], later)))
    assert f"node {number}, " in said
    assert "which nobody computed before" in said


def test_a_source_that_does_not_exist_is_refused(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    number = product_of(graph)
    weight, x = graph.nodes[number].sources[:2]
    assert x is not None
    said = refused(path, with_node(graph, number, sources=(weight, replace(x, at=1, root=1))))
    assert "nobody computed before" in said
    assert "lacks an operand" in refused(path, with_node(graph, number, sources=(weight, None)))


def test_absurd_shapes_are_refused(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    number = product_of(graph)
    node = graph.nodes[number]
    for shape in ((1, 1, 3, 1 << 50), (1, 1, -3, 256), (1, 1, 3, 255)):
        said = refused(path, with_node(graph, number, tensor=replace(node.tensor, shape=shape)))
        assert f"node {number}, " in said
    x = node.sources[1]
    assert x is not None
    said = refused(path, with_node(graph, number, sources=(node.sources[0], replace(x, offset=1 << 20, at=7))))
    assert "ends at number" in said


def test_a_weight_of_another_shape_than_the_file_has_is_refused(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    at, leaf = next((at, leaf) for at, leaf in graph.leafs.items() if leaf.tensor.name == "blk.0.attn_q.weight")
    other = replace(leaf, tensor=replace(leaf.tensor, shape=(1, 1, 128, 256)))
    assert "[1, 1, 256, 256] in the file" in refused(path, replace(graph, leafs={**graph.leafs, at: other}))


def test_an_empty_graph_is_refused(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    assert "no node that computes anything" in refused(path, replace(graph, nodes=()))


def test_an_operation_that_is_not_known_is_named(folder: Path) -> None:
    path, graph = captured("gemma3", folder)
    assert "llama.cpp's operation NEW_OP" in refused(path, with_node(graph, product_of(graph), op="NEW_OP"))


NUMBERS = st.sampled_from((-1, 0, 1, 2, 3, 7, 256, 1 << 14, 1 << 45))


@st.composite
def damaged(draw: st.DrawFn, graph: Graph) -> Graph:
    """A graph with a few nodes changed by chance."""
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(graph.nodes) - 1))
        graph = with_node(graph, number, **draw(changed(graph, graph.nodes[number])))
    return graph


@st.composite
def changed(draw: st.DrawFn, graph: Graph, node: Node) -> dict[str, Any]:
    what = draw(st.sampled_from(("op", "params", "tensor", "source", "none", "other")))
    if what == "op":
        return {"op": draw(st.sampled_from(sorted({n.op for n in graph.nodes} | {"NEW_OP"})))}
    if what == "params":
        place = draw(st.integers(0, 15))
        params = (*node.params[:place], draw(st.integers(-(2**31), 2**31 - 1)), *node.params[place + 1 :])
        return {"params": params}
    if what == "tensor":
        return {"tensor": draw(tensor(node.tensor))}
    given_ = [i for i, s in enumerate(node.sources) if s is not None]
    if not given_:
        return {}
    place = draw(st.sampled_from(given_))
    source = node.sources[place]
    assert source is not None
    new: Tensor | None = None
    if what == "source":
        new = draw(tensor(source))
    elif what == "other":
        new = draw(st.sampled_from(graph.nodes)).tensor
    return {"sources": tuple(new if i == place else s for i, s in enumerate(node.sources))}


@st.composite
def tensor(draw: st.DrawFn, of: Tensor) -> Tensor:
    name = draw(st.sampled_from(("shape", "strides", "offset", "root", "at")))
    if name in ("offset", "root", "at"):
        return replace(of, **{name: draw(NUMBERS)})
    numbers: Sequence[int] = getattr(of, name)
    place = draw(st.integers(0, 3))
    return replace(of, **{name: tuple(draw(NUMBERS) if i == place else n for i, n in enumerate(numbers))})


@pytest.mark.parametrize("arch", ARCHITECTURES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_graph_is_followed_or_refused(folder: Path, arch: str, data: st.DataObject) -> None:
    path, graph = captured(arch, folder)
    with suppress(ModelError):
        follow(path, data.draw(damaged(graph)))
