"""Preflight: what is checked of a candidate's trace before any tensor is judged.

Tokens, positions, weights and the model itself are the input contract: where one is broken, tensors differ and no
operation is at fault.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstdiff.dumps import Trace
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.judging.past import missing_past
from firstdiff.model.engine import Model, StepLike
from firstdiff.preflight.model import NOT_RECORDED, check_model
from firstdiff.preflight.positions import check_positions
from firstdiff.preflight.tokens import check_tokens, checked
from firstdiff.preflight.weights import FILE, WeightsCheck, check_weights


def prompt_of(steps: Sequence[StepLike], length: int) -> tuple[int, ...]:
    """A candidate's tokens of the prompt: those of step 0, or of the steps that an engine feeds it in.

    A decoded step has one token, so all steps up to the last one with more belong to the prompt; where none has more,
    tokens are fed one at a time, and the first ones are the prompt.
    """
    last = max((index for index, step in enumerate(steps) if len(step.tokens) > 1), default=None)
    if last is None:
        return tuple(t for step in steps for t in step.tokens)[: max(length, 1)]
    return tuple(t for step in steps[: last + 1] for t in step.tokens)


def weights_of(model: Model, trace: Trace) -> WeightsCheck | None:
    """The check of the weights that lie in a trace's folder; None where there are none."""
    if trace.path is None:
        return None
    path = (trace.path if trace.path.is_dir() else trace.path.parent) / FILE
    return check_weights(model, path) if path.is_file() else None


def preflight(
    model: Model,
    trace: Trace,
    *,
    engine: LlamaCpp | None = None,
    text: str | None = None,
    chat: bool = False,
    special: bool = True,
    sha256: str | None = None,
) -> dict[str, str]:
    """Check tokens, positions, weights and model of a candidate's trace.

    Parameters
    ----------
    model, trace
        The file, and the trace, its points by our names.
    engine
        The model, open in llama.cpp; its vocabulary is enough. Without it, or without a text, tokens are not checked.
    text, chat, special
        What was to be run, as in :func:`firstdiff.preflight.tokens.check_tokens`.
    sha256
        The file's, if it is known already.

    Returns
    -------
    ``agrees``, ``not recorded``, ``not checked`` or a sentence that says what is wrong, by ``tokens``, ``positions``,
    ``weights`` and ``model``.

    Raises
    ------
    TraceError
        For weights or a manifest that cannot be read.
    CaptureError
        Where llama.cpp does not tokenise the text.
    """
    tokens = "not checked"
    if engine is not None and text is not None:
        length = len(engine.tokenize(engine.chat(checked(text)) if chat else checked(text), special=special))
        theirs = prompt_of(trace.steps, length)
        tokens = check_tokens(engine, theirs, text, chat=chat, special=special).sentence
    weights = weights_of(model, trace)
    return {
        "tokens": tokens,
        "positions": check_positions(trace.steps, missing_past(model, trace)).sentence,
        "weights": NOT_RECORDED if weights is None else weights.sentence,
        "model": check_model(model, trace, sha256=sha256).sentence,
    }
