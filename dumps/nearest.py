"""Which point a foreign name probably means: a suggestion, never acted upon."""

from __future__ import annotations

import difflib
import functools
import re

from firstdiff.dumps.points import INSIDE, OUTSIDE
from firstdiff.dumps.spelling import layered

# What engines call each point, in words that `_words` has brought to one form.
_SAID: dict[str, tuple[str, ...]] = {
    "embd": ("embd", "token embd", "embd token", "input embd", "inp embd", "wte"),
    "attn_norm": ("attn norm", "input norm", "pre attn norm", "norm 1", "attn input norm", "rms attn"),
    "Qcur": ("q", "q proj", "attn q", "wq", "q linear"),
    "Kcur": ("k", "k proj", "attn k", "wk", "k linear"),
    "Vcur": ("v", "v proj", "attn v", "wv", "v linear"),
    "Qcur_normed": ("q norm", "attn q norm", "q normed"),
    "Kcur_normed": ("k norm", "attn k norm", "k normed"),
    "Qcur_rope": ("q rope", "q rotated", "q rot", "rope q", "rotary q", "attn q rope"),
    "Kcur_rope": ("k rope", "k rotated", "k rot", "rope k", "rotary k", "attn k rope"),
    "k_cache": ("k cache", "cache k", "past k"),
    "v_cache": ("v cache", "cache v", "past v"),
    "kq": ("kq", "qk", "attn score", "score", "attn logit"),
    "kq_soft_max": ("attn prob", "attn weight", "softmax", "attn softmax", "kq softmax", "score softmax"),
    "kqv_out": ("kqv", "attn context", "context", "attn head merged", "head out", "attn v out", "sdpa"),
    "attn_out": ("attn out", "o proj", "attn o proj", "attn proj", "wo", "attn"),
    "attn_post_norm": ("attn post norm", "post attn norm out"),
    "ffn_inp": ("ffn inp", "attn residual", "residual attn", "post attn residual", "residual 1"),
    "ffn_norm": ("ffn norm", "post attn norm", "norm 2", "pre ffn norm", "rms ffn"),
    "ffn_gate": ("ffn gate", "gate proj", "gate", "w 1"),
    "ffn_up": ("ffn up", "up proj", "up", "w 3"),
    "ffn_swiglu": ("ffn swiglu", "swiglu", "silu mul", "ffn hidden", "ffn gate up"),
    "ffn_geglu": ("ffn geglu", "geglu", "gelu mul"),
    "ffn_out": ("ffn out", "down proj", "ffn down", "ffn", "w 2"),
    "ffn_post_norm": ("ffn post norm", "post ffn norm"),
    "l_out": (
        "l out",
        "out",
        "layer out",
        "block out",
        "blk out",
        "hidden",
        "hidden state",
        "residual ffn",
        "residual 2",
    ),
    "result_norm": ("result norm", "final norm", "out norm", "norm f", "ln f", "norm"),
    "result_output": ("result out", "logit", "logits", "lm head", "head", "out"),
}
# One form for words of one meaning.
_SAME = {
    "attention": "attn", "self": "", "query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v",
    "values": "v", "output": "out", "embedding": "embd", "embeddings": "embd", "embed": "embd", "tokens": "token",
    "tok": "token", "mlp": "ffn", "feedforward": "ffn", "layernorm": "norm", "rmsnorm": "norm", "ln": "norm",
    "scores": "score", "probs": "prob", "probability": "prob", "probabilities": "prob", "weights": "weight",
    "logits": "logit", "states": "state", "down": "down", "projection": "proj", "heads": "head", "qcur": "q",
    "kcur": "k", "vcur": "v", "model": "", "transformer": "", "decoder": "", "input": "inp", "roped": "rope",
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
    scores = {point: max(_alike(words, _words(said)) for said in _SAID[point]) for point in allowed}
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
