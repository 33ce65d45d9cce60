"""Which point a node is whose name does not say it: the small table of llama.cpp's names that mislead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from firstdiff.model.graph.names import Name
from firstdiff.model.graph.nodes import Node

_END = re.compile(r"\.(?:weight|bias|scale)$")

BY_WEIGHT: Mapping[str, str] = {
    "attn_q": "Qcur",
    "attn_k": "Kcur",
    "attn_v": "Vcur",
    "attn_output": "attn_out",
    "attn_qkv": "wqkv",
    "ffn_down": "ffn_out",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "output": "result_output",
    "token_embd": "result_output",
}
"""Products without a name, and what is done with a product's scale and bias, by the weight that they read."""

OTHERS_BY_WEIGHT: Mapping[tuple[str, str], str] = {
    ("MUL", "attn_q_norm"): "Qcur_normed",
    ("MUL", "attn_k_norm"): "Kcur_normed",
    ("MUL", "output_norm"): "result_norm",
    ("GET_ROWS", "token_embd"): "embd",
}
"""What else has no name, by operation and weight."""

ROTATED: Mapping[str, str] = {
    **dict.fromkeys(("Qcur", "Qcur_normed"), "Qcur_rope"),
    **dict.fromkeys(("Kcur", "Kcur_normed"), "Kcur_rope"),
}
"""What a rotation without a name is of."""

RENAMED: Mapping[str, str] = {
    "sa_out": "ffn_inp",
    "ffn_up_b": "ffn_up",
    "ffn_gate_b": "ffn_gate",
    "ffn_gate_par": "ffn_swiglu",
    "wqkv_b": "wqkv",
    "bqkv": "wqkv",
    "inp_embd": "embd",
}
"""llama.cpp's other names of points."""


def role_of(node: Node, own: Name) -> Name:
    """A node's name as a point of the table, where it is one."""
    if own.own:
        return replace(own, point=RENAMED.get(own.point, own.point))
    names = [_END.sub("", s.name) for s in node.sources if s is not None]
    weights = [name.rpartition(".")[2] for name in names]
    products = BY_WEIGHT if node.op in ("MUL_MAT", "MUL", "ADD") else {}
    for weight in weights:
        if found := products.get(weight) or OTHERS_BY_WEIGHT.get((node.op, weight)):
            return replace(own, point=found)
    return own
