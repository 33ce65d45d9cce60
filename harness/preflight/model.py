"""The model that a trace states, against the file's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from firstdiff.dumps import Trace
from firstdiff.dumps.errors import TraceError, shown
from firstdiff.model.architecture_names import architecture_named
from firstdiff.model.engine import Model

NOT_RECORDED = "not recorded"

SAME_NUMBER = 1e-6
"""Relative: a hyperparameter is a float32 in the file."""

# What a trace may call each hyperparameter: our names, llama.cpp's keys, Hugging Face's config.json.
NAMES = {
    "n_head": ("n_head", "head_count", "num_attention_heads"),
    "n_head_kv": ("n_head_kv", "head_count_kv", "num_key_value_heads"),
    "n_layer": ("n_layer", "block_count", "num_hidden_layers"),
    "n_embd": ("n_embd", "embedding_length", "hidden_size"),
    "head_dim": ("head_dim", "key_length"),
    "n_ff": ("n_ff", "feed_forward_length", "intermediate_size"),
    "n_vocab": ("n_vocab", "vocab_size"),
    "n_ctx_train": ("n_ctx", "n_ctx_train", "context_length", "max_position_embeddings"),
    "rms_eps": ("rms_eps", "eps", "layer_norm_rms_epsilon", "rms_norm_eps"),
    "rope_base": ("rope_base", "freq_base", "rope_theta"),
    "rope_scale": ("rope_scale",),
}


@dataclass(frozen=True, slots=True)
class Stated:
    """One thing that a trace says of its model, and what the file says."""

    name: str
    theirs: str
    ours: str


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What a trace says of its model against the file: how much was compared, and what differs."""

    compared: tuple[str, ...]
    differences: tuple[Stated, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs; where nothing was said, nothing does."""
        return not self.differences

    @property
    def sentence(self) -> str:
        """What a report says: ``agrees``, ``not recorded``, or every difference with both values."""
        if self.differences:
            return "; ".join(f"{d.name} is {d.theirs} in the trace and {d.ours} in the file" for d in self.differences)
        return "agrees" if self.compared else NOT_RECORDED

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agrees": self.agrees,
            "says": self.sentence,
            "compared": list(self.compared),
            "differences": [asdict(d) for d in self.differences],
        }


def check_model(model: Model, trace: Trace, *, sha256: str | None = None) -> ModelCheck:
    """Compare what a trace says of its model with the file.

    Parameters
    ----------
    model, trace
        The file, and a candidate's trace.
    sha256
        The file's, if it is known already; else it is computed where the trace states one.

    Raises
    ------
    TraceError
        Where ``model.hyperparameters`` of the trace is no table.
    """
    said = trace.model
    given = said.get("hyperparameters", {})
    if not isinstance(given, dict):
        raise TraceError(f"{trace.path}: 'model.hyperparameters' must be an object, not {shown(given)}")
    compared, differences = [], []

    def compare(name: str, theirs: object, ours: object, *, same: bool) -> None:
        compared.append(name)
        if not same:
            differences.append(Stated(name, _value(theirs), _value(ours)))

    if (theirs := said.get("sha256")) is not None:
        own = sha256 or _sha256(model)
        compare("sha256", theirs, own, same=isinstance(theirs, str) and theirs.lower() == own)
    elif (theirs := said.get("file")) is not None:
        name = model.gguf.path.name
        compare("file", theirs, name, same=isinstance(theirs, str) and theirs.rpartition("/")[2] == name)
    if (theirs := said.get("architecture")) is not None:
        same = isinstance(theirs, str) and architecture_named(theirs) == architecture_named(model.architecture)
        compare("architecture", theirs, model.architecture, same=same)
    for field, names in NAMES.items():
        ours: float | None = getattr(model.hp, field, None)  # an architecture may not have it
        for name in names:
            if name in given and ours is not None:
                compare(name, given[name], ours, same=_same(given[name], ours, at_most=field == "n_ctx_train"))
    return ModelCheck(tuple(compared), tuple(differences))


def _same(theirs: object, ours: float, *, at_most: bool) -> bool:
    """Whether a number of a trace is the file's; a run may take a shorter context than the model was trained for."""
    if isinstance(theirs, bool) or not isinstance(theirs, int | float) or not abs(theirs) < 1e300:  # noqa: PLR2004
        return False
    return 0 < theirs <= ours if at_most else math.isclose(theirs, ours, rel_tol=SAME_NUMBER)


def _value(value: object) -> str:
    """A value on one short line."""
    if isinstance(value, float):
        return f"{value:.7g}"
    return shown(value) if not isinstance(value, str) or not value.isprintable() else f"{value:.80}"


def _sha256(model: Model) -> str:
    from firstdiff.engines.identity import identity

    return identity(model).sha256
