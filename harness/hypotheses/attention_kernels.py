"""Kernels of attention gone wrong: right for one number of tokens, one head or one key, and wrong for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, telling, with_op
from firstdiff.hypotheses.where import SOFTMAX, Where
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import attend, scores, visible
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

FEW = 8
"""Tokens up to which engines take a kernel for vectors instead of one for matrices (MMVQ_MAX_BATCH_SIZE of ggml)."""

# The online softmax (Milakov & Gimelshein 2018)


def _unscaled(kq: Array, *, scale: float, block: int, offset: int = 0, arithmetic: Arithmetic) -> Array:
    """A softmax over blocks of keys, of which none is scaled to a maximum that a later one raises."""
    z = kq.astype(np.float64) * scale  # [H, T, S]
    z[:, ~visible(kq.shape[-2], kq.shape[-1], offset)] = -np.inf
    starts = np.arange(0, kq.shape[-1], block)
    top = np.maximum.accumulate(np.maximum.reduceat(z, starts, axis=-1), axis=-1)  # [H, T, blocks]
    with np.errstate(all="ignore"):
        p = np.exp(z - np.repeat(top, block, axis=-1)[..., : kq.shape[-1]])
        p[~np.isfinite(z)] = 0.0  # a key that is hidden, and so may be all before it
        return arithmetic.widen(np.asarray(p / p.sum(-1, keepdims=True)))


def _is_plain(call: Call) -> bool:
    """Whether a softmax has no window, no sinks and no soft cap."""
    return all(call.argument(name) is None for name in ("mask", "sinks", "cap"))


def _rescaled_never(call: Call, _scene: Scene, values: Values) -> Call | None:
    if not _is_plain(call):
        return None
    return with_op(call, _unscaled, block=values["keys"]) if values["keys"] < call.argument("kq").shape[-1] else None


def _told_blocks(values: Values) -> str:
    keys = values["keys"]
    of = "key by key" if keys == 1 else f"over {keys} keys at a time"
    return f"sums and output not rescaled where a later key raises the maximum, {of}"


# Heads


LEFT_OVER = ("what the layer before had there", "what the step before had there")
"""What a buffer holds that several layers, or several steps, write to."""


def _stopped(call: Call, scene: Scene, values: Values) -> Call | None:
    heads, first = len(call.argument("p")), values["heads"]
    if not 0 < first < heads:
        return None
    kept = values["kept"]
    rest = None if kept == "zeros" else _left_over(call, scene, kept)
    if kept != "zeros" and (rest is None or not telling(_by_head(rest, heads)[:, first:])):
        return None

    def ended(p: Array, read: Array, *, group: int, arithmetic: Arithmetic) -> Array:
        out = attend(p, read, group=group, arithmetic=arithmetic)
        _by_head(out, heads)[:, first:] = 0.0 if rest is None else _by_head(rest, heads)[: len(out), first:]
        return out

    return with_op(call, Derived(attend, ended))


def _by_head(out: Array, heads: int) -> Array:
    return out.reshape(len(out), heads, -1)


def _left_over(call: Call, scene: Scene, kept: str) -> Array | None:
    """What the buffer held before; the last layer of a step is before the first of the next."""
    if call.layer is None or not call.point:
        return None
    step, layer = (call.step - 1, call.layer) if kept == LEFT_OVER[1] else (call.step, call.layer - 1)
    if layer < 0:
        step, layer = step - 1, scene.model.hp.n_layer - 1
    if step < 0:
        return None
    other = scene.lookup(Site(step, layer, call.point))
    tokens = call.argument("p").shape[1]
    return None if other is None or len(other) < tokens else other


def _ends(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, Any]]:
    heads, kv = len(call.argument("p")), call.argument("values").shape[1]
    ends = {heads // kv: "n_head / n_head_kv", kv: "n_head_kv"}
    if heads // kv == kv:
        ends = {kv: "n_head_kv, or n_head / n_head_kv"}
    if observed is not None and (seen := _first_wrong(call, scene, observed, heads)) not in ends:
        ends[seen] = f"{seen}"
    for first, end in ends.items():
        for kept in (*LEFT_OVER, "zeros"):
            yield {"heads": first, "of": heads, "end": end, "kept": kept}


def _first_wrong(call: Call, scene: Scene, observed: Array, heads: int) -> int:
    """The first head that is as wrong as others are."""
    delta = _by_head(np.nan_to_num(observed - call.compute(scene.arithmetic)), heads).astype(np.float64)
    errors = np.square(delta).sum((0, 2))
    return int((errors > errors.max() / 100).argmax())  # heads' outputs are of one size within a factor of ten


def _told_heads(values: Values) -> str:
    first, last = values["heads"], values["of"] - 1
    rest = f"heads {first} to {last} hold" if first < last else f"head {first} holds"
    return f"the loop over heads ends at {values['end']}: {rest} {values['kept']}"


# Strides


def _strided(call: Call, _scene: Scene, values: Values) -> Call | None:
    keys, threads, vector = call.argument("keys"), values["threads"], values["vector"]
    dims = keys.shape[-1]
    if len(call.argument("q")) > FEW or dims % (threads * vector):
        return None
    return call.with_arguments(keys=np.ascontiguousarray(keys[..., _read(dims, threads, vector)]))


def _read(dims: int, threads: int, vector: int) -> npt.NDArray[np.int64]:
    """Which element stands where thread t shall have the j-th of its vector, t * vector + j: j * threads + t."""
    return np.arange(dims).reshape(-1, vector, threads).transpose(0, 2, 1).ravel()


def _strides(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    for vector in (4, 8, 2, 16, 32):
        for threads in (8, 16, 32, 4, 2):
            if call.argument("keys").shape[-1] % (threads * vector) == 0:
                yield {"threads": threads, "vector": vector}


TABLE = (
    Hypothesis(
        "online-softmax-rescale",
        SOFTMAX,
        "sums and output not rescaled where a later key raises the maximum",
        "take exp(old maximum - new maximum) before the old one is overwritten, and multiply sum and output by it",
        _rescaled_never,
        lambda _call, _scene, _observed: ({"keys": keys} for keys in (1, 32, 64, 16, 128, 256)),
        _told_blocks,
        stage=6,
        source="paiml/aprender#2753",
    ),
    Hypothesis(
        "heads-to-group",
        Where((attend,)),
        "the loop over heads ends too early: the other heads hold what was there",
        "let the loop over heads end at n_head, in the kernel of every number of tokens",
        _stopped,
        _ends,
        _told_heads,
        stage=7,
        source="1bit-MONSTER/1bit-MONSTER#953",
    ),
    Hypothesis(
        "decode-stride",
        Where((scores,)),
        "the dimensions of K read in another order within each head, by the kernel of few tokens",
        "let a thread's offset count the vectors that threads load, for K as for Q",
        _strided,
        _strides,
        "K read with a stride of {threads} threads, where each loads a vector of {vector}",
        source="llama-cpp-turboquant#3",
    ),
)
