"""The table of hypotheses, in the order in which they are tried: of two that explain as well, the first is named."""

from __future__ import annotations

from collections.abc import Mapping

from firstdiff.hypotheses import (
    any_point,
    attention,
    attention_kernels,
    embedding_and_logits,
    experts,
    feed_forward,
    kv_cache,
    layers,
    masks,
    norms,
    residuals,
    rope,
    row_kernels,
    softmax,
    weight_order,
    weights,
)
from firstdiff.hypotheses.blocks import table as blocks
from firstdiff.hypotheses.hypothesis import Hypothesis

TABLE: dict[str, Hypothesis] = {
    h.id: h
    for family in (
        embedding_and_logits,
        layers,
        norms,
        weight_order,
        weights,
        blocks,
        rope,
        attention,
        masks,
        softmax,
        kv_cache,
        residuals,
        experts,
        feed_forward,
        attention_kernels,
        row_kernels,
        any_point,
    )
    for h in family.TABLE
}

_OTHER_POSITION = "run a second decode step (--decode 2), or a prompt of another length (--prompt TEXT)"
_SEVERAL_TOKENS = (
    "run several tokens in one step: a prompt (--prompt TEXT) or, where its rotation is right, a prompt in two parts"
)
_BETWEEN = "record the layers between, if they ran: what a layer gives is not what it is fed"
_LONG = "run a prompt of thousands of tokens (firstdiff run MODEL --long), in which the slow pairs turn too"
_OTHER_LENGTH = "run a prompt of another length (--prompt TEXT): padding changes with it, and a sink does not"
_BRANCH = "record the branch's output: it is 0, or it is not added"
_SHARE = "record what each expert gives (ffn_moe_weighted): it is 0, or it is not added"
_HALF = "dump the weight as your engine decodes it: half of it is zero, or the product visits half of it"

EQUIVALENT: Mapping[frozenset[str], str | None] = {
    frozenset(pair): separate
    for pair, separate in (
        (("layers-not-run", "branch-missing"), _BETWEEN),  # of layers that are not recorded
        (("layers-not-run", "wrong-input"), None),
        (("rope-base", "rope-denominator"), None),  # base ** (-2 i / n) is another base's ** (-2 i / head_dim)
        (("weight-transposed", "weight-reinterpreted"), None),  # of a square weight
        (("weight-transposed", "head-transposed"), None),
        (("weight-swapped", "fused-split"), None),  # gate and up exchanged is [gate; up] split up first
        (("rope-twice", "rope-scale"), None),  # a rotation done twice is one by twice the angles
        (("rope-twice", "position-scale"), None),
        (("rope-scale", "position-scale"), None),
        (("position-scale", "rope-offset"), _OTHER_POSITION),
        (("position-scale", "rope-position"), _SEVERAL_TOKENS),
        (("rope-twice", "rope-offset"), _OTHER_POSITION),
        (("residual-twice", "residual-scale"), None),
        (("branch-missing", "output-zero"), _BRANCH),
        (("expert-missing", "output-zero"), _SHARE),
        (("block-partial", "half-block"), _HALF),
        (("reduction-remainder", "half-block"), None),  # of a product over one block
        (("cache-padding", "sink-added"), _OTHER_LENGTH),  # n scores of 0 are one of log(n)
        (("rope-partial", "rope-denominator"), _LONG),  # of half the dimensions: 16 bits hold no slow pair's angle
        (("rope-position", "rope-offset"), _OTHER_POSITION),  # of one decode step, these and the next
        (("rope-offset", "rope-none"), _OTHER_POSITION),
        (("rope-scale", "rope-offset"), _OTHER_POSITION),
        (("rope-position", "rope-none"), _SEVERAL_TOKENS),  # of a single token, turned as if at 0
        (("rope-scale", "rope-position"), _SEVERAL_TOKENS),
    )
}
"""Hypotheses that can give the same numbers, each pair with what to run so that they do not.

None where nothing does: no recording tells these apart.
"""
