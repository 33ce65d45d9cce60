"""What the rest of the house may ask of an architecture: one module each, which this protocol describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from firstdiff.model.fields import Fields
from firstdiff.model.probe import Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What a file says about a model, under llama.cpp's names. An architecture may have more.

    Parameters
    ----------
    n_vocab
        Tokens of the vocabulary.
    n_ctx_train
        Positions that the model was trained for.
    n_embd
        Numbers per token in the residual stream.
    n_layer
        Blocks.
    n_head
        Query heads per layer.
    n_head_kv
        Heads of keys and of values per layer.
    head_dim
        Numbers per head.
    n_ff
        Numbers per token between the products of the feed-forward network.
    """

    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int


@dataclass(frozen=True, slots=True)
class Rotation:
    """How queries and keys are rotated by position (Su et al. 2021).

    Parameters
    ----------
    pairing
        Which dimensions turn together: see :func:`firstdiff.model.operations.rope`.
    dim
        Numbers per head that are rotated.
    base, scale
        See :func:`firstdiff.model.rope.angles`.
    of
        For each rotated point the point that it is made of: ``{"Qcur_rope": "Qcur"}``.
    factors
        The tensor that each pair's angles are divided by; None for an architecture that has none.
    """

    pairing: str
    dim: int
    base: float
    scale: float
    of: Mapping[str, str]
    factors: str | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the operation ``rope``."""
        return {"pairing": self.pairing, "base": self.base, "scale": self.scale}


Nodes = Mapping[tuple[str, str], str]
"""llama.cpp's node, by name and operation -> point.

A name is not a key: ``Qcur-0`` is a product, a reshape, a sum with the bias and a rotation in turn. Where two nodes
give one point (a product, then its bias) the last one counts. A node without a name of its own (``node_31``) goes by
the weight that it reads: ``("attn_output.weight", "MUL_MAT")``.
"""

Tensor = tuple[str, tuple[int, ...], bool]
"""Name, shape and whether it must be there."""


H = TypeVar("H", bound=Hyperparameters)
"""The hyperparameters of one architecture."""

C = TypeVar("C")
"""What one architecture reads back in a later step."""


class Architecture(Protocol[H, C]):
    """A module of ``model/architectures``."""

    NODES: Nodes

    def Cache(self) -> C:  # noqa: N802 - a class of the module
        """Make what a later step reads back, empty."""

    def read(self, fields: Fields) -> H:
        """Read the hyperparameters of a file.

        Raises
        ------
        ModelError
            Where one is missing or is one that the architecture does not compute.
        """

    def tensors(self, hp: H) -> Iterator[Tensor]:
        """Every tensor that the architecture reads."""

    def rotation(self, hp: H) -> Rotation | None:
        """How queries and keys are rotated; None where they are not."""

    def forward(
        self,
        probe: Probe,
        tokens: Sequence[int],
        positions: Sequence[int],
        w: Weights,
        hp: H,
        cache: C,
    ) -> Value:
        """One step: tokens [token] at positions [token] -> logits [token, n_vocab]; `cache` grows by the step."""
