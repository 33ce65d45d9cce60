"""``struct ggml_tensor`` as the installed llama.cpp lays it out, checked before it is believed.

No binding declares the struct, and it has drifted between releases. :func:`check_layout` makes tensors through
ggml's own functions and compares what they say with what the struct says.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.errors import CaptureError
from firstdiff.model import quants

MAX_DIMS, MAX_SRC, MAX_NAME, OP_PARAMS = 4, 10, 64, 16
F32, F16 = 0, 1
DTYPES: dict[int, type[np.generic]] = {F32: np.float32, F16: np.float16, 26: np.int32, 27: np.int64}
CACHE_TYPES = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""Names of the types that a KV cache can have, and ggml's."""

ABORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
UNREADABLE = 3  # the exit code of a failed capture

INSTALL = "install it with: pip install 'firstdiff[llama]'"


class Tensor(ctypes.Structure):
    """``struct ggml_tensor`` (ggml/include/ggml.h)."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * MAX_DIMS),
    ("nb", ctypes.c_size_t * MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * OP_PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.c_void_p * MAX_SRC),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def bindings() -> ModuleType:
    """llama-cpp-python.

    Raises
    ------
    CaptureError
        Where it is not installed, or does not load.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name == "llama_cpp":
            raise CaptureError(f"llama.cpp cannot be run: llama_cpp is not installed: {INSTALL}") from None
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CaptureError(f"llama.cpp cannot be run: llama_cpp does not load ({reason}): build it again") from e
    module: ModuleType = llama_cpp
    return module


@cache
def library() -> ctypes.CDLL:
    """The functions of ggml, declared, from the very library that llama.cpp uses.

    They are looked up through llama.cpp's library: a wheel holds ``libggml-base`` under several names as separate
    files, and loading another one would be another ggml, with a state of its own.
    """
    path = bindings().llama_cpp._lib._name  # noqa: SLF001 - the bindings name their library nowhere else
    lib = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_nbytes", size, [pointer]),
        ("ggml_nelements", ctypes.c_int64, [pointer]),
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_op_desc", ctypes.c_char_p, [pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_rms_norm", pointer, [pointer, pointer, ctypes.c_float]),
        ("ggml_view_1d", pointer, [pointer, pointer, ctypes.c_int64, size]),
        ("ggml_tensor_overhead", size, []),
        ("ggml_set_abort_callback", pointer, [ABORT]),
    ):
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise CaptureError(f"{path}: has no function {name}: {_PIN}") from None
        function.restype, function.argtypes = result, arguments
    return lib


def _aborted(message: bytes) -> None:
    """End the process with one clear line: ggml would end it with a stack trace. What was recorded is on disk."""
    text = message.decode(errors="replace").strip().replace("\n", " ")
    os.write(2, f"firstdiff: llama.cpp gave up: {text}: this file makes it fail, whatever runs it\n".encode())
    os._exit(UNREADABLE)


_ABORTED = ABORT(_aborted)  # C holds the pointer, so the process must hold the object


def end_cleanly() -> None:
    """Have an assertion that fails inside ggml end the process with one clear line and exit code 3."""
    library().ggml_set_abort_callback(_ABORTED)


_PIN = f"this release of llama.cpp is not one that firstdiff knows; {INSTALL}"


@cache
def check_layout() -> None:
    """Compare :class:`Tensor` with tensors that ggml itself makes.

    Raises
    ------
    CaptureError
        Naming the first field that differs, with both values.
    """
    lib = library()
    context = lib.ggml_init(_InitParams(1 << 16, None, False))
    try:
        _check_tensors(lib, context)
    finally:
        lib.ggml_free(context)


def _check_tensors(lib: ctypes.CDLL, context: int) -> None:
    matrix = lib.ggml_new_tensor_2d(context, F16, 3, 5)
    lib.ggml_set_name(matrix, b"firstdiff-layout")
    source = lib.ggml_new_tensor_2d(context, F32, 7, 2)
    normed = lib.ggml_rms_norm(context, source, 0.5)
    view = lib.ggml_view_1d(context, source, 4, 8)
    m, n, v = (Tensor.from_address(t) for t in (matrix, normed, view))
    half = int(np.float32(0.5).view(np.int32))
    fields: tuple[tuple[str, object, object], ...] = (
        ("size", ctypes.sizeof(Tensor) <= lib.ggml_tensor_overhead(), True),
        ("type", m.type, F16),
        ("ne", list(m.ne), [3, 5, 1, 1]),
        ("nb", list(m.nb), [2, 6, 30, 30]),
        ("ne against ggml_nelements", int(np.prod(list(m.ne))), lib.ggml_nelements(matrix)),
        ("name", m.name, lib.ggml_get_name(matrix)),
        ("data", m.data is not None, True),
        ("op", lib.ggml_op_desc(normed), b"RMS_NORM"),
        ("op against an input's", n.op != m.op, True),
        ("op_params", n.op_params[0], half),
        ("src", n.src[0], source),
        ("src of an input", m.src[0], None),
        ("view_src", v.view_src, source),
        ("view_offs", v.view_offs, 8),
    )
    for field, found, expected in fields:
        if found != expected:
            raise CaptureError(
                f"struct ggml_tensor has another layout: {field} reads {found}, expected {expected}: {_PIN}"
            )


def read(address: int) -> npt.NDArray[Any]:
    """Copy a tensor out of its backend, whatever memory it lives in; axes as ggml has them, slowest first.

    Views keep their strides: the returned array can be a strided view of the copied bytes. Quantised tensors are
    dequantised.
    """
    tensor, lib = Tensor.from_address(address), library()
    dtype, kind = DTYPES.get(tensor.type), quants.TYPES.get(tensor.type)
    if dtype is None and (kind is None or kind.name not in CACHE_TYPES.values()):
        raise CaptureError(f"tensor {tensor.name.decode(errors='replace')!r} has ggml type {tensor.type}: not read yet")
    nbytes = lib.ggml_nbytes(address)
    buffer = np.empty(nbytes, np.uint8)
    lib.ggml_backend_tensor_get(address, buffer.ctypes.data, 0, nbytes)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    if dtype is not None:
        return np.ndarray(shape, dtype, buffer, strides=strides)
    assert kind is not None  # one element of `blocks` is a block of values
    blocks = np.ndarray((*shape[:-1], shape[-1] // kind.block), f"V{kind.nbytes}", buffer, strides=strides)
    raw = np.frombuffer(np.ascontiguousarray(blocks).tobytes(), np.uint8)
    return quants.dequantize(raw, kind).reshape(shape)
