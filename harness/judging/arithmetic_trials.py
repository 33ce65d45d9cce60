"""Trying arithmetics: what each leaves of a candidate's results, on the candidate's own inputs, at every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.judging import floors
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import measure
from firstdiff.judging.needed import Judging
from firstdiff.judging.systematic import rest
from firstdiff.model.arithmetic import (
    BF16,
    BF16_OPERANDS,
    F16,
    F16_OPERANDS,
    F32,
    GGML,
    GGML_CPU,
    TF32,
    TF32_CUT,
    Arithmetic,
    Array,
    ggml_cpu,
)
from firstdiff.model.operations import (
    MOVES,
    Operation,
    add,
    append,
    attend,
    linear,
    rms_norm,
    rope,
    scores,
    soft_max,
    swiglu,
    visible,
)
from firstdiff.model.probe import Call
from firstdiff.model.rounding import BLOCK, QUANTISED, round_to
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

ROWS = 96
"""Rows of a weight that are tried: an error is told from another one by far fewer results than a product has."""

QUERIES = 64
"""Queries that are tried: as many as send ggml's flash attention onto its tiles."""

MOSTLY = 0.99
"""The share of numbers that are of the type they were stored in; the others are infinite, or scaled since."""


NEAR = 4.0
"""What a fault leaves of an error is asked of options within this factor of the best."""

GROUPS: dict[Operation, str] = {
    linear: "linear", rms_norm: "norm", scores: "attention", attend: "attention",
    rope: "results", soft_max: "results", swiglu: "results", add: "results",
}  # fmt: skip
"""The group that each operation is judged with; of the cache, see :func:`group_of`."""

CACHES = ("f16", "bf16", "q8_0", "q4_0", "q8_0-plain", "q4_0-plain")
F16_SUMS = replace(F32, name="f16-sums", products="f16-sums")
_IN_TURN = {f"{a.name}": a for kind in CACHES[:4] for a in (ggml_cpu(flash=1, keys=kind, values=kind),)}
_PLAIN = {a.name: a for kind in CACHES[1:] for a in (ggml_cpu(keys=kind, values=kind),)}
_STORED = {"bf16": BF16, "f16": F16}

_CACHED = {"f32": F32, **{kind: replace(F32, name=kind, keys=kind, values=kind) for kind in CACHES}}

OPTIONS: dict[str, Mapping[str, Arithmetic]] = {
    "linear": {
        "f32": F32, GGML: GGML_CPU, **_STORED, "tf32": TF32, "tf32-truncated": TF32_CUT, "f16-operands": F16_OPERANDS,
        "bf16-operands": BF16_OPERANDS, "f16-sums": F16_SUMS,
    },
    "norm": {"f32": F32, **_STORED},
    "attention": {
        "f32": F32, GGML: GGML_CPU, **_STORED, "tf32": TF32, "tf32-truncated": TF32_CUT, "f16-operands": F16_OPERANDS,
        "bf16-operands": BF16_OPERANDS, **_PLAIN, **_IN_TURN,
    },
    "keys": _CACHED,
    "values": _CACHED,
    "results": {"f32": F32, **_STORED, GGML: GGML_CPU},
}  # fmt: skip
"""What is tried for each group, by name; of several that say the same, the first is taken."""


def group_of(call: Call) -> str | None:
    """The group of a call; None for lookups of the embedding, which round nothing."""
    if call.op is append:
        return "values" if call.attributes.get("values") else "keys"
    return GROUPS.get(call.op)


@dataclass(frozen=True, slots=True)
class Trial:
    """One site under every option of its group.

    Parameters
    ----------
    site, part
        Which site; its point, with the type of its weight.
    errors, floors
        By option: the largest relative error of a token, and what a correct engine of that arithmetic stays below.
    rests
        By option: what a fault leaves of the error, see :func:`rest`; of options that come near to the best one.
    """

    site: Site
    part: str
    errors: dict[str, float]
    floors: dict[str, float]
    rests: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Own(Value):
    """A value that the candidate recorded.

    `lost` is the relative error that storing it may have caused; `scaled` is a query as the candidate scales it.
    """

    lost: float
    scaled: Array | None = None


@dataclass
class Trials(Judging):
    """Tries every option at each site of the first step, and of the cache at every site.

    What goes on is the candidate's own. Sites whose inputs were not recorded are not tried.
    """

    trace: Trace
    alignment: Alignment
    found: dict[str, list[Trial]] = field(default_factory=dict, init=False)
    _pending: dict[str, Call] = field(default_factory=dict, init=False)

    def silent(self, call: Call) -> Value:
        """Compute what nobody records. Moved numbers of the candidate's are still its own."""
        computed = call.compute(self.arithmetic)
        own = [s for s in call.sources if isinstance(s, Own)]
        if call.op in MOVES and own and all(isinstance(s, Own) for s in call.sources if s is not None):
            return Own(computed, max(s.lost for s in own))
        return Value(computed)

    def value(self, call: Call) -> Value:
        """Try what can be tried of this call, and return the candidate's value, or a computed one."""
        site = Site(call.step, call.layer, call.point)
        whole = self._recorded(site, shape_of(call))
        inputs = [s for s in call.sources if s is not None]
        own = all(isinstance(s, Own) for s in inputs) and bool(inputs)
        if whole is None:
            with np.errstate(all="ignore"):
                computed = call.compute(self.arithmetic)
            self._pending[call.point] = call if own or call.op is soft_max else replace(call, inputs=())
            recorded, _ = self.alignment.read(self.trace, site, computed)  # the last token's row, say
            return Value(computed if recorded is None else recorded)
        lost = max((s.lost for s in inputs if isinstance(s, Own)), default=0.0)
        if group_of(call) is not None and (call.step == 0 or call.op is append):
            calls = (call,) if own else self._flash(call)
            if calls:
                self._try(site, *self._as_scaled(calls, whole), lost)
        return self._own(call, site, whole)

    def known(self, call: Call) -> Value | None:
        """Return the candidate's value, where all of it was recorded."""
        site = Site(call.step, call.layer, call.point)
        whole = self._recorded(site, shape_of(call))
        return None if whole is None else self._own(call, site, whole)

    def _own(self, call: Call, site: Site, whole: Array) -> Own:
        dtype = self.alignment.dtype(self.trace, site)
        scaled = self.alignment.scaled_query(self.trace, site, whole)
        return Own(whole, floors.stored(F32, call, dtype, whole), scaled)

    def _as_scaled(self, calls: tuple[Call, ...], whole: Array) -> tuple[tuple[Call, ...], Array]:
        """Scores, and the call, as the candidate computes them: of a scaled Q, which is what it rounds."""
        call = calls[-1]
        source = call.sources[0] if call.op is scores else None
        query = source.scaled if isinstance(source, Own) else None
        if query is None:
            return calls, whole
        scaled = np.asarray(whole * whole.dtype.type(query.shape[-1] ** -0.5))
        return (replace(call, inputs=(query, *call.inputs[1:])),), scaled

    def _recorded(self, site: Site, shape: tuple[int, ...] | None) -> Array | None:
        """The candidate's value, where all of it was recorded."""
        if shape is None:
            return None
        like = np.broadcast_to(np.float32(np.nan), shape)
        recorded, _ = self.alignment.read(self.trace, site, like)
        held = Site(site.step, site.layer, self._source(site.point))
        if recorded is None or self.trace[held].size < recorded.size:
            return None
        return recorded

    def _source(self, point: str) -> str:
        layout = self.alignment.layouts.get(point)
        return point if layout is None or layout.source is None else layout.source

    def _flash(self, call: Call) -> tuple[Call, ...]:
        """The calls that flash attention makes one of, where it is judged as one; none where it is not."""
        pending, self._pending = self._pending, {}
        kq, p = pending.get("kq"), pending.get("kq_soft_max")
        if call.op is not attend or kq is None or p is None or not kq.inputs or not isinstance(call.sources[1], Own):
            return ()
        if {(c.step, c.layer) for c in (kq, p)} != {(call.step, call.layer)}:
            return ()
        return kq, p, call

    def _try(self, site: Site, calls: tuple[Call, ...], whole: Array, lost: float) -> None:
        group = group_of(calls[-1])
        assert group is not None
        own = floors.stored(F32, calls[-1], self.alignment.dtype(self.trace, site), whole)
        calls, sample, seen = _sampled(calls, whole)
        axes = axes_of(site.point, sample.ndim)
        computed, errors, limits = {}, {}, {}
        for name, arithmetic in _possible(group, calls, flash=len(calls) > 1):
            if (kind := arithmetic.weights_and_results) is not None and not _stored(sample, kind):
                continue
            with np.errstate(all="ignore"):
                computed[name] = _chained(calls, arithmetic)
                errors[name] = measure(sample, computed[name], axes=axes, floor=np.inf, seen=seen).error
            limits[name] = floors.floor(arithmetic, calls, own=own, inputs=lost)
        near = [n for n in errors if limits[n] < errors[n] <= NEAR * min(errors.values())]
        rests = {name: rest(sample, computed[name], calls[-1]) for name in near}
        weight = calls[-1].inputs[1] if group == "linear" else None
        part = site.point if weight is None else f"{site.point} {weight.kind.name}"
        self.found.setdefault(group, []).append(Trial(site, part, errors, limits, rests))


def _possible(group: str, calls: tuple[Call, ...], *, flash: bool) -> Iterator[tuple[str, Arithmetic]]:
    """The options that can be tried: heads that are no whole blocks were not quantised."""
    dim = calls[0].inputs[1].shape[-1] if group in ("keys", "values", "attention") else BLOCK
    for name, arithmetic in OPTIONS[group].items():
        quantised = not {arithmetic.keys, arithmetic.values}.isdisjoint(QUANTISED)
        if (flash or not arithmetic.flash) and not (quantised and dim % BLOCK):
            yield name, arithmetic


def _stored(x: Array, kind: str) -> bool:
    """Whether numbers are of a type: what an engine stores in it is."""
    return bool(np.mean(round_to(x, kind) == x) > MOSTLY)


def _sampled(calls: tuple[Call, ...], whole: Array) -> tuple[tuple[Call, ...], Array, Any]:
    """The calls cut down to some rows of a weight, or some queries, and the candidate's values of these."""
    call = calls[0]
    if call.op is linear:
        weight, rows = call.inputs[1], min(ROWS, call.inputs[1].shape[0])
        part = replace(
            weight,
            shape=(rows, weight.shape[-1]),
            raw=weight.raw_rows(0, rows),
            dense=None if weight.dense is None else weight.dense[:rows],
        )
        bias = None if len(call.inputs) < 3 or call.inputs[2] is None else call.inputs[2]  # noqa: PLR2004
        if bias is not None:
            values = bias.values()[:rows]
            bias = replace(bias, shape=(rows,), dense=values)
        cut = replace(call, inputs=(call.inputs[0], part, bias), attributes={})
        return (cut,), np.ascontiguousarray(whole.reshape(len(whole), -1)[:, :rows]), None
    if call.op is scores:
        q = call.inputs[0][-QUERIES:]
        cut = replace(call, inputs=(q, call.inputs[1]))
        if len(calls) > 1:
            return (cut, *calls[1:]), whole[-QUERIES:], None
        return (cut,), whole[:, -QUERIES:], visible(len(q), len(call.inputs[1]))
    if call.op is attend:
        return (replace(call, inputs=(call.inputs[0][:, -QUERIES:], call.inputs[1])),), whole[-QUERIES:], None
    return calls, whole, None


def _chained(calls: tuple[Call, ...], arithmetic: Arithmetic) -> Array:
    """The result of calls that feed each other: one, or attention's three."""
    x = calls[0].compute(arithmetic)
    for call in calls[1:]:
        x = replace(call, inputs=(x, *call.inputs[1:])).compute(arithmetic)
    return x
