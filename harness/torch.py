"""Recording from PyTorch: hooks on a model's modules, and an attention that shows its operands.

For a model of transformers that is known by family, every point of the design is recorded; for any other module
those that a table of names asks for.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Step, Trace, TraceWriter, open_trace
from firstdiff.dumps.points import axes_of
from firstdiff.dumps.site import whole_numbers
from firstdiff.errors import UsageError
from firstdiff.model.architecture_names import architecture_named

try:
    import torch
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "firstdiff.torch records from PyTorch, which is not installed: pip install 'firstdiff[torch]'", name="torch"
    ) from None

if TYPE_CHECKING:
    import os

Array = npt.NDArray[Any]
Module = Any  # torch.nn.Module: torch's types are there only where torch is installed
Tensor = Any  # torch.Tensor
Attended = tuple[Tensor, Tensor]  # [1, T, H, D], and the probabilities [1, H, T, S]
Keep = Callable[[Step, dict[str, Array]], object]
Put = Callable[[int | None, str, Tensor], None]

ATTENTION = "model.layers.{layer}.self_attn"

OUTPUTS = {
    "model.embed_tokens": "embd",
    "model.layers.{layer}.input_layernorm": "attn_norm",
    f"{ATTENTION}.q_proj": "Qcur",
    f"{ATTENTION}.k_proj": "Kcur",
    f"{ATTENTION}.v_proj": "Vcur",
    f"{ATTENTION}.o_proj": "attn_out",
    "model.layers.{layer}.post_attention_layernorm": "ffn_norm",
    "model.layers.{layer}.mlp.gate_proj": "ffn_gate",
    "model.layers.{layer}.mlp.up_proj": "ffn_up",
    "model.layers.{layer}.mlp.down_proj": "ffn_out",
    "model.layers.{layer}": "l_out",
    "model.norm": "result_norm",
    "": "result_output",  # the model itself: logits after whatever follows the last product
}
"""What modules return, by their path: the llama family, from which the others differ by a few lines."""

INPUTS = {
    f"{ATTENTION}.o_proj": "kqv_out",
    "model.layers.{layer}.post_attention_layernorm": "ffn_inp",
    "model.layers.{layer}.mlp.down_proj": "ffn_swiglu",
}
"""What modules are given, where no module of its own computes it."""

NORMED = {f"{ATTENTION}.q_norm": "Qcur_normed", f"{ATTENTION}.k_norm": "Kcur_normed"}


@dataclass(frozen=True, slots=True)
class Taps:
    """Where a model is tapped: paths of modules, with ``{layer}`` for the block's number, and their points.

    Parameters
    ----------
    outputs, inputs
        Points that are a module's output, and a module's first input.
    attention
        Path of the attention modules, if these can show their operands.
    heads_first
        Points whose tensors come as [1, H, T, D].
    """

    outputs: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    attention: str | None = None
    heads_first: frozenset[str] = frozenset()


_LLAMA = Taps(OUTPUTS, INPUTS, ATTENTION)
FAMILIES: dict[str, Taps] = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
    "qwen3": Taps({**OUTPUTS, **NORMED}, INPUTS, ATTENTION),
    "gemma3_text": Taps(
        {
            **OUTPUTS,
            **NORMED,
            "model.layers.{layer}.post_attention_layernorm": "attn_post_norm",
            "model.layers.{layer}.pre_feedforward_layernorm": "ffn_norm",
            "model.layers.{layer}.post_feedforward_layernorm": "ffn_post_norm",
        },
        {
            f"{ATTENTION}.o_proj": "kqv_out",
            "model.layers.{layer}.pre_feedforward_layernorm": "ffn_inp",
            "model.layers.{layer}.mlp.down_proj": "ffn_geglu",
        },
        ATTENTION,
        heads_first=frozenset(NORMED.values()),
    ),
}
"""By `config.model_type`. The paths are those of transformers 5, models/*/modeling_*.py."""

ARITHMETIC = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def record(
    model: Module,
    tokens: Sequence[int] | Tensor,
    *,
    decode: int = 0,
    out: str | os.PathLike[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Trace:
    """Run a prompt and greedy decode steps through a PyTorch model and record its intermediates.

    A model of transformers runs with its eager attention, which computes what its faster ones do, in the open; its
    attention, its mode and its hooks are as before when the run ends, however it ends. Q and K keep the order of
    dimensions that transformers rotates by halves, which judging finds from the numbers. bfloat16 is widened to
    float32, which is exact; every other dtype is kept.

    Parameters
    ----------
    model
        A causal language model of transformers (llama, mistral, qwen2, qwen3, gemma3), or any module that takes token
        ids [1, T], and ``past_key_values`` (or ``cache``) and ``use_cache`` if it is to decode.
    tokens
        Token ids of the prompt, [T] or [1, T].
    decode
        Steps to decode greedily after the prompt, through the KV cache.
    out
        The folder to write the trace to, step by step; None keeps it in memory.
    names
        What to record in place of a family's points: path of a module, with ``{layer}`` for the block's number
        (``h.{layer}.attn``; ``""`` is the model itself), and the point that its output is. The batch is dropped, the
        shape is otherwise the module's.

    Returns
    -------
    The trace, its sites in execution order.

    Raises
    ------
    UsageError
        Where the model is of no known family and `names` is None, a path fits no module, a token is not in the
        vocabulary, the prompt is empty or a batch, or the model has no cache to decode with.
    TraceError
        Where a name is no point, a token is no number, or the folder cannot be written. Steps that were written
        before an error stay readable.
    """
    taps = _taps(model, names)
    prompt = _prompt(model, tokens, taps)
    if decode < 0:
        raise UsageError(f"decode is {decode}: give 0 or the number of steps to decode after the prompt")
    if decode and _cache_name(model) is None:
        raise UsageError(
            f"{type(model).__name__}.forward takes no 'past_key_values', and decoding goes through the KV cache: "
            "leave decode at 0"
        )
    engine = _engine(model)
    family = _family(model)
    architecture = None if family is None else architecture_named(family)
    described = {"class": type(model).__name__, "architecture": architecture}
    if out is not None:
        with TraceWriter(out, engine=engine, model=described) as writer:
            _run(model, taps, prompt, decode, writer.step)
        return open_trace(out)
    steps: list[Step] = []
    held: dict[Site, Array] = {}

    def keep(step: Step, tensors: dict[str, Array]) -> None:
        held.update((Site.of_key(key, len(steps)), x) for key, x in tensors.items())
        steps.append(step)

    _run(model, taps, prompt, decode, keep)
    return Trace.from_arrays(steps, held, engine=engine, model=described)


def _run(model: Module, taps: Taps, prompt: Sequence[int], decode: int, keep: Keep) -> None:
    """Run the steps; `keep` is given the tensors of each by key as soon as it is done."""
    tokens, past, position = tuple(prompt), None, 0
    name = _cache_name(model)
    with torch.no_grad(), _evaluating(model), _hooked(model, taps) as tensors:
        for index in range(1 + decode):
            ids = torch.tensor([tokens], device=_first_parameter(model).device)  # [1, T]
            cache = {} if name is None else {name: past, "use_cache": True}
            output = model(ids, **cache)
            keep(Step(tokens, tuple(range(position, position + len(tokens)))), dict(tensors))
            tensors.clear()
            position += len(tokens)
            if index < decode:
                tokens = (int(_tensor_of(output).flatten(0, -2)[-1].argmax()),)
                past = getattr(output, name or "", None)
                if past is None:
                    raise UsageError(f"{type(model).__name__} returns no 'past_key_values': leave decode at 0")


@contextlib.contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Without dropout and the like; every module is in its own mode again afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def _hooked(model: Module, taps: Taps) -> Iterator[dict[str, Array]]:
    """Hooks that put what passes into the dict yielded, by key, in execution order."""
    tensors: dict[str, Array] = {}
    attentions = {} if taps.attention is None else dict(_modules(model, taps.attention))
    head_dims = {layer: getattr(module, "head_dim", None) for layer, module in attentions.items()}

    def put(layer: int | None, point: str, value: Tensor) -> None:
        key = Site(0, layer, point).key
        if key in tensors:
            raise UsageError(f"{key} is computed twice in one step: give each module a point of its own")
        tensors[key] = _array(_canonical(point, _tensor_of(value), head_dims.get(layer), taps.heads_first))

    def taken(layer: int | None, point: str) -> Callable[..., None]:
        """Of a forward hook (module, inputs, output) or a pre-hook (module, inputs), the last argument."""
        return lambda _module, *passed: put(layer, point, passed[-1])

    with contextlib.ExitStack() as undo:
        for path, point in taps.inputs.items():
            for layer, module in _modules(model, path):
                undo.callback(module.register_forward_pre_hook(taken(layer, point)).remove)
        for path, point in taps.outputs.items():
            for layer, module in _modules(model, path):
                undo.callback(module.register_forward_hook(taken(layer, point)).remove)
        if attentions and all(map(_is_eager, attentions.values())):
            undo.enter_context(_showing_operands(model, attentions, put))
        yield tensors


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


def _tensor_of(value: object) -> Tensor:
    """The tensor that a module returns, alone, first of several, or as the logits of an output."""
    if torch.is_tensor(value):
        return value
    for part in ("logits", "last_hidden_state"):
        if torch.is_tensor(found := getattr(value, part, None)):
            return found
    if isinstance(value, Sequence) and value:
        return _tensor_of(value[0])
    raise UsageError(f"a module returned {type(value).__name__} and no tensor: leave it out of names")


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


# What the model is


def _taps(model: Module, names: Mapping[str, str] | None) -> Taps:
    """Where to tap a model, every path checked to fit some module."""
    if names is None:
        if (family := _family(model)) not in FAMILIES:
            raise UsageError(
                f"{type(model).__name__} (model type {family!r}) is of no known family ({', '.join(FAMILIES)}): "
                'give names, such as {"h.{layer}.attn": "attn_out"}'
            )
        taps = FAMILIES[family]
    else:
        taps = Taps(names)
    for path, point in {**taps.inputs, **taps.outputs}.items():
        found = [layer for layer, _ in _modules(model, path)]
        if not found:
            raise UsageError(f"{type(model).__name__} has no module {path!r}: give names with paths that it has")
        for layer in found:
            Site(0, layer, point)  # refuses what is no point
    return taps


def _family(model: Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def _modules(model: Module, path: str) -> Iterator[tuple[int | None, Module]]:
    """The modules that a path fits, with their layers."""
    before, *after = path.split("{layer}", 1)
    number = "(0|[1-9][0-9]*)" + re.escape(after[0]) if after else ""
    pattern = re.compile(re.escape(before) + number)
    for name, module in model.named_modules(remove_duplicate=False):
        if found := pattern.fullmatch(name):
            yield int(found[1]) if after else None, module


def _prompt(model: Module, tokens: object, taps: Taps) -> tuple[int, ...]:
    """The prompt's tokens, each checked to be in the vocabulary where the model shows it."""
    values = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if isinstance(values, list | tuple) and values and isinstance(values[0], list | tuple):
        if len(values) > 1:
            raise UsageError(f"tokens hold a batch of {len(values)} prompts: give the tokens of one")
        values = values[0]
    prompt = whole_numbers(values, "token")
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token")
    paths = [path for path, point in taps.outputs.items() if point == "embd"]
    sizes = [getattr(module, "num_embeddings", None) for path in paths for _, module in _modules(model, path)]
    for size in filter(None, sizes):
        for index, token in enumerate(prompt):
            if token >= size:
                raise UsageError(f"token {index} is {token}: the model's vocabulary has {size:,} tokens, from 0 on")
    return prompt


def _cache_name(model: Module) -> str | None:
    """What a model calls its cache: transformers has had both names."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache") if name in taken), None)


def _first_parameter(model: Module) -> Tensor:
    """What stands for the model's device and dtype."""
    return next(model.parameters(), torch.empty(0))


def _engine(model: Module) -> dict[str, Any]:
    """What the trace says of the engine."""
    weight = _first_parameter(model)
    dtype = str(weight.dtype).removeprefix("torch.")
    theirs = sys.modules.get("transformers")
    is_theirs = theirs is not None and isinstance(model, theirs.PreTrainedModel)
    engine = {
        "name": "transformers" if is_theirs else "torch",
        "version": theirs.__version__ if is_theirs and theirs else torch.__version__,
        "backend": f"{weight.device.type}/{dtype}",
    }
    if dtype in ARITHMETIC:
        engine["arithmetic"] = ARITHMETIC[dtype]
    return engine
