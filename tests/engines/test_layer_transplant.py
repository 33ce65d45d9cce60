"""A fact: a layer in a file of its own, fed what the layer before gave, computes in llama.cpp what it did before.

So llama.cpp can judge each layer of any model by itself, on a machine that holds that layer alone.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from firstdiff.dumps import Site, Trace
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import Context, LlamaCpp
from firstdiff.engines.llamacpp_capture import Hook
from firstdiff.model.engine import open_model
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record

LAYER = 4
TOKENS = tuple(range(300, 312))


@pytest.fixture(scope="module")
def whole(smollm2: Path, llama: None, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The whole model's run: a prompt and two steps."""
    out = tmp_path_factory.mktemp("whole") / "trace"
    return record(smollm2, Input(tokens=TOKENS), out, engine="llama.cpp:cpu", decode=2, threads=1)


def transplanted(model: Path, out: Path) -> Path:
    """Write a file of which the first and only layer is one of the model's, byte by byte."""
    read, written = gguf.GGUFReader(model), gguf.GGUFWriter(out, arch="llama")
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, value = field.types[0], 1 if field.name == "llama.block_count" else field.contents()
        written.add_key_value(field.name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in read.tensors:
        name = (
            tensor.name.replace(f"blk.{LAYER}.", "blk.0.") if tensor.name.startswith(f"blk.{LAYER}.") else tensor.name
        )
        if name == tensor.name and name.startswith("blk."):
            continue
        written.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()
    return out


def decode(context: Context, x: npt.NDArray[np.float32], position: int) -> None:
    """Run a step of which the embedding is given: x [token, n_embd]."""
    llama = ggml.bindings()
    batch = llama.llama_batch_init(*x.shape, 1)
    batch.n_tokens = len(x)
    ctypes.memmove(batch.embd, np.ascontiguousarray(x).ctypes.data, x.nbytes)
    for i in range(len(x)):
        batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position + i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama.llama_decode(context._pointer, batch) == 0
    llama.llama_batch_free(batch)


def test_a_layer_in_a_file_of_its_own_computes_the_same_to_the_bit(smollm2: Path, whole: Trace, tmp_path: Path) -> None:
    hook, position, compared = Hook(open_model(smollm2).nodes), 0, 0
    path = transplanted(smollm2, tmp_path / "layer.gguf")
    with LlamaCpp(path) as engine, engine.context(len(TOKENS) + 2, len(TOKENS), hook) as context:
        for step in range(3):
            x: npt.NDArray[Any] = np.array(whole[Site(step, LAYER - 1, "l_out")], np.float32)
            hook.begin(len(x), position + len(x))
            decode(context, x, position)
            position += len(x)
            for key, found in hook.finish().items():
                point, _, layer = key.partition("-")
                if layer:
                    wanted = whole[Site(step, LAYER, point)]
                    assert np.array_equal(found.reshape(wanted.shape), wanted), f"{point} at step {step}"
                    compared += 1
    assert compared == 3 * 19
