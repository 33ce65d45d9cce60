"""To which calls a hypothesis applies: by operation and, where it matters, by the role of the point."""

from __future__ import annotations

from dataclasses import dataclass

from firstdiff.dumps.points import OUTSIDE, POINTS, Kind, Point, kind_of
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.engine import ARCHITECTURES
from firstdiff.model.graph.elementwise import geglu, gelu
from firstdiff.model.operations import Operation, add, embed, layer_norm, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call

MAKES: dict[Operation, tuple[Kind, ...]] = {
    embed: (Kind.EMBEDDING,),
    rms_norm: (Kind.NORM,),
    layer_norm: (Kind.NORM,),
    linear: (Kind.PRODUCT, Kind.LOGITS),
    rope: (Kind.ROTATION,),
    append: (Kind.CACHE,),
    scores: (Kind.SCORES,),
    soft_max: (Kind.PROBABILITIES,),
    attend: (Kind.ATTENTION,),
    add: (Kind.SUM, Kind.EXPERTS),
    swiglu: (Kind.ACTIVATION,),
    geglu: (Kind.ACTIVATION,),
    gelu: (Kind.ACTIVATION,),
}
"""Kinds of the points that an operation makes."""


@dataclass(frozen=True, slots=True)
class Where:
    """The calls that a hypothesis applies to. A silent call is a call like others, which has no role.

    Parameters
    ----------
    ops
        Their operations; None for any.
    only
        Kinds of the points that are meant; None for any, also for no point.
    but
        Kinds of the points that are not meant.
    carries
        Operands of attention that are meant; empty for any result.
    inside
        Whether only calls inside the layers are meant (True), or only those outside (False).
    named
        The one point that is meant; empty for any.
    """

    ops: tuple[Operation, ...] | None
    only: tuple[Kind, ...] | None = None
    but: tuple[Kind, ...] = ()
    carries: str = ""
    inside: bool | None = None
    named: str = ""

    def matches(self, call: Call) -> bool:
        """Whether a call is meant."""
        return (
            (self.ops is None or call.op in self.ops)
            and self._role(call.point)
            and self.inside in (None, call.layer is not None)
        )

    def _role(self, name: str) -> bool:
        kind, held = kind_of(name), POINTS[name].carries if name in POINTS else ""
        return (
            self.named in ("", name)
            and (self.only is None or kind in self.only)
            and kind not in self.but
            and (not self.carries or (held != "" and held in self.carries))
        )

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the points that are meant, in execution order: of the architectures that there are, or of any."""
        meant = [p for p in POINTS.values() if self._made(p) and self._role(p.name)]
        return tuple(p.name for p in meant if _is_described(p)) or tuple(p.name for p in meant)

    def _made(self, point: Point) -> bool:
        if self.inside not in (None, point.inside):
            return False
        return self.ops is None or any(_makes(op, point) for op in self.ops)

    @property
    def outside_layers(self) -> bool:
        """Whether no call inside a layer is meant."""
        return set(self.points) <= set(OUTSIDE)


def _makes(op: Operation, point: Point) -> bool:
    """Whether a point is an operation's result: activations have theirs in their names."""
    return point.kind in MAKES.get(op, ()) and (point.kind is not Kind.ACTIVATION or op.__name__ in point.name)


def _is_described(point: Point) -> bool:
    """Whether an architecture that is written by hand has a point."""
    # No node of llama.cpp is the cache of keys: it is what the scores read.
    return point.kind is Kind.CACHE or any(point.name in of.NODES.values() for of in ARCHITECTURES.values())


NORMS = Where((rms_norm, layer_norm))
RMS_NORMS = Where((rms_norm,))
LAYER_NORMS = Where((layer_norm,))
PRODUCTS = Where((linear,), but=(Kind.LOGITS,))
LOGITS = Where((linear,), only=(Kind.LOGITS,))
EMBEDDING = Where((embed,))
ROTATIONS = Where((rope,))
APPENDS = Where((append,))
SOFTMAX = Where((soft_max,))
SUMS = Where((add,), only=(Kind.SUM,))
"""Sums of a branch and the residual stream: which operand is the stream is known of a point only."""
EXPERTS = Where((add,), only=(Kind.EXPERTS,))
"""The sum of what two experts give; of more experts it is several sums, of which the last one is recorded."""
GATED = Where((swiglu,))
GATES = Where((swiglu, geglu))
GELUS = Where((geglu, gelu))
ANY = Where(None)
