"""Hooks on a PyTorch model's modules, and an attention that shows its operands."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.engines.pytorch_families import Taps
from firstdiff.errors import UsageError

Array = npt.NDArray[Any]
Module = Any  # torch.nn.Module: torch's types are there only where torch is installed
Tensor = Any  # torch.Tensor
Attended = tuple[Tensor, Tensor]  # [1, T, H, D], and the probabilities [1, H, T, S]
Put = Callable[[int | None, str, Tensor], None]


def modules_at(model: Module, path: str) -> Iterator[tuple[int | None, Module]]:
    """The modules that a path fits, with their layers."""
    before, *after = path.split("{layer}", 1)
    number = "(0|[1-9][0-9]*)" + re.escape(after[0]) if after else ""
    pattern = re.compile(re.escape(before) + number)
    for name, module in model.named_modules(remove_duplicate=False):
        if found := pattern.fullmatch(name):
            yield int(found[1]) if after else None, module


@contextlib.contextmanager
def hooked(model: Module, taps: Taps) -> Iterator[dict[str, Array]]:
    """Hooks that put what passes into the dict yielded, by key, in execution order."""
    tensors: dict[str, Array] = {}
    attentions = {} if taps.attention is None else dict(modules_at(model, taps.attention))
    head_dims = {layer: getattr(module, "head_dim", None) for layer, module in attentions.items()}

    recorder = _Recorder(tensors, taps, head_dims)
    put = recorder.put

    def taken(layer: int | None, point: str) -> Callable[..., None]:
        """Of a forward hook (module, inputs, output) or a pre-hook (module, inputs), the last argument."""
        return lambda _module, *passed: put(layer, point, passed[-1])

    with contextlib.ExitStack() as undo:
        for path, point in taps.inputs.items():
            for layer, module in modules_at(model, path):
                undo.callback(module.register_forward_pre_hook(taken(layer, point)).remove)
        for path, point in taps.outputs.items():
            for layer, module in modules_at(model, path):
                undo.callback(module.register_forward_hook(taken(layer, point)).remove)
        if attentions and all(map(_is_eager, attentions.values())):
            undo.enter_context(_showing_operands(model, attentions, put))
        yield tensors


@dataclass
class _Recorder:
    """Keeps what passes; of modules by their paths what is no tensor, or is computed twice, is left out."""

    tensors: dict[str, Array]
    taps: Taps
    head_dims: Mapping[int | None, int | None]
    _twice: set[str] = field(default_factory=set)
    _passed: list[Tensor] = field(default_factory=list)  # of this step, not to be recorded again as somebody's input

    def put(self, layer: int | None, point: str, value: Tensor) -> None:
        """Keep a tensor."""
        key = Site(0, layer, point).key
        if not self.tensors:
            self._passed.clear()
            self._twice.clear()
        if self.taps.names == "hf":
            self._put_path(key, point, value)
        elif key in self.tensors:
            raise UsageError(f"{key} is computed twice in one step: give each module a point of its own")
        else:
            self._keep(key, layer, point, tensor_of(value))

    def _put_path(self, key: str, point: str, value: Tensor) -> None:
        if not _holds_tensor(value) or key in self._twice:
            return
        x = tensor_of(value)
        if point.endswith(".input") and any(x is other for other in self._passed):
            return
        self._passed.append(x)
        if key in self.tensors:
            self._twice.add(key)
            del self.tensors[key]
            return
        site = Site.of_key(key, 0)
        self._keep(key, site.layer, site.point, x)
        if (chosen := _selection(value)) is not None:
            self.tensors[f"{point}.indices"] = _array(chosen)

    def _keep(self, key: str, layer: int | None, point: str, x: Tensor) -> None:
        self.tensors[key] = _array(_canonical(point, x, self.head_dims.get(layer), self.taps.heads_first))


# Attention: rotated queries and keys, the cache, scores and probabilities are in no module's input or output.

_SHOWN: dict[Module, tuple[int | None, Put]] = {}
"""Attention modules that are being recorded, their layers, and where their points go."""


@contextlib.contextmanager
def _showing_operands(model: Module, attentions: Mapping[int | None, Module], put: Put) -> Iterator[None]:
    """Let the model attend by `_attend`. Only its configuration changes: other models go on as they were."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("firstdiff", _attend)
    AttentionMaskInterface.register("firstdiff", eager_mask)
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public way to ask
    with contextlib.ExitStack() as undo:
        undo.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("firstdiff")
        for layer, module in attentions.items():
            undo.callback(_SHOWN.pop, module, None)
            _SHOWN[module] = layer, put
        yield


def _is_eager(module: Module) -> bool:
    """Whether the file that an attention module comes from has the functions that `_attend` calls."""
    home = sys.modules[type(module).__module__]
    return hasattr(home, "eager_attention_forward") and hasattr(home, "repeat_kv")


def _attend(module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: object) -> Attended:
    """Attend by the model's own eager attention; query [1, H, T, D], key and value [1, H_kv, S, D].

    The scores are computed once more, by the operation that the eager attention begins with.
    """
    home = sys.modules[type(module).__module__]
    attended, probabilities = home.eager_attention_forward(module, query, key, value, mask, **options)
    if module in _SHOWN:
        layer, put = _SHOWN[module]
        keys = key.transpose(1, 2)  # [1, S, H_kv, D]
        put(layer, "Qcur_rope", query.transpose(1, 2))  # [1, T, H, D]
        put(layer, "Kcur_rope", keys[:, -query.shape[2] :])
        put(layer, "k_cache", keys)
        put(layer, "v_cache", value.transpose(1, 2))
        put(layer, "kq", torch.matmul(query, home.repeat_kv(key, module.num_key_value_groups).transpose(2, 3)))
        put(layer, "kq_soft_max", probabilities)
    return attended, probabilities


# Values


def tensor_of(value: object) -> Tensor:
    """The tensor that a module returns, alone, first of several, or as the logits of an output."""
    if torch.is_tensor(value):
        return value
    for part in ("logits", "last_hidden_state"):
        if torch.is_tensor(found := getattr(value, part, None)):
            return found
    if isinstance(value, Sequence) and value:
        return tensor_of(value[0])
    raise UsageError(f"a module returned {type(value).__name__} and no tensor: leave it out of names")


def _holds_tensor(value: object) -> bool:
    """Whether :func:`tensor_of` finds a tensor of numbers."""
    try:
        return bool(tensor_of(value).is_floating_point())
    except UsageError:
        return False


def _selection(value: object) -> Tensor | None:
    """The numbers of the experts that a router chose [T, k], where it returns these beside its scores."""
    parts = value if isinstance(value, tuple) else ()
    whole = [x for x in parts if torch.is_tensor(x) and not x.is_floating_point() and x.ndim > 1]
    return whole[0].int() if len(whole) == 1 else None


def _canonical(point: str, x: Tensor, head_dim: int | None, heads_first: frozenset[str]) -> Tensor:
    """A tensor in the axes of its point: without the batch, heads apart and after the tokens."""
    if x.ndim > 2 and x.shape[0] == 1:  # noqa: PLR2004 - [1, T, n]; [T, n] has no batch
        x = x[0]
    if point in heads_first:  # [H, T, D]
        x = x.transpose(0, 1)
    if head_dim is not None and "head_dim" in axes_of(point):
        x = x.reshape(x.shape[0], -1, head_dim)  # [T, H, D]
    return x


def _array(x: Tensor) -> Array:
    """A copy that nothing changes later. numpy has no bfloat16: float32 holds it exactly."""
    x = x.detach()
    x = x.float() if x.dtype == torch.bfloat16 else x
    copied: Array = np.array(x.cpu().numpy(), order="C")
    return copied
