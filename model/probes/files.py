"""The file of a probe model: some layers of a model, a few embedding rows, and an output matrix that changes nothing.

Its logits are what leaves the last layer, divided by its root mean square: the last norm's weight is ones, and the
output matrix is the identity, both in float32. A layer that is to pass on what it is given has zeros for weights: its
branches give 0, and the residual stream goes through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.model.gguf import GGUF
from firstdiff.model.gguf_writing import Encoded, Tensor, write_gguf
from firstdiff.model.metadata import Metadata
from firstdiff.model.probes.most_probable import Shown
from firstdiff.model.quants import dequantize
from firstdiff.model.synthetic import LEAST_VOCABULARY, tokenizer

Floats = npt.NDArray[np.float32]

FIRST_ID = 3
"""The id of the first row: those before it are control tokens, which some engines treat in a way of their own."""

MULTIPLE = 64
"""The vocabulary's size is a multiple of it, so that no kernel meets a tail that is none of the model's."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")

EMBEDDING, NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"

ZEROED = ("output_norm.bias",)
"""Tensors behind the layers that must be there, and shall do nothing."""

BIAS = "output.bias"
"""The output matrix's bias, which some architectures must have."""

LEFT_OUT = (BIAS, "output_norm.scale", "output.scale", "output.input_scale")
"""Those that need not be there."""

NO_CAP = 1e6
"""A soft cap of logits that changes none: engines divide by it, so that it cannot be 0."""

_DROPPED = ("general.alignment", "general.file_type", "split.")


@dataclass(frozen=True, slots=True, eq=False)
class ProbeModel:
    """A model to be written to a file, and to be run on tokens.

    Parameters
    ----------
    metadata, tensors
        What the file holds.
    tokens
        The prompt: ids of the rows.
    shown
        What its most probable tokens show; None for a model of which all logits are wanted.
    """

    metadata: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    tokens: tuple[int, ...]
    shown: Shown | None = None

    def write(self, path: Path) -> Path:
        """Write the file.

        Raises
        ------
        OSError
            Where that cannot be.
        """
        return write_gguf(path, self.metadata, self.tensors)

    def changed(self, tensors: Mapping[str, Tensor]) -> ProbeModel:
        """The same with other tensors in the place of some."""
        return replace(self, tensors={**self.tensors, **tensors})


def probe_model(
    gguf: GGUF,
    layers: Sequence[int],
    rows: Sequence[int] | Floats,
    *,
    passing: frozenset[int] = frozenset(),
    tied: bool = False,
) -> ProbeModel:
    """Make a probe model of some layers of a model.

    Parameters
    ----------
    gguf
        The model.
    layers
        Its layers that are kept, in order. They get the numbers from 0 on.
    rows
        What the prompt's tokens are embedded as: ids of the model's own tokens, whose rows are copied byte by byte, or
        float32 [token, n_embd].
    passing
        Those of the layers that pass on what they are given.
    tied
        Whether there is no output matrix, because the embedding is always taken for it. It then begins with the
        identity, in float32, and the rows of the prompt are behind it.
    """
    embedding = gguf.tensors[EMBEDDING]
    n_embd = embedding.shape[-1]
    ids = [] if isinstance(rows, np.ndarray) else list(dict.fromkeys(rows))
    count, first = len(rows) if isinstance(rows, np.ndarray) else len(ids), n_embd if tied else FIRST_ID
    n_vocab = -(-max(LEAST_VOCABULARY, n_embd, first + count) // MULTIPLE) * MULTIPLE
    tensors = dict(_kept(gguf, layers, passing))
    if isinstance(rows, np.ndarray):
        tensors[EMBEDDING] = _vectors(rows, n_vocab, first)
        tokens = tuple(range(first, first + count))
    else:
        tensors[EMBEDDING] = _copied(gguf, ids, n_vocab, first)
        tokens = tuple(first + ids.index(token) for token in rows)
    tensors[NORM] = Tensor.of(np.ones(n_embd, np.float32))
    if tied:
        tensors[EMBEDDING] = _with_identity(tensors[EMBEDDING])
    else:
        tensors[HEAD] = Tensor.of(np.eye(n_vocab, n_embd, dtype=np.float32))
    if BIAS in gguf.tensors:
        tensors[BIAS] = Tensor.of(np.zeros(n_vocab, np.float32))
    return ProbeModel(_metadata(gguf, layers, n_vocab), tensors, tokens)


def of_layer(name: str, layer: int) -> str:
    """The name of a tensor in a layer: ``blk.3.attn_q.weight``."""
    return f"blk.{layer}.{name}"


def zeros_like(tensor: Tensor) -> Tensor:
    """A tensor of zeros, of the same type and shape."""
    return replace(tensor, data=None)


def _kept(gguf: GGUF, layers: Sequence[int], passing: frozenset[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file in its order: those outside the layers, and those of the layers by their new numbers."""
    numbers = {layer: number for number, layer in enumerate(layers)}
    for name, info in gguf.tensors.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            if name not in (EMBEDDING, NORM, HEAD, *LEFT_OUT):
                yield name, Tensor(info.type, info.shape, None if name in ZEROED else gguf.raw(name))
        elif (layer := int(found[1])) in numbers:
            data = None if layer in passing else gguf.raw(name)
            yield of_layer(found[2], numbers[layer]), Tensor(info.type, info.shape, data)


def _copied(gguf: GGUF, ids: Sequence[int], n_vocab: int, first: int) -> Tensor:
    """Rows of the model's own embedding: those of the prompt, and others around them."""
    info = gguf.tensors[EMBEDDING]
    size = info.shape[-1] // info.type.block * info.type.nbytes
    rows = gguf.raw(EMBEDDING).reshape(-1, size)
    data = rows[np.arange(n_vocab) % len(rows)]  # who reads another row than it was told has numbers of another token
    data[first : first + len(ids)] = rows[list(ids)]
    return Tensor(info.type, (n_vocab, info.shape[-1]), data.reshape(-1))


def _vectors(rows: Floats, n_vocab: int, first: int) -> Tensor:
    whole = np.random.default_rng(0).standard_normal((n_vocab, rows.shape[-1]), np.float32)
    whole[first : first + len(rows)] = rows
    return Tensor.of(whole)


def _with_identity(embedding: Tensor) -> Tensor:
    """An embedding whose first rows are the identity, in float32."""
    assert embedding.data is not None, "an embedding has rows"
    rows = dequantize(embedding.data, embedding.kind).reshape(embedding.shape).astype(np.float32)
    n_embd = embedding.shape[1]
    rows[:n_embd] = np.eye(n_embd, dtype=np.float32)
    return Tensor.of(rows)


def _metadata(gguf: GGUF, layers: Sequence[int], n_vocab: int) -> dict[str, object]:
    """The model's own values, but for its vocabulary, which is ours, and what is told layer by layer."""
    of, name = gguf.metadata, str(gguf.metadata["general.architecture"])
    assert isinstance(of, Metadata)
    count = int(of[f"{name}.block_count"])
    made: dict[str, object] = {}
    for key in of:
        if key.startswith(("tokenizer.", *_DROPPED)):
            continue
        value = of[key]
        by_layer = key.startswith(f"{name}.") and not key.endswith("dimension_sections")
        if by_layer and isinstance(value, np.ndarray) and len(value) == count:
            made[key] = value[list(layers)]
        else:
            made[key] = Encoded(of.encoded(key))
    made[f"{name}.block_count"] = np.uint32(len(layers))
    made[f"{name}.vocab_size"] = np.uint32(n_vocab)
    if of.get(f"{name}.final_logit_softcapping"):
        made[f"{name}.final_logit_softcapping"] = NO_CAP
    return made | tokenizer(n_vocab) | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
