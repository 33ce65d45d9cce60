"""trace.json: what a run says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.site import Step, check_key, whole_numbers
from firstdiff.dumps.strict_json import MAX_JSON, parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = "firstdiff-trace"
VERSION = 1
MANIFEST = "trace.json"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is recorded about one step; None where the manifest does not say."""

    tokens: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    order: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of trace.json; `steps` is None in a folder without one."""

    engine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Recorded, ...] | None = None
    complete: bool = True
    names: str | dict[str, str] | None = None
    layouts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: tuple[Any, ...] | None = None  # as they stand there; `firstdiff.dumps.listed_files` checks them


def read_manifest(path: Path) -> Manifest:
    """Read trace.json, or raise TraceError with the part that is wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON + 1)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """Check the text of trace.json part by part; `path` is where it is, or will be."""
    table = parse_object(raw, str(path))
    try:
        return _manifest(table)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _manifest(table: dict[str, Any]) -> Manifest:
    # A foreign manifest may hold nothing but its steps' tokens. Other keys are the engine's own business.
    if (found := table.get("format", FORMAT)) != FORMAT:
        raise TraceError(f"format {shown(found)} is not read: only {FORMAT!r} is")
    version = table.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise TraceError(f"version {shown(version)} of the format is not read: this firstdiff reads {VERSION}")
    complete = table.get("complete", True)
    if not isinstance(complete, bool):
        raise TraceError(f"'complete' must be true or false, not {shown(complete)}")
    steps = table.get("steps")
    order = _order(table.get("order"))
    if steps is not None and not isinstance(steps, list):
        raise TraceError(f"'steps' must be a list, not {shown(steps)}")
    return Manifest(
        engine=_object(table, "engine"),
        model=_object(table, "model"),
        steps=None if steps is None else tuple(_recorded(i, step, order) for i, step in enumerate(steps)),
        complete=complete,
        names=_names(table.get("names")),
        layouts=_layouts(_object(table, "layouts")),
        tensors=_tensors(table.get("tensors")),
    )


def _recorded(index: int, step: object, order: tuple[str, ...] | None) -> Recorded:
    if not isinstance(step, dict):
        raise TraceError(f"step {index} must be an object with 'tokens', not {shown(step)}")
    tokens, positions = step.get("tokens"), step.get("positions")
    try:
        said = Recorded(
            None if tokens is None else whole_numbers(tokens, "token"),
            None if positions is None else whole_numbers(positions, "position"),
            _order(step["order"]) if "order" in step else order,
        )
        if said.tokens is not None:  # checks the two together
            Step(said.tokens, said.tokens if said.positions is None else said.positions)
    except TraceError as error:
        raise TraceError(f"step {index}: {error}") from None
    return said


def _order(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        raise TraceError(f"'order' must be a list of tensor names, not {shown(value)}")
    return tuple(value)


def _tensors(value: object) -> tuple[Any, ...] | None:
    if isinstance(value, dict):  # {"their.3.q": {"file": …}}
        return tuple({"name": name, **entry} if isinstance(entry, dict) else entry for name, entry in value.items())
    if value is not None and not isinstance(value, list):
        raise TraceError(f"'tensors' must be a list, not {shown(value)}")
    return None if value is None else tuple(value)


def _object(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TraceError(f"{key!r} must be an object, not {shown(value)}")
    return value


def _names(value: object) -> str | dict[str, str] | None:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else [*value, *value.values()] if isinstance(value, dict) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise TraceError(f"'names' must be a convention's name or a table of names, not {shown(value)}")
        check_key(text)
    return value if isinstance(value, str) else {**value}  # type: ignore[dict-item]


def _layouts(table: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    for point, axes in table.items():
        check_key(point)
        if not isinstance(axes, list) or not axes or not all(isinstance(axis, str) for axis in axes):
            raise TraceError(f"the layout of {shown(point)} must be a list of axis names, not {shown(axes)}")
        for axis in axes:
            check_key(axis)
        if len(set(axes)) < len(axes):
            raise TraceError(f"the layout of {shown(point)} names an axis twice: {shown(axes)}")
    return {point: tuple(axes) for point, axes in table.items()}


def manifest_text(manifest: Manifest) -> bytes:
    """Return trace.json, one line a part. The sites' order stands once, and in steps that differ."""
    steps = manifest.steps or ()
    order = steps[0].order if steps else None
    parts: Mapping[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "engine": manifest.engine,
        "model": manifest.model,
        "complete": manifest.complete,
        "names": manifest.names,
        "layouts": manifest.layouts,
        "steps": [_step_object(step, order) for step in steps],
        "order": order,
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(part, allow_nan=False)}" for key, part in parts.items())
    return f"{{\n{lines}\n}}\n".encode()


def _step_object(step: Recorded, order: Sequence[str] | None) -> dict[str, object]:
    written: dict[str, object] = {"tokens": step.tokens, "positions": step.positions}
    if step.order != order:
        written["order"] = step.order
    return written


def with_step(manifest: Manifest, step: Recorded) -> Manifest:
    """Return the manifest with one more step."""
    return replace(manifest, steps=(*(manifest.steps or ()), step))
