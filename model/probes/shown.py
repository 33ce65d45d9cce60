"""Probe models for an engine that gives the log probabilities of its most probable tokens only.

Each coordinate of the stream that is shown has two rows of the output matrix, a one and a minus one, and all other rows
are zeros. One of the two logits is above 0: the most probable tokens are one of each pair, and then one of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.model.gguf import GGUF
from firstdiff.model.gguf_writing import Encoded, Tensor
from firstdiff.model.metadata import Metadata
from firstdiff.model.probes.files import EMBEDDING, HEAD, LEFT_OUT, MULTIPLE, NORM, ZEROED, ProbeModel, probe_model
from firstdiff.model.probes.most_probable import FIRST, Shown, piece
from firstdiff.model.synthetic import LEAST_VOCABULARY, tokenizer

Ids = npt.NDArray[np.intp]

WIDEST = 80.0
"""How far logits may lie apart, so that no probability is 0 in float32, whose least is exp(-87)."""


def showing(gguf: GGUF, probe: ProbeModel, coordinates: Sequence[int] | Ids) -> ProbeModel:
    """The same model with a vocabulary of ours, and some coordinates of the stream as its logits."""
    n_embd = probe.tensors[HEAD].shape[1]
    scale = 2.0 ** math.floor(math.log2(WIDEST / math.sqrt(n_embd)))  # no coordinate is more than this root
    shown = Shown(tuple(map(int, coordinates)), scale)
    made = _with_vocabulary(gguf, probe, shown)
    head = np.zeros((made.tensors[EMBEDDING].shape[0], n_embd), np.float32)
    places = FIRST + 2 * np.arange(len(coordinates))
    head[places, coordinates] = scale
    head[places + 1, coordinates] = -scale
    return made.changed({HEAD: Tensor.of(head)})


def own_rows(gguf: GGUF, tokens: Sequence[int], ids: Sequence[int] | Ids) -> ProbeModel | None:
    """The whole model with its own last norm, and with some rows of its own output matrix, byte by byte.

    `ids` are those of its tokens whose logits are above 0. None where there are none, or where more comes behind the
    output matrix than is known here.
    """
    tensors = gguf.tensors
    if not len(ids) or any(name in tensors for name in LEFT_OUT):
        return None
    name = str(gguf.metadata["general.architecture"])
    of = gguf.metadata
    assert isinstance(of, Metadata)
    whole = probe_model(gguf, range(int(of[f"{name}.block_count"])), tokens)
    made = _with_vocabulary(gguf, whole, Shown(tuple(map(int, ids))))
    head = HEAD if HEAD in tensors else EMBEDDING
    rows = gguf.raw(head).reshape(tensors[head].shape[0], -1)
    data = np.zeros((made.tensors[EMBEDDING].shape[0], rows.shape[1]), np.uint8)
    data[FIRST : FIRST + len(ids)] = rows[np.asarray(ids)]
    own = {
        key: Tensor(tensors[key].type, tensors[key].shape, gguf.raw(key)) for key in (NORM, *ZEROED) if key in tensors
    }
    chosen = Tensor(tensors[head].type, (len(data), tensors[head].shape[1]), data.reshape(-1))
    keys = {key: Encoded(of.encoded(key)) for key in _behind(name) if key in of}
    return replace(made, tensors={**made.tensors, **own, HEAD: chosen}, metadata={**made.metadata, **keys})


def _behind(architecture: str) -> tuple[str, str]:
    """What is done to logits behind the output matrix."""
    return f"{architecture}.final_logit_softcapping", f"{architecture}.logit_scale"


def _with_vocabulary(gguf: GGUF, probe: ProbeModel, shown: Shown) -> ProbeModel:
    """The model with tokens of ours, whose texts are single characters: its prompt's, and those whose rows show."""
    old = probe.tensors[EMBEDDING]
    ids = sorted(set(probe.tokens))
    size = -(-max(LEAST_VOCABULARY, shown.last + 1, FIRST + len(ids)) // MULTIPLE) * MULTIPLE
    assert old.data is not None, "a probe model has an embedding"
    rows = old.data.reshape(old.shape[0], -1)
    data = rows[np.arange(size) % len(rows)]
    data[FIRST : FIRST + len(ids)] = rows[ids]
    name = str(gguf.metadata["general.architecture"])
    scale = f"{name}.logit_scale"
    metadata = {
        **probe.metadata,
        **tokenizer(size),
        f"{name}.vocab_size": np.uint32(size),
        "tokenizer.ggml.tokens": [*tokenizer(size)["tokenizer.ggml.tokens"][:FIRST], *map(piece, range(FIRST, size))],
        "tokenizer.ggml.add_space_prefix": False,
        **({scale: 1.0} if scale in probe.metadata else {}),
    }
    embedding = Tensor(old.kind, (size, old.shape[1]), data.reshape(-1))
    tokens = tuple(FIRST + ids.index(token) for token in probe.tokens)
    return ProbeModel(metadata, {**probe.tensors, EMBEDDING: embedding}, tokens, shown)
