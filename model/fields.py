"""Hyperparameters as a GGUF file states them, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF

LIMIT = 1 << 31
"""No count of a real model reaches it; a file that claims more is damaged."""

NOT_WHOLE = "the file holds no whole model, convert or fetch it again"


@dataclass(frozen=True, slots=True)
class Fields:
    """The metadata of one architecture, ``llama.*`` for llama."""

    gguf: GGUF
    architecture: str

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self.gguf.path

    def _value(self, name: str, default: Any) -> Any:  # noqa: ANN401 - as GGUF has it
        key = f"{self.architecture}.{name}"
        value = self.gguf.metadata.get(key, default)
        if value is None:
            raise ModelError(
                f"{self.path}: hyperparameter '{key}' is missing: the model cannot be run without it, convert it again"
            )
        return value.tolist() if hasattr(value, "tolist") else value

    def _fail(self, name: str, value: object, wanted: str) -> ModelError:
        return ModelError(f"{self.path}: hyperparameter '{self.architecture}.{name}' is {value!r:.80}{wanted}")

    def positive(self, name: str, default: int | None = None) -> int:
        """A count of at least 1. An array that gives every layer the same count is that count."""
        value = self._value(name, default)
        if isinstance(value, list) and value:
            if any(each != value[0] for each in value):
                raise self._fail(name, value, ": layers of different counts are not supported, take another model")
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
            raise self._fail(name, value, f", and only {supported} is supported ({why}): take another model")

    def rope_factor(self) -> float:
        """The factor of linear rope scaling, 1 for none (as llama.cpp reads it)."""
        kind = self._value("rope.scaling.type", "linear")
        if kind not in ("linear", "none"):
            wanted = ", and only 'linear' and 'none' are supported: take a model without this scaling"
            raise self._fail("rope.scaling.type", kind, wanted)
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
