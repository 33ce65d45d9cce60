"""Logs: how a test reads one, and a tensor as llama.cpp prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from firstdiff.dumps.log import Log

Read = Callable[..., Log]


def ggml_block(name: str, op: str, x: np.ndarray[Any, Any], *, views: str = "") -> str:
    """A tensor [rows, columns] as llama.cpp's common_debug_cb_eval prints it."""
    rows = [*range(3), None, *range(len(x) - 3, len(x))] if len(x) > 6 else list(range(len(x)))
    shape = f"{x.shape[1]}, {x.shape[0]}, 1, 1"
    head = (
        f"common_debug_cb_eval: {name + views:>24} = (f32) {op:>10}(w{{1, 1, 1, 1}}, x{{1, 1, 1, 1}}}}) = {{{shape}}}"
    )
    lines = [head, "    [", "        ["]
    for row in rows:
        if row is None:
            lines.append("            ..., ")
            continue
        left, right = (", ".join(f"{v:12.4f}" for v in part) for part in (x[row][:3], x[row][-3:]))
        lines.append(f"            [{left},    ..., {right}  ],")
    return "\n".join([*lines, "        ],", "    ]", f"    sum = {x.sum():f}", ""])
