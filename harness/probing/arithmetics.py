"""What an engine computes in, as the logits of one model show it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.errors import ModelError
from firstdiff.model.rounding import round_to
from firstdiff.probing.asking import LOGITS, Answer, digits_of
from firstdiff.verdict import SiteVerdict, Status

Array = npt.NDArray[np.floating]

ARITHMETICS = (
    "f32",
    "ggml-cpu+kv=f16",
    "ggml-cpu",
    "bf16",
    "f16",
    "tf32",
    "bf16-operands",
    "f16-operands",
    "f16-operands+kv=f16",
    *(f"f32+{held}" for held in ("held=bf16", "held=f16", "matrices=q8_0", "matrices=i8-row", "matrices=f8_e4m3-row")),
    *(f"{base}+matrices={kind}" for base in ("bf16", "f16") for kind in ("q8_0", "i8-row", "f8_e4m3-row")),
)
"""What an engine may compute in, the exact ones first."""

CLEARLY = 2.0
"""How many times less an arithmetic that no digits show leaves than float32 does. llama.cpp's own leaves a third of it,
and a fault is as far from one as from the other."""

ALIKE = 2.0
"""Errors that differ by less than this factor do not tell two arithmetics apart."""


def results_of(arithmetic: str) -> str | None:
    """What an arithmetic rounds the result of each operation to; None for float32."""
    base = arithmetic.partition("+")[0]
    return base if base in ("bf16", "f16") else None


def judged_in(
    answer: Answer, known: Mapping[Site, Array], engine: str, arithmetic: str, one_token: str | None = None
) -> SiteVerdict:
    """Judge the logits of a model in an arithmetic, given what is known of it: those of the first step that is wrong.

    With `one_token`, an arithmetic of its own for steps of one token, these alone are judged.

    Raises
    ------
    ModelError
        For an arithmetic that the model's weights cannot have.
    """
    trace = answer.trace(known, engine, arithmetic)
    plain = Fingerprint(arithmetic_named(arithmetic))
    several = ((1, Fingerprint(arithmetic_named(one_token or arithmetic))), (2, plain))
    replay = Replay.of(replace(plain, phases=several if one_token else ()), trace, Alignment())
    logits = {site for site in trace.tensors if site.point == LOGITS.point}
    if one_token:
        logits = {site for site in logits if len(trace.steps[site.step].tokens) == 1}
    run_trace(answer.model, trace, replay, logits.__contains__)
    found = [s for s in replay.settled() if s.site in logits]
    return next((s for s in found if s.status is Status.DIVERGES), max(found, key=lambda s: s.local_error or 0.0))


def nearest(answer: Answer, engine: str, *, identity: bool = True) -> tuple[float, str] | None:
    """The arithmetic in which a model's logits are nearest to right, and how near; None where they fit none.

    `identity` says that the output matrix is the identity, so that logits have the digits of a product's operands.
    """
    errors: dict[str, float] = {}
    plain = float("inf")
    for name in possible(answer.logits[answer.given], identity=identity):
        with suppress(ModelError):  # rows that are no whole groups of a kind
            found = judged_in(answer, {}, engine, name)
            if found.local_error is None:
                continue
            if name == ARITHMETICS[0]:
                plain = found.local_error
            shown = results_of(name) is not None or (identity and digits_of(name) is not None)
            less = name == ARITHMETICS[0] or shown or CLEARLY * found.local_error <= plain
            if found.status is not Status.DIVERGES and less:
                errors[name] = found.local_error
    least = min(errors.values(), default=0.0)
    return next(((error, name) for name, error in errors.items() if error <= ALIKE * least), None)


def nearest_of_one(answer: Answer, engine: str, arithmetic: str) -> str | None:
    """The arithmetic of steps of one token, where those of several have another one; None where they fit none.

    None, too, where no step but the first may have one token.
    """
    if 1 not in answer.parts[1:]:
        return None
    errors: dict[str, float] = {}
    plain = judged_in(answer, {}, engine, arithmetic, arithmetic).local_error or 0.0
    for name in (name for name in ARITHMETICS if name != arithmetic):
        with suppress(ModelError):  # rows that are no whole groups of a kind
            found = judged_in(answer, {}, engine, arithmetic, name)
            if found.status is not Status.DIVERGES and CLEARLY * (found.local_error or 0.0) <= plain:
                errors[name] = found.local_error or 0.0
    return min(errors, key=lambda name: errors[name], default=None)


def possible(logits: Array, *, identity: bool) -> list[str]:
    """The arithmetics whose results, or operands, have the digits that logits have."""
    if not identity:
        digits = next((kind for kind in ("bf16", "f16") if np.array_equal(round_to(logits, kind), logits)), None)
        return [name for name in ARITHMETICS if results_of(name) == digits]
    digits = next((kind for kind in ("bf16", "f16", "tf32") if np.array_equal(round_to(logits, kind), logits)), None)
    return [name for name in ARITHMETICS if digits_of(name) == {"tf32": "f16"}.get(digits or "", digits)]
