"""The tests of decoding: models of other tests, whose prompts are run in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from firstdiff.conformance.definition import PLAIN_NAME, PROMPT, Level, Test

PLAIN: Mapping[str, tuple[tuple[int, ...], str]] = {
    "decoding": ((8, 1, 1, 1, 1), "the cache: a prompt of 8 tokens, then one token after another"),
    "decoding from the first token": ((1,) * len(PROMPT), "the cache: one token at a time, from the first on"),
    "prompt in two parts": ((7, 5), "the mask and the positions of several tokens behind others in the cache"),
}
"""How the plain model's prompt is run, and what that isolates."""

PARTS = (7, 1, 3, 1)

OTHERS: Mapping[str, tuple[str, Level]] = {
    "one head of keys": ("a cache of one KV head", "core"),
    "rope halves": ("positions of decoded tokens where (i, i + head_dim / 2) are turned together", "full"),
    "gemma3: window": ("a window that moves while tokens are decoded", "core"),
    "gpt-oss: sinks": ("attention sinks while tokens are decoded", "full"),
    "gpt2": ("learned positions of decoded tokens", "core"),
    "bloom": ("ALiBi of decoded tokens", "full"),
    "deepseek2": ("a cache of latents", "full"),
    "mamba": ("a state that is carried from part to part", "core"),
    "mamba2": ("a state that is carried from part to part", "full"),
    "lfm2": ("the last inputs of a convolution that are carried from part to part", "full"),
}
"""Other tests whose prompts are run in parts, what that isolates, and in which level."""


def decoding_tests(others: Sequence[Test]) -> Iterator[Test]:
    """The tests of decoding, whose models are those of others."""
    known = {test.name: test for test in others}
    for name, (parts, isolates) in PLAIN.items():
        yield replace(known[PLAIN_NAME], name=name, isolates=isolates, at_a_time=parts)
    for name, (isolates, level) in OTHERS.items():
        of = known[name]
        yield replace(of, name=f"{name}: decoding", isolates=isolates, at_a_time=PARTS, level=level, base=name)
