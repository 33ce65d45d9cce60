"""Hyperparameters as a GGUF file states them, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstdiff.model.errors import ModelError, NotDescribedError, quoted
from firstdiff.model.gguf import GGUF

LIMIT = 1 << 31
"""No count of a real model reaches it; a file that claims more is damaged."""

NOT_WHOLE = "the file holds no whole model, convert or fetch it again"


@dataclass(frozen=True, slots=True)
class Fields:
    """The metadata of one architecture, ``llama.*`` for llama. It notes which keys were asked for."""

    gguf: GGUF
    architecture: str
    asked: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self.gguf.path

    def stated(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as GGUF has it
        """What the file states, unchecked, and without a note that it was asked for."""
        value = self.gguf.metadata.get(f"{self.architecture}.{name}", default)
        return value.tolist() if hasattr(value, "tolist") else value

    def _value(self, name: str, default: Any) -> Any:  # noqa: ANN401 - as GGUF has it
        self.asked.add(name)
        value = self.stated(name, default)
        if value is None:
            raise ModelError(
                f"{self.path}: hyperparameter '{self.architecture}.{name}' is missing: the model cannot be run "
                "without it, convert it again"
            )
        return value

    def _fail(self, name: str, value: object, wanted: str, kind: type[ModelError] = ModelError) -> ModelError:
        return kind(f"{self.path}: hyperparameter '{self.architecture}.{name}' is {value!r:.80}{wanted}")

    def positive(self, name: str, default: int | None = None) -> int:
        """A count of at least 1. An array that gives every layer the same count is that count."""
        value = self._value(name, default)
        if isinstance(value, list) and value:
            if any(each != value[0] for each in value):
                wanted = ": layers of different counts are not supported, take another model"
                raise self._fail(name, value, wanted, NotDescribedError)
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LIMIT:
            raise self._fail(name, value, ", where a whole number of at least 1 is needed: convert the model again")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._fail(name, value, ", where a number above 0 is needed: convert the model again")
        return float(value)

    def require(self, name: str, supported: int, why: str) -> None:
        """Refuse a file that states another value than the one that is computed."""
        value = self._value(name, supported)
        if value != supported:
            wanted = f", and only {supported} is supported ({why}): take another model"
            raise self._fail(name, value, wanted, NotDescribedError)

    def rope_factor(self) -> float:
        """The factor of linear rope scaling, 1 for none (as llama.cpp reads it)."""
        kind = self._value("rope.scaling.type", "linear")
        if kind not in ("linear", "none"):
            wanted = ", and only 'linear' and 'none' are supported: take a model without this scaling"
            raise self._fail("rope.scaling.type", kind, wanted, NotDescribedError)
        factor = self._value("rope.scaling.factor", self._value("rope.scale_linear", 1.0))
        if kind == "none" or factor == 0:
            return 1.0
        name = (
            "rope.scaling.factor"
            if f"{self.architecture}.rope.scaling.factor" in self.gguf.metadata
            else "rope.scale_linear"
        )
        return self.number(name, 1.0)

    def vocabulary_size(self) -> int:
        """Rows of the embedding, which is what token ids index."""
        info = self.gguf.tensors.get("token_embd.weight")
        if info is None:
            raise ModelError(f"{self.path}: tensor 'token_embd.weight' is missing: {NOT_WHOLE}")
        return info.shape[0]

    def refuse_unread(self) -> None:
        """Refuse a file that states a hyperparameter nobody asked for, unless :data:`HARMLESS` knows it to be harmless.

        Call it after the architecture has read its hyperparameters.

        Raises
        ------
        ModelError
            Naming the first such key, and its value.
        """
        prefix = f"{self.architecture}."
        stated = (key.removeprefix(prefix) for key in self.gguf.metadata if key.startswith(prefix))
        unread = [name for name in stated if name not in self.asked and not self._harmless(name)]
        if unread:
            more = f" (and {len(unread) - 1:,} more)" if len(unread) > 1 else ""
            raise NotDescribedError(
                f"{self.path}: hyperparameter {quoted(prefix + unread[0])}{more} is {self.stated(unread[0])!r:.80}, "
                "which the reference does not compute, so its result would not be this model's: take another model"
            )

    def _harmless(self, name: str) -> bool:
        return name in HARMLESS and HARMLESS[name](self, self.stated(name))


def _only(*values: object) -> Callable[[Fields, object], bool]:
    """Harmless with these values, which ask for what is computed anyway."""
    return lambda _, value: value in values


def _as_many_rows(fields: Fields, value: object) -> bool:
    """Harmless if the embedding has as many rows: they are what is read."""
    return value == fields.vocabulary_size()


def _all_rms(fields: Fields, _: object) -> bool:
    """Harmless if the architecture asks for the epsilon of RMS norms: it then has no LayerNorm."""
    return "attention.layer_norm_rms_epsilon" in fields.asked


def _not_yarn(fields: Fields, _: object) -> bool:
    """Harmless unless the file asks for YaRN or its kin, which compute with the original context."""
    return fields.stated("rope.scaling.type", "linear") in ("linear", "none")


def _whole_context(fields: Fields, value: object) -> bool:
    """Harmless if the window holds every token that the model can run, or is switched off."""
    context = fields.stated("context_length")
    return value == 0 or (isinstance(value, int) and isinstance(context, int) and value >= context)


HARMLESS: dict[str, Callable[[Fields, Any], bool]] = {
    "vocab_size": _as_many_rows,
    "tensor_data_layout": _only("reference", "Meta AI original pth"),  # the order that Q's and K's rows have in GGUF
    "attention.causal": _only(True),  # as attention is here
    "attention.layer_norm_epsilon": _all_rms,  # convert_hf_to_gguf.py copies it from every configuration that has one
    "attention.sliding_window": _whole_context,
    "rope.scaling.original_context_length": _not_yarn,
    "rope.scaling.finetuned": _not_yarn,  # llama.cpp itself computes nothing with it
    "rope.scaling.attn_factor": _only(1),
    # 0 switches each of these off.
    "attention.clamp_kqv": _only(0),
    "attention.max_alibi_bias": _only(0),
    "attn_logit_softcapping": _only(0),
    "final_logit_softcapping": _only(0),
    "expert_used_count": _only(0),
    "expert_shared_count": _only(0),
    "pooling_type": _only(0),
    # 0 stands for no scale, and 1 is one that changes nothing.
    "logit_scale": _only(0, 1),
    "residual_scale": _only(0, 1),
    "embedding_scale": _only(0, 1),
}
"""Hyperparameters that a file may state though nobody reads them, and a test of the value that makes each harmless.

They are what converters write that asks for nothing beyond what is computed anyway. llama.cpp's llama ignores several
of them with any value. The reference refuses those: a model that asks for a sliding window is not the same without it.
"""
