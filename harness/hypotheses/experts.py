"""Mixtures of experts gone wrong: how what the chosen experts give is weighted and added up."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, identity, replaced
from firstdiff.hypotheses.where import EXPERTS, Where
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call


def _one_expert(call: Call, _scene: Scene, values: Values) -> Call:
    return replaced(call, identity, call.argument("a" if values["experts"] == "the last" else "b"))


def _undivided(call: Call, _scene: Scene, _values: Values) -> Call:
    return replaced(call, _flat, call.inputs[0])


def _flat(x: Array, *, arithmetic: Arithmetic) -> Array:
    """Weights of the experts, [T, k, 1] or [T, k] -> [T, k]."""
    return arithmetic.widen(x.reshape(len(x), -1))


def _divided(call: Call, _scene: Scene, _values: Values) -> Call:
    of = call.op

    def compute(*inputs: Any, arithmetic: Arithmetic, **attributes: Any) -> Array:  # noqa: ANN401 - the operation's own
        with np.errstate(all="ignore"):
            weights: Array = of(*inputs, arithmetic=arithmetic, **attributes)
            total: Array = weights.reshape(len(weights), -1).sum(-1)
            return weights / total.reshape(-1, *[1] * (weights.ndim - 1))

    return replaced(call, Derived(of, compute), *call.inputs, **call.attributes)


TABLE = (
    Hypothesis(
        "expert-missing",
        EXPERTS,
        "some of each token's experts left out of the sum",
        "add up what all experts give that a token chose",
        _one_expert,
        lambda _call, _scene, _observed: ({"experts": which} for which in ("the last", "all but the last")),
        "of each token's experts {experts} left out of the sum",
    ),
    Hypothesis(
        "expert-weights-not-normalised",
        Where(None, named="ffn_moe_weights_norm"),
        "the weights of the chosen experts not divided by their sum",
        "divide each token's weights by their sum: transformers' 'norm_topk_prob' is true",
        _undivided,
        stage=4,
    ),
    Hypothesis(
        "expert-weights-normalised",
        Where(None, named="ffn_moe_weights"),
        "the weights of the chosen experts divided by their sum, which this model does not do",
        "use the router's probabilities of the chosen experts as they are: transformers' 'norm_topk_prob' is false",
        _divided,
        stage=4,
    ),
)
