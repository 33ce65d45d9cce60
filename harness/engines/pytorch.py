"""Recording from PyTorch: a prompt and greedy decode steps run through a model, its intermediates kept.

For a model of transformers that is known by family, every point of the design is recorded; for any other module
those that a table of names asks for.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from firstdiff.dumps import Site, Step, Trace, TraceWriter, open_trace
from firstdiff.dumps.site import whole_numbers
from firstdiff.engines.pytorch_families import FAMILIES, Taps, taps_of
from firstdiff.engines.pytorch_hooks import Array, Module, Tensor, hooked, modules_at, tensor_of
from firstdiff.errors import UsageError
from firstdiff.model.architecture_names import architecture_named

if TYPE_CHECKING:
    import os

Keep = Callable[[Step, dict[str, Array]], object]

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
        A causal language model of transformers, or any module that takes token
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
        with TraceWriter(out, engine=engine, model=described, names=taps.names) as writer:
            _run(model, taps, prompt, decode, writer.step)
        return open_trace(out)
    steps: list[Step] = []
    held: dict[Site, Array] = {}

    def keep(step: Step, tensors: dict[str, Array]) -> None:
        held.update((Site.of_key(key, len(steps)), x) for key, x in tensors.items())
        steps.append(step)

    _run(model, taps, prompt, decode, keep)
    return Trace.from_arrays(steps, held, engine=engine, model=described, names=taps.names)


def _run(model: Module, taps: Taps, prompt: Sequence[int], decode: int, keep: Keep) -> None:
    """Run the steps; `keep` is given the tensors of each by key as soon as it is done."""
    tokens, past, position = tuple(prompt), None, 0
    name = _cache_name(model)
    with torch.no_grad(), _evaluating(model), hooked(model, taps) as tensors:
        for index in range(1 + decode):
            ids = torch.tensor([tokens], device=_first_parameter(model).device)  # [1, T]
            cache = {} if name is None else {name: past, "use_cache": True}
            output = model(ids, **cache)
            keep(Step(tokens, tuple(range(position, position + len(tokens)))), dict(tensors))
            tensors.clear()
            position += len(tokens)
            if index < decode:
                tokens = (int(tensor_of(output).flatten(0, -2)[-1].argmax()),)
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


# What the model is


def _taps(model: Module, names: Mapping[str, str] | None) -> Taps:
    """Where to tap a model, every path checked to fit some module."""
    if names is None:
        family = _family(model)
        if family not in FAMILIES and not _is_theirs(model):
            raise UsageError(
                f"{type(model).__name__} is no model of transformers: give names, such as "
                '{"h.{layer}.attn": "attn_out"}'
            )
        taps = FAMILIES[family] if family in FAMILIES else taps_of(model)
    else:
        taps = Taps(names)
    for path, point in {**taps.inputs, **taps.outputs}.items():
        found = [layer for layer, _ in modules_at(model, path)]
        if not found:
            raise UsageError(f"{type(model).__name__} has no module {path!r}: give names with paths that it has")
        for layer in found:
            Site(0, layer, point)  # refuses what is no point
    return taps


def _is_theirs(model: Module) -> bool:
    """Whether a model is one of transformers'."""
    theirs = sys.modules.get("transformers")
    return theirs is not None and isinstance(model, theirs.PreTrainedModel)


def _family(model: Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


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
    sizes = [getattr(module, "num_embeddings", None) for path in paths for _, module in modules_at(model, path)]
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
    theirs, is_theirs = sys.modules.get("transformers"), _is_theirs(model)
    engine = {
        "name": "transformers" if is_theirs else "torch",
        "version": theirs.__version__ if is_theirs and theirs else torch.__version__,
        "backend": f"{weight.device.type}/{dtype}",
    }
    if dtype in ARITHMETIC:
        engine["arithmetic"] = ARITHMETIC[dtype]
    return engine
