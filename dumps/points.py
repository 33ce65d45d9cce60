"""The one table of points: what the house knows of each recorded intermediate.

Whatever needs to know something of a point reads it here: axes, kind, place, heading, names elsewhere. An architecture
that computes more adds its points to the table, under llama.cpp's names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.site import Site
from firstdiff.dumps.spelling import layered

AXES = ("token", "head", "head_dim", "feature", "query", "key", "expert", "channel")
"""The names of axes. Scores have their tokens along ``query``; an ``expert`` is one of all, or one of those chosen."""

_ROWS = ("token", "feature")
_HEADS = ("token", "head", "head_dim")
_SCORES = ("head", "query", "key")
_EACH = ("token", "expert")
_EXPERTS = ("token", "expert", "feature")


class Kind(StrEnum):
    """What kind of operation a point is the result of."""

    EMBEDDING = "embedding"  # rows of the embedding, looked up
    NORM = "norm"
    PRODUCT = "product"  # of a weight, with its bias
    ROTATION = "rotation"
    CACHE = "cache"  # what later steps read back: tokens of all steps so far
    SCORES = "scores"
    PROBABILITIES = "probabilities"
    ATTENTION = "attention"  # values weighted by probabilities, heads merged
    ACTIVATION = "activation"  # element by element: a gate and what it lets through, an expert and its weight
    SELECTION = "selection"  # numbers of the experts that were chosen
    SHARES = "shares"  # weights of the chosen experts
    SUM = "sum"  # of a branch and the residual stream
    EXPERTS = "experts"  # what the chosen experts give, added up
    STATE = "state"  # of a recurrence or a convolution: what the next step begins with
    LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Point:
    """One entry of the table.

    Parameters
    ----------
    name
        llama.cpp's name, with the two additions of the design.
    axes
        Names of its axes, outermost first.
    kind
        Of the operation.
    heading
        Two short lines at the head of a column: what the point shares with its neighbours, and what is its own.
    usual_names
        What other engines call it, in the words that :mod:`firstdiff.dumps.nearest` brings names to.
    inside
        Whether every layer has one.
    carries
        Which operand of attention it holds, with all heads apart; empty for any other point.
    hidden
        Whether entries that causality hides may hold anything, and are ignored.
    nodes
        Other names that llama.cpp's graph has for it.
    """

    name: str
    axes: tuple[str, ...]
    kind: Kind
    heading: tuple[str, str]
    usual_names: tuple[str, ...]
    inside: bool = True
    carries: Literal["", "Q", "K", "V"] = ""
    hidden: bool = False
    nodes: tuple[str, ...] = ()


_TABLE = (
    Point("embd", _ROWS, Kind.EMBEDDING, ("", "embd"),
          ("embd", "token embd", "embd token", "input embd", "inp embd", "wte"), inside=False, nodes=("inp_embd",)),
    Point("attn_norm", _ROWS, Kind.NORM, ("attn", "norm"),
          ("attn norm", "input norm", "pre attn norm", "norm 1", "attn input norm", "rms attn")),
    Point("Qcur", _HEADS, Kind.PRODUCT, ("cur", "Q"), ("q", "q proj", "attn q", "wq", "q linear"), carries="Q"),
    Point("Kcur", _HEADS, Kind.PRODUCT, ("cur", "K"), ("k", "k proj", "attn k", "wk", "k linear"), carries="K"),
    Point("Vcur", _HEADS, Kind.PRODUCT, ("cur", "V"), ("v", "v proj", "attn v", "wv", "v linear"), carries="V"),
    Point("Qcur_normed", _HEADS, Kind.NORM, ("norm", "Q"), ("q norm", "attn q norm", "q normed"), carries="Q"),
    Point("Kcur_normed", _HEADS, Kind.NORM, ("norm", "K"), ("k norm", "attn k norm", "k normed"), carries="K"),
    Point("Qcur_rope", _HEADS, Kind.ROTATION, ("rope", "Q"),
          ("q rope", "q rotated", "q rot", "rope q", "rotary q", "attn q rope"), carries="Q"),
    Point("Kcur_rope", _HEADS, Kind.ROTATION, ("rope", "K"),
          ("k rope", "k rotated", "k rot", "rope k", "rotary k", "attn k rope"), carries="K"),
    Point("k_cache", _HEADS, Kind.CACHE, ("cache", "k"), ("k cache", "cache k", "past k"), carries="K"),
    Point("v_cache", _HEADS, Kind.CACHE, ("cache", "v"), ("v cache", "cache v", "past v"), carries="V"),
    Point("kq", _SCORES, Kind.SCORES, ("", "kq"), ("kq", "qk", "attn score", "score", "attn logit"), hidden=True),
    Point("kq_soft_max", _SCORES, Kind.PROBABILITIES, ("soft", "max"),
          ("attn prob", "attn weight", "softmax", "attn softmax", "kq softmax", "score softmax"),
          nodes=("kq_soft_max_ext",)),
    Point("kqv_out", _ROWS, Kind.ATTENTION, ("kqv", "out"),
          ("kqv", "attn context", "context", "attn head merged", "head out", "attn v out", "sdpa"),
          nodes=("kqv_merged_cont",)),
    Point("attn_out", _ROWS, Kind.PRODUCT, ("attn", "out"),
          ("attn out", "o proj", "attn o proj", "attn proj", "wo", "attn"), nodes=("kqv_wo",)),
    Point("attn_post_norm", _ROWS, Kind.NORM, ("attn", "post"), ("attn post norm", "post attn norm out")),
    Point("ffn_inp", _ROWS, Kind.SUM, ("ffn", "inp"),
          ("ffn inp", "attn residual", "residual attn", "post attn residual", "residual 1")),
    Point("ffn_norm", _ROWS, Kind.NORM, ("ffn", "norm"),
          ("ffn norm", "post attn norm", "norm 2", "pre ffn norm", "rms ffn")),
    Point("ffn_gate", _ROWS, Kind.PRODUCT, ("ffn", "gate"), ("ffn gate", "gate proj", "gate", "w 1"),
          nodes=("ffn_gate_b",)),
    Point("ffn_up", _ROWS, Kind.PRODUCT, ("ffn", "up"), ("ffn up", "up proj", "up", "w 3"), nodes=("ffn_up_b",)),
    Point("ffn_swiglu", _ROWS, Kind.ACTIVATION, ("ffn", "glu"),
          ("ffn swiglu", "swiglu", "silu mul", "ffn hidden", "ffn gate up"), nodes=("ffn_gate_par",)),
    Point("ffn_geglu", _ROWS, Kind.ACTIVATION, ("ffn", "glu"), ("ffn geglu", "geglu", "gelu mul")),
    Point("ffn_moe_logits", _EACH, Kind.PRODUCT, ("moe", "logits"),
          ("moe logit", "router logit", "router", "expert logit")),
    Point("ffn_moe_probs", _EACH, Kind.PROBABILITIES, ("moe", "probs"), ("moe prob", "router prob", "expert prob")),
    Point("ffn_moe_topk", _EACH, Kind.SELECTION, ("moe", "topk"),
          ("moe topk", "topk", "expert topk", "selected expert")),
    Point("ffn_moe_weights", _EACH, Kind.SHARES, ("moe", "weights"),
          ("moe weight", "router weight", "expert weight", "topk weight")),
    Point("ffn_moe_weights_norm", _EACH, Kind.SHARES, ("moe", "wnorm"),
          ("moe weight norm", "router weight norm", "expert weight norm")),
    Point("ffn_moe_weights_scaled", _EACH, Kind.SHARES, ("moe", "wscaled"),
          ("moe weight scaled", "router weight scaled", "expert weight scaled")),
    Point("ffn_moe_gate", _EXPERTS, Kind.PRODUCT, ("moe", "gate"), ("moe gate", "expert gate", "expert gate proj")),
    Point("ffn_moe_up", _EXPERTS, Kind.PRODUCT, ("moe", "up"), ("moe up", "expert up", "expert up proj")),
    Point("ffn_moe_swiglu", _EXPERTS, Kind.ACTIVATION, ("moe", "glu"),
          ("moe swiglu", "expert swiglu", "expert hidden")),
    Point("ffn_moe_geglu", _EXPERTS, Kind.ACTIVATION, ("moe", "glu"), ("moe geglu", "expert geglu")),
    Point("ffn_moe_down", _EXPERTS, Kind.PRODUCT, ("moe", "down"), ("moe down", "expert down", "expert down proj")),
    Point("ffn_moe_weighted", _EXPERTS, Kind.ACTIVATION, ("moe", "weighted"), ("moe weighted", "expert weighted")),
    Point("ffn_moe_out", _ROWS, Kind.EXPERTS, ("moe", "out"), ("moe out", "expert out", "ffn moe", "moe")),
    Point("ffn_out", _ROWS, Kind.PRODUCT, ("ffn", "out"), ("ffn out", "down proj", "ffn down", "ffn", "w 2")),
    Point("ffn_post_norm", _ROWS, Kind.NORM, ("ffn", "post"), ("ffn post norm", "post ffn norm")),
    Point("l_out", _ROWS, Kind.SUM, ("l", "out"),
          ("l out", "out", "layer out", "block out", "blk out", "hidden", "hidden state", "residual ffn",
           "residual 2")),
    Point("result_norm", _ROWS, Kind.NORM, ("result", "norm"),
          ("result norm", "final norm", "out norm", "norm f", "ln f", "norm"), inside=False),
    Point("result_output", _ROWS, Kind.LOGITS, ("result", "output"),
          ("result out", "logit", "logits", "lm head", "head", "out"), inside=False),
)  # fmt: skip

POINTS = {point.name: point for point in _TABLE}
"""Every point by name, in execution order."""

OUTSIDE = tuple(point.name for point in _TABLE if not point.inside)
"""Points outside the layers."""

INSIDE = tuple(point.name for point in _TABLE if point.inside)
"""Points of every layer, in the order in which a layer computes them."""

_MIXTURE = re.compile(r"ffn_moe_[a-z_]+")  # a mixture of experts may have more points than the table


def is_inside(point: str) -> bool:
    """Whether a name is a point of every layer."""
    return point in INSIDE or _MIXTURE.fullmatch(point) is not None


def kind_of(point: str) -> Kind | None:
    """Return a point's kind, None for a name that the table does not have."""
    return POINTS[point].kind if point in POINTS else None


def of_kind(*kinds: Kind) -> tuple[str, ...]:
    """Return the names of the points of some kinds, in execution order."""
    return tuple(point.name for point in _TABLE if point.kind in kinds)


def carrying(*operands: str) -> tuple[str, ...]:
    """Return the names of the points that hold one of some operands of attention: ``Q``, ``K`` or ``V``."""
    return tuple(point.name for point in _TABLE if point.carries in operands)


def with_axis(axis: str) -> tuple[str, ...]:
    """Return the names of the points that have an axis, in execution order."""
    return tuple(point.name for point in _TABLE if axis in point.axes)


def axes_of(point: str, ndim: int | None = None) -> tuple[str, ...]:
    """Return the names of a point's axes.

    Parameters
    ----------
    point
        Any name: one that the table does not have is named by how many axes it has.
    ndim
        How many axes the tensor at hand has, if that may be another number: with its heads merged it has two.
    """
    if point in POINTS and ndim in (None, len(POINTS[point].axes)):
        return POINTS[point].axes
    return _HEADS if ndim == len(_HEADS) else _ROWS[:ndim]


def token_axis(axes: Sequence[str]) -> int:
    """Return the number of the axis that counts tokens: ``token``, or the ``query`` of scores."""
    return axes.index("query" if "query" in axes else "token")


def plural(axis: str) -> str:
    """Return an axis's name as people count along it: ``tokens``, ``queries``."""
    if axis not in AXES:
        return axis
    return "queries" if axis == "query" else f"{axis}s"


def as_point(name: str) -> tuple[str, int | None] | None:
    """Return the point and layer that a name of ours means: ``Qcur-3``, also ``blk.3.Qcur`` or ``layer_3_Qcur``.

    Nothing is guessed but where the layer stands: the rest must be the point itself.
    """
    try:
        site = Site.of_key(name, 0)
    except TraceError:
        return None
    _, bare, layer = layered(name)
    for point, at in ((site.point, site.layer), (bare, layer)):
        if point in OUTSIDE if at is None else is_inside(point):
            return point, at
    return None
