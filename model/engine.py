"""The reference engine: a model opened from a file, and its forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

from firstdiff.model.architecture import Architecture, Hyperparameters, Nodes, Rotation, Tensor
from firstdiff.model.architectures import llama, qwen2, qwen3
from firstdiff.model.arithmetic import Array
from firstdiff.model.errors import ModelError, NotDescribedError, quoted
from firstdiff.model.fields import NOT_WHOLE, Fields
from firstdiff.model.gguf import GGUF, open_gguf
from firstdiff.model.graph.reference import Capture, GraphArchitecture, hyperparameters
from firstdiff.model.probe import Probe
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.weights import Weights

ARCHITECTURES: dict[str, Architecture[Any, Any]] = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}

HARMLESS = ("attn_rot_embd.weight", "attn.rot_embd.weight", "attention.rotary_emb.inv_freq")
"""Ends of the names of tensors that nobody reads and no result needs: tables of cos and sin, or the plain frequencies,
that old converters wrote (llama.cpp skips them too). ``rope_freqs.weight`` is none of them: it changes the angles."""


class StepLike(Protocol):
    """One forward pass: its tokens and their positions."""

    @property
    def tokens(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def positions(self) -> Sequence[int]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model whose weights stay in the mapped file.

    Parameters
    ----------
    gguf, weights
        The file.
    architecture, hp
        Its architecture's name, and its hyperparameters.
    written
        What computes it: a file of ``model/architectures``, or llama.cpp's own graph.
    """

    gguf: GGUF
    architecture: str
    hp: Hyperparameters
    weights: Weights
    written: Architecture[Any, Any]

    @property
    def tier(self) -> str:
        """Where its calls come from: ``hand`` or ``graph``."""
        return "graph" if isinstance(self.written, GraphArchitecture) else "hand"

    @property
    def rotation(self) -> Rotation | None:
        """How queries and keys are rotated; None where they are not."""
        return self.written.rotation(self.hp)

    @property
    def nodes(self) -> Nodes:
        """llama.cpp's nodes, and which points they are."""
        return self.written.NODES

    def forward(self, steps: Sequence[StepLike], probe: Probe, *, past: int = 0) -> Iterator[Array]:
        """Run the steps one after another through a KV cache, yielding logits [T, n_vocab] of each.

        Every operation goes through `probe`, whose `step` and `layer` are set here. Where the cache holds `past` tokens
        already and nobody knows which, the probe is given a step -1 that stands for them, and says what it makes of it.
        """
        architecture = self.written
        cache = architecture.Cache()
        self.prepare(steps, past=past)
        if past:
            probe.step, probe.layer = -1, None
            architecture.forward(probe, (0,) * past, tuple(range(past)), self.weights, self.hp, cache)
        for index, step in enumerate(steps):
            probe.step, probe.layer = index, None
            yield architecture.forward(probe, step.tokens, step.positions, self.weights, self.hp, cache).array

    def prepare(self, steps: Sequence[StepLike], *, past: int = 0) -> None:
        """Have llama.cpp show its graph of some steps, where that is what is followed.

        Raises
        ------
        CaptureError
            Where llama.cpp does not run the model.
        ModelError
            For a graph that cannot be followed.
        """
        if isinstance(self.written, GraphArchitecture):
            self.written.prepare([*([(0,) * past] if past else []), *(step.tokens for step in steps)])

    def check_tokens(self, tokens: Sequence[int], *, decode: int = 0) -> None:
        """Refuse tokens that the model cannot run, with `decode` more to come.

        Raises
        ------
        ModelError
            For no token, an id outside the vocabulary, or more tokens than the context holds.
        """
        path, hp = self.gguf.path, self.hp
        if not tokens:
            raise ModelError(f"{path}: no token to run: give a prompt that is not empty, or --tokens")
        for place, token in enumerate(tokens):
            if not 0 <= token < hp.n_vocab:
                raise ModelError(
                    f"{path}: token id {token} (number {place + 1:,} of {len(tokens):,}) is outside the vocabulary "
                    f"(0 to {hp.n_vocab - 1}): give ids of this model's own tokeniser"
                )
        if len(tokens) + decode > hp.n_ctx_train:
            steps = f" and {decode:,} decode steps" if decode else ""
            raise ModelError(
                f"{path}: {len(tokens):,} tokens{steps} do not fit the model's context of {hp.n_ctx_train:,}: "
                f"give {'a shorter prompt or fewer decode steps' if decode else 'fewer tokens'}"
            )


def open_model(path: str | PathLike[str]) -> Model:
    """Open a GGUF file as a model; no weight is read yet.

    Raises
    ------
    ModelError
        For a file that is no GGUF, is damaged, has another architecture, lacks a tensor or a hyperparameter, states
        one that nobody reads, or has a tensor of another shape or of a type that cannot be dequantised.
    """
    gguf = open_gguf(path)
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        said = "the file names no architecture" if name is None else f"architecture {name!r:.60} is not supported"
        kind = NotDescribedError if isinstance(name, str) else ModelError
        raise kind(
            f"{gguf.path}: {said} (supported: {known}): take another model, "
            "or leave --tier out, and llama.cpp's own graph is taken"
        )
    architecture = ARCHITECTURES[name]
    fields = Fields(gguf, name)
    hp = architecture.read(fields)
    fields.refuse_unread()
    _check_tensors(gguf, architecture.tensors(hp))
    return Model(gguf, name, hp, Weights(gguf), architecture)


def open_graph(path: str | PathLike[str], capture: Capture, *, why: str = "") -> Model:
    """Open a GGUF file of any architecture as a model that llama.cpp's own graph computes; `why`, in words.

    Raises
    ------
    ModelError
        For a file that is no GGUF, or is damaged.
    """
    gguf = open_gguf(path)
    name = gguf.metadata.get("general.architecture")
    return Model(
        gguf,
        name if isinstance(name, str) else "unnamed",
        hyperparameters(gguf),
        Weights(gguf),
        GraphArchitecture(gguf, capture, why),
    )


def _check_tensors(gguf: GGUF, expected: Iterator[Tensor]) -> None:
    known = set()
    for name, shape, required in expected:
        known.add(name)
        info = gguf.tensors.get(name)
        if info is None:
            if required:
                raise ModelError(f"{gguf.path}: tensor '{name}' is missing: {NOT_WHOLE}")
            continue
        if info.shape != shape:
            raise ModelError(
                f"{gguf.path}: tensor '{name}' has shape {list(info.shape)}, but the hyperparameters call for "
                f"{list(shape)}: the file is damaged, convert the model again"
            )
        if info.type.name not in SUPPORTED:
            raise ModelError(
                f"{gguf.path}: tensor '{name}' has quantisation type {info.type.name}, which is not supported "
                f"(supported: {', '.join(sorted(SUPPORTED))}): requantise the model, for instance to Q8_0"
            )
    strangers = [n for n in gguf.tensors if n not in known and not n.endswith(HARMLESS)]
    if strangers:
        more = f" (and {len(strangers) - 1:,} more)" if len(strangers) > 1 else ""
        raise NotDescribedError(
            f"{gguf.path}: tensor {quoted(strangers[0])}{more} is not one that the reference reads, so its result "
            "would not be this model's: take another model"
        )
