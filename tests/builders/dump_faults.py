"""Faults of a dump: what it holds is not what the engine computed, whatever that was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from builders.relaid import SCORES, relaid, rows_of
from firstdiff.dumps import Site, Trace

Array = npt.NDArray[np.floating]
Spoil = Callable[[Trace], Trace | None]

CACHES = ("k_cache", "v_cache")


def layers_of(trace: Trace) -> int:
    return 1 + max(site.layer or 0 for site in trace.sites())


def _from(trace: Trace, source: Callable[[Site], Site]) -> Trace:
    """The trace with tensors of other sites, where there are such and they fit."""

    def change(site: Site, x: Array) -> Array:
        other = source(site)
        return np.array(trace[other]) if other in trace and trace.shape(other) == x.shape else x

    return relaid(trace, change)


def _stale_layers(trace: Trace, first: int) -> Trace:
    """Every layer's tensors from one on are those of this one."""
    return _from(trace, lambda site: site if site.layer is None else replace(site, layer=min(site.layer, first)))


def _last_layer(trace: Trace) -> Trace:
    """Buffers read after the run: every layer's tensors are those of the last."""
    last = layers_of(trace) - 1
    return _from(trace, lambda site: site if site.layer is None else replace(site, layer=last))


def _stale_step(trace: Trace) -> Trace | None:
    """The last step repeats the step before it; what has another length stays as it is (scores, caches)."""
    last = len(trace.steps) - 1
    if last < 2 or len(trace.steps[last].tokens) != len(trace.steps[last - 1].tokens):
        return None
    return _from(trace, lambda site: replace(site, step=last - 1) if site.step == last else site)


def _steps_exchanged(trace: Trace) -> Trace | None:
    """Two decoded steps' tensors were written under each other's number."""
    last = len(trace.steps) - 1
    if last < 2 or len(trace.steps[last].tokens) != len(trace.steps[last - 1].tokens):
        return None
    other = {last: last - 1, last - 1: last}
    tensors = {replace(s, step=other.get(s.step, s.step)): np.array(trace[s]) for s in trace.sites()}
    ordered = dict(sorted(tensors.items(), key=lambda item: item[0].step))
    return Trace.from_arrays(trace.steps, ordered, engine=trace.engine, model={})


def _branch(trace: Trace) -> Trace:
    """A layer returns (branch, residual), and the branch was dumped as its output."""
    return _from(trace, lambda site: replace(site, point="ffn_out") if site.point == "l_out" else site)


def _branch_only(trace: Trace) -> Trace:
    """The same, where the branch is not dumped under its own name too."""
    return _branch(trace).without(lambda site: site.point == "ffn_out")


def _before_norm(trace: Trace) -> Trace:
    """A norm's input was dumped for its output."""
    return _from(trace, lambda site: replace(site, point="ffn_inp") if site.point == "ffn_norm" else site)


def _after_norm(trace: Trace) -> Trace:
    """A layer's output was dumped after the next layer's norm."""
    last = layers_of(trace) - 1

    def normed(site: Site) -> Site:
        if site.point != "l_out":
            return site
        layer = site.layer or 0
        return Site(site.step, None, "result_norm") if layer == last else Site(site.step, layer + 1, "attn_norm")

    return _from(trace, normed)


def _padded_vocabulary(trace: Trace) -> Trace:
    """Logits wider than the vocabulary, zeros behind the real ones."""
    return relaid(trace, lambda s, x: np.pad(x, ((0, 0), (0, 64))) if s.point == "result_output" else x)


def _rows_missing(trace: Trace) -> Trace | None:
    """The last rows of a step of several tokens were not written."""
    if len(trace.steps[0].tokens) < 7:
        return None

    def change(site: Site, x: Array) -> Array:
        return x if site.step or site.point in (*SCORES, *CACHES) else x[:-2]

    return relaid(trace, change)


def _left_over_heads(trace: Trace) -> Trace | None:
    """The second half of the heads of one layer's attention are those of the layer before."""
    layer = layers_of(trace) - 2
    if layer < 1:
        return None

    def change(site: Site, x: Array) -> Array:
        if site.point != "kqv_out" or site.layer != layer:
            return x
        half = x.shape[-1] // 2
        return np.concatenate([x[:, :half], trace[replace(site, layer=layer - 1)][:, half:]], -1)

    return relaid(trace, change)


def _rows_of_other_token(trace: Trace) -> Trace | None:
    """Rows of the tokens in another order: those of a batch that was sorted, and not brought back."""
    if len(trace.steps[0].tokens) < 7:
        return None

    def change(site: Site, x: Array) -> Array:
        return x if site.step or site.layer is None or site.layer % 2 == 0 else rows_of(site, lambda r: r[::-1], x)

    return relaid(trace, change)


DUMP_FAULTS: dict[str, Spoil] = {
    "stale layers: all are the first": lambda trace: _stale_layers(trace, 0),
    "stale layers: from the second on": lambda trace: _stale_layers(trace, 1),
    "stale layers: all are the last": _last_layer,
    "stale step": _stale_step,
    "steps exchanged": _steps_exchanged,
    "branch as layer output": _branch,
    "branch as layer output, not beside it": _branch_only,
    "norm's input as its output": _before_norm,
    "layer output after the next norm": _after_norm,
    "padded vocabulary": _padded_vocabulary,
    "rows missing": _rows_missing,
    "heads left over": _left_over_heads,
    "rows in another order": _rows_of_other_token,
}
"""What each does to a trace of plain tensors; None where that trace cannot have it."""

PUT_BACK = ("steps exchanged",)
"""Those whose tensors are all there under another number, and are judged where they belong."""

NOTED = {"padded vocabulary": "columns", "rows missing": "rows"}
"""Those of which a note tells how the dump is read, with a word of it: nothing is wrong with what it holds."""


def untouched(kind: str, trace: Trace) -> set[Site]:
    """The sites of a trace that a fault of the dump leaves alone, whatever numbers they hold."""
    rng = np.random.default_rng(0)
    tagged = relaid(trace, lambda _, x: rng.standard_normal(x.shape))
    spoilt = DUMP_FAULTS[kind](tagged)
    return set() if spoilt is None else {s for s in spoilt.sites() if np.array_equal(spoilt[s], tagged[s])}
