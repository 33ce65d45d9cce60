"""The logits that an engine wrote: in a file of any of the usual formats, told by its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.formats.npy import MAGIC, open_npy
from firstdiff.dumps.formats.safetensors import read_header
from firstdiff.errors import CaptureError

Floats = npt.NDArray[np.float32]

MOST_TEXT = 1 << 28
"""Bytes of logits that are read as text."""

_TEXT = b"0123456789+-.eEnaifINF,;[]() \t\r\n"
BINARY = "raw float32 numbers, .npy, .safetensors, or text"


def read_logits(folder: Path, *, tokens: int, width: int) -> Floats:
    """Read the logits of a prompt: of all tokens, or of the last one.

    Parameters
    ----------
    folder
        Where the engine was to write them, under any name that begins with ``logits``.
    tokens, width
        How many tokens it was given, and how many the model's vocabulary has.

    Returns
    -------
    float32 [token, vocabulary], or [1, vocabulary]; what an engine that pads its vocabulary has more is left out.

    Raises
    ------
    CaptureError
        For a file that cannot be read, or other numbers than these.
    """
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.name.startswith("logits"))
    if not found:
        raise CaptureError(f"--engine: it wrote no file that begins with 'logits' into {folder}: let it use {{logits}}")
    try:
        values = _values(found[0])
    except (TraceError, ValueError, OSError) as e:
        raise CaptureError(f"--engine: its logits cannot be read: {e}: write {BINARY}") from None
    return _shaped(values, found[0], tokens, width)


def _values(path: Path) -> npt.NDArray[np.floating]:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(MAGIC):
        return np.asarray(open_npy(path).read(), np.float64)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        tensors = list(read_header(path)[0].values())
        if len(tensors) != 1:
            raise ValueError(f"{path} has {len(tensors)} tensors, where one is wanted")
        return np.asarray(tensors[0].read(), np.float64)
    if head.strip() and not head.translate(None, _TEXT):
        if path.stat().st_size > MOST_TEXT:
            raise ValueError(f"{path} is text of {path.stat().st_size:,} bytes, where {MOST_TEXT:,} are read")
        text = path.read_text("ascii").translate(str.maketrans(",;[]()", "      "))
        return np.array(text.split(), np.float64)
    size = path.stat().st_size
    if size % 4:
        raise ValueError(f"{path} has {size:,} bytes, which are no whole float32 numbers")
    return np.fromfile(path, "<f4")


def _shaped(values: npt.NDArray[np.floating], path: Path, tokens: int, width: int) -> Floats:
    """The numbers by token. An engine may pad its vocabulary, if it says so by the array's shape."""
    if values.ndim > 1 and values.shape[-1] > width and int(np.prod(values.shape[:-1])) in (1, tokens):
        values = values[..., :width]
    rows, left = divmod(values.size, width)
    if left or rows not in (1, tokens):
        wanted = f"{tokens} x {width:,}" if tokens == 1 else f"{tokens} x {width:,} or 1 x {width:,}"
        raise CaptureError(
            f"--engine: it wrote {values.size:,} logits to {path.name}, where {tokens} tokens and a vocabulary of "
            f"{width:,} give {wanted}{_looks_like(values.size, tokens, width)}: write the logits of each token, or of "
            "the last one, of the model and the tokens that it is given, in float32"
        )
    return np.asarray(values.reshape(rows, width), np.float32)


def _looks_like(size: int, tokens: int, width: int) -> str:
    """What so many numbers may be, in words; empty where nothing comes to mind."""
    rows, left = divmod(size, width)
    if 2 * size == tokens * width:
        return " (as many bytes as float16 would have)"
    if size == 2 * tokens * width:
        return " (as many bytes as float64 would have)"
    if not left:
        return f" (this is {rows} rows: other tokens than it was given, or one more in front)"
    if not size % tokens:
        return f" (rows of {size // tokens:,}: the vocabulary of another model, or a padded one)"
    return ""
