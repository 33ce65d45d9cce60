"""Records of ours built from JSON: each value must have the type of its field, and what has not is named."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from firstdiff.dumps import Site, TraceError
from firstdiff.dumps.errors import shown

Record = TypeVar("Record")


class UnfitError(ValueError):
    """A value that cannot be: where in the record, and what is wrong."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where.lstrip('.') or 'the record'} {what}")


def record_of(path: Path, kind: type[Record], told: dict[str, Any]) -> Record:
    """Build a record of what a file of ours says of it.

    Raises
    ------
    TraceError
        In one line, for a value that cannot be.
    """
    try:
        made: Record = record(kind, told, "")
    except RecursionError:
        raise TraceError(f"{path}: is nested too deep to be read") from None
    except UnfitError as e:
        raise TraceError(f"{path}: {e}: the file was edited or damaged") from None
    return made


def _value(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - any type, any JSON value
    """Give a JSON value the type of a field."""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (inner,) = (k for k in of if k is not NoneType)
        return None if value is None else _value(inner, value, where)
    if origin is tuple:
        return _tuple(of, value, where)
    if origin is dict:
        told = [(k, v, f"{where}.{short(k)}") for k, v in _typed(dict, value, where).items()]
        return {_value(of[0], k, at): _value(of[1], v, at) for k, v, at in told}
    return value if kind is Any else _plain(kind, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401 - any JSON value
    if kind is Site:
        return _site(value, where)
    if is_dataclass(kind):
        spare = where.startswith((".logits[", ".counter_check", ".sites["))
        return record(kind, _typed(dict, value, where), where, spare=spare)
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            raise UnfitError(where, f"is {shown(value)}, and is one of {', '.join(kind)}")
        return kind(value)
    return _number(value, where) if kind is float else _typed(kind, value, where)


def _site(value: Any, where: str) -> Site:  # noqa: ANN401 - any JSON value
    text: str = _typed(str, value, where)
    try:
        return Site.parse(text)
    except TraceError as e:
        raise UnfitError(where, f"is no site: {e}") from None


def record(kind: Any, told: dict[str, Any], where: str, *, spare: bool = False) -> Any:  # noqa: ANN401 - a record
    """Build a record; with `spare`, it may hold more than the fields, such as what follows from them."""
    hints, names = get_type_hints(kind), {f.name for f in fields(kind)}
    unknown = [name for name in told if name not in names]
    if unknown and not spare:
        raise UnfitError(where, f"has a key {shown(unknown[0])} that nothing is known of")
    for f in fields(kind):
        if f.name not in told and f.default is MISSING and f.default_factory is MISSING:
            raise UnfitError(where, f"lacks '{f.name}'")
    return kind(**{n: _value(hints[n], v, f"{where}.{n}") for n, v in told.items() if n in names})


def _tuple(of: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401 - any JSON value
    items = _typed(list, value, where)
    kinds = [of[0]] * len(items) if of[1:] == (...,) else list(of)
    if len(items) != len(kinds):
        raise UnfitError(where, f"must hold {len(kinds)} values, and holds {len(items)}")
    return tuple(_value(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, items, strict=True)))


def _typed(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401 - any JSON value
    if type(value) is not kind:
        names = {dict: "an object", list: "a list", int: "a whole number", str: "a text", bool: "true or false"}
        raise UnfitError(where, f"must be {names[kind]}, and is {shown(value)}")
    return value


def _number(value: Any, where: str) -> float:  # noqa: ANN401 - any JSON value
    """A number; those that JSON does not have stand as texts."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if type(value) not in (int, float):
        raise UnfitError(where, f"must be a number, and is {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise UnfitError(where, f"must be a number that float64 holds, and is {shown(value)}")
    return number


# What must fit together.


def short(key: str) -> str:
    """A key as a message names it: on one line, and short."""
    return shown(key)[1:-1]
