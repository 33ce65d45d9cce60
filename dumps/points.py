"""The points: names of intermediates that are judged, under which every convention's names are understood."""

from __future__ import annotations

import re

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.site import Site
from firstdiff.dumps.spelling import layered

OUTSIDE = ("embd", "result_norm", "result_output")
"""Points outside the layers."""

INSIDE = (
    "attn_norm", "Qcur", "Kcur", "Vcur", "Qcur_normed", "Kcur_normed", "Qcur_rope", "Kcur_rope", "k_cache", "v_cache",
    "kq", "kq_soft_max", "kqv_out", "attn_out", "attn_post_norm", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up",
    "ffn_swiglu", "ffn_geglu", "ffn_out", "ffn_post_norm", "l_out",
)  # fmt: skip
"""Points of every layer, in the order in which a layer computes them."""

_MIXTURE = re.compile(r"ffn_moe_[a-z_]+")  # points of a mixture of experts, such as ffn_moe_logits


def is_inside(point: str) -> bool:
    """Whether a name is a point of every layer."""
    return point in INSIDE or _MIXTURE.fullmatch(point) is not None


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
