"""JSON as the standard has it, from files that nobody vouches for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from firstdiff.dumps.errors import TraceError, shown

# 600 sites of a step make a header of 80 KB. JSON grows some twenty times when parsed, so this also bounds
# what a hostile file can make us allocate.
MAX_JSON = 8 * 2**20


def parse_object(raw: bytes, where: str, *, most: int = MAX_JSON) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    raw
        UTF-8 text.
    where
        What the text is, path first: the start of an error message.
    most
        Bytes that are read.

    Raises
    ------
    TraceError
        If the text is no JSON object, repeats a key, holds NaN or half a surrogate pair, or nests too deep.
    """
    if len(raw) > most:
        raise TraceError(f"{where} has {len(raw):,} bytes, and at most {most:,} are read")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could not be printed later
    except RecursionError:
        raise TraceError(f"{where} is nested too deep to be read") from None
    except ValueError as error:
        raise TraceError(f"{where} is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where} must be a JSON object, not {shown(value)}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a repeated key, of which json would silently keep the last."""
    built = dict(pairs)
    if len(built) < len(pairs):
        again, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {shown(again)} comes twice")
    return built


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
