"""A weight of every type, quantised by llama.cpp's own quantiser, with subnormal scales and normal ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from planted import FILE_TYPES, quantised, synthetic

from firstdiff.model.blocks import LAYOUTS
from firstdiff.model.gguf import open_gguf

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

NAME = "blk.0.ffn_down.weight"
ROW = 512  # two blocks of a K type
KINDS = ("F32", "F16", "BF16", *LAYOUTS)


def quantised_weights(folder: Path) -> dict[str, Bytes]:
    """The bytes of one weight by the type that it was quantised to."""
    path = _rescaled(synthetic(folder, n_layer=1, n_ff=ROW))
    found = {}
    for kind in KINDS:
        gguf = open_gguf(quantised(path, FILE_TYPES[kind], folder / f"{kind}.gguf"))
        assert gguf.tensors[NAME].type.name == kind
        found[kind] = gguf.raw(NAME)
    return found


def _rescaled(path: Path) -> Path:
    """Rows of the weight by turns 1e-4 times, 30 times and once what they were.

    The first have subnormal scales in all types but Q6_K, whose scales are zero there and subnormal in the last.
    """
    info = open_gguf(path).tensors[NAME]
    raw = bytearray(path.read_bytes())
    values = np.frombuffer(raw, np.float32, info.nbytes // 4, info.offset).reshape(info.shape)
    values[::3] *= 1e-4
    values[1::3] *= 30
    path.write_bytes(raw)
    return path
