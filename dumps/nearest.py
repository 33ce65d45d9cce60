"""Which point a foreign name probably means: a suggestion, never acted upon."""

from __future__ import annotations

import difflib
import functools
import re

from firstdiff.dumps.points import INSIDE, OUTSIDE, POINTS
from firstdiff.dumps.spelling import layered

# One form for words of one meaning.
_SAME = {
    "attention": "attn", "self": "", "query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v",
    "values": "v", "output": "out", "embedding": "embd", "embeddings": "embd", "embed": "embd", "tokens": "token",
    "tok": "token", "mlp": "ffn", "feedforward": "ffn", "layernorm": "norm", "rmsnorm": "norm", "ln": "norm",
    "scores": "score", "probs": "prob", "probability": "prob", "probabilities": "prob", "weights": "weight",
    "logits": "logit", "states": "state", "down": "down", "projection": "proj", "heads": "head", "qcur": "q",
    "kcur": "k", "vcur": "v", "experts": "expert",
    "model": "", "transformer": "", "decoder": "", "input": "inp", "roped": "rope",
}  # fmt: skip
ENOUGH = 0.55
"""How alike a suggestion must be, from 0 to 1: one word of two in common is not."""


def nearest(name: str) -> str | None:
    """Return the point whose usual names come nearest to a name, or None if none comes near."""
    _, bare, layer = layered(name)
    return _nearest(bare, layer is not None)


@functools.lru_cache(maxsize=4096)  # the same name at every layer and step
def _nearest(bare: str, inside: bool) -> str | None:  # noqa: FBT001 - a cache key
    words = _words(bare)
    allowed = INSIDE if inside else (*OUTSIDE, *INSIDE)
    names = {point: (point, *POINTS[point].usual_names) for point in allowed}
    scores = {point: max(_alike(words, _words(said)) for said in names[point]) for point in allowed}
    for point in allowed:  # a slip of the finger
        scores[point] = max(
            scores[point], difflib.SequenceMatcher(None, bare[:256].lower(), point.lower()).ratio() - 0.2
        )
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= ENOUGH else None


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """Split a name into words: ``self_attn.q_proj``, ``selfAttention.queryProj`` -> {attn, q, proj}."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name[:256])
    found = re.findall(r"[^\W\d_]+|[0-9]+", apart)
    same = [_SAME.get(word.lower(), word.lower()) for word in found]
    text = " ".join(same).replace("soft max", "softmax").replace("feed forward", "ffn")
    return frozenset(text.split())


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of words in common (Dice)."""
    return 2 * len(one & other) / (len(one) + len(other)) if one and other else 0.0
