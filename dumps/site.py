"""What is recorded, and when: a site names one tensor of a run, a step says which tokens went in."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from firstdiff.dumps.errors import TraceError, shown

MAX_KEY = 256  # characters; the longest module path seen in transformers has about 90
MAX_TOKEN = 2**31 - 1  # llama_token and llama_pos are int32

# Canonical numbers only ("-3", not "-03"), so that a key read and printed again is the same key.
_SITE = re.compile(r"(?P<point>.+?)(?:-(?P<layer>0|[1-9][0-9]{0,5}))?(?:@(?P<step>0|[1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True, order=False)
class Site:
    """A point at a layer and a step.

    Parameters
    ----------
    step
        The forward pass: 0 is the prompt, each later step decodes.
    layer
        The block's number, or None for a point outside the blocks.
    point
        The name of the intermediate, such as ``Kcur_rope``, or any name of a foreign engine.

    Raises
    ------
    TraceError
        If the parts would not be read back from the printed site.
    """

    step: int
    layer: int | None
    point: str

    def __post_init__(self) -> None:
        if not _reads_back(self.step, self.layer, self.point):
            raise TraceError(
                f"{shown(self.point)} at layer {self.layer}, step {self.step} is no site: a point outside "
                f"the layers must not end in '-N' or '@N', and layer and step count from 0"
            )

    @property
    def key(self) -> str:
        """The tensor's name within its step: ``Kcur_rope-3``, ``result_norm``."""
        return self.point if self.layer is None else f"{self.point}-{self.layer}"

    def __str__(self) -> str:
        return f"{self.key}@{self.step}" if self.step else self.key

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a printed site.

        ``Kcur_rope-3@1`` is point ``Kcur_rope`` at layer 3 of step 1; without ``@`` the step is 0. A name
        that does not end in a layer is a point outside the layers, so every foreign name is a site as well.

        Raises
        ------
        TraceError
            If the text is empty, longer than 256 characters, not printable or holds a path separator.
        """
        check_key(text)
        point, layer, step = _parts(text)
        return cls(step, layer, point)

    @classmethod
    def of_key(cls, key: str, step: int) -> Site:
        """Return the site of a tensor's name (``point`` or ``point-layer``, never with ``@``) at a step."""
        check_key(key)
        point, layer, _ = _parts(key)
        if (site := cls(step, layer, point)).key != key:
            raise TraceError(f"the name {shown(key)} ends in '@N', which stands for a step: rename the tensor")
        return site


def as_site(given: Site | str | tuple[Any, ...]) -> Site:
    """Return the site that a person means: itself, its printed name, or (point, layer) or (point, layer, step).

    Raises
    ------
    TraceError
        For anything else.

    Examples
    --------
    >>> print(as_site("Kcur_rope-3@1"), as_site(("Kcur_rope", 3)), as_site(("result_norm", None, 1)))
    Kcur_rope-3@1 Kcur_rope-3 result_norm@1
    """
    match given:
        case Site():
            return given
        case str():
            return Site.parse(given)
        case (str() as point, int() | None as layer):
            return Site(0, layer, point)
        case (str() as point, int() | None as layer, int() as step):
            return Site(step, layer, point)
    raise TraceError(f"{shown(given)} is no site: write 'Kcur_rope-3', or give point, layer and step")


@lru_cache(maxsize=1 << 16)  # a run names each of some thousands of sites many times
def _reads_back(step: int, layer: int | None, point: str) -> bool:
    """Whether a site of these parts, printed, would be read as the same site."""
    key = point if layer is None else f"{point}-{layer}"
    check_key(key)
    return step >= 0 and _parts(f"{key}@{step}" if step else key) == (point, layer, step)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: the tokens that went in and the position of each.

    Raises
    ------
    TraceError
        If there are no tokens, the lengths differ, or a number is no integer from 0 to 2**31 - 1.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", whole_numbers(self.tokens, "token"))
        object.__setattr__(self, "positions", whole_numbers(self.positions, "position"))
        if not self.tokens:
            raise TraceError("a step needs at least one token, and this one has none")
        if len(self.tokens) != len(self.positions):
            raise TraceError(
                f"{len(self.tokens)} tokens but {len(self.positions)} positions: give one position for each token"
            )


def whole_numbers(values: object, what: str) -> tuple[int, ...]:
    """Return `values` as Python integers from 0 to 2**31 - 1; numpy integers are welcome, bools are not."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TraceError(f"{what}s must be a list of integers, not {shown(values)}")
    numbers = []
    for index, value in enumerate(values):
        try:
            number = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = -1
        if not 0 <= number <= MAX_TOKEN:
            raise TraceError(f"{what} {index} is {shown(value)}: it must be an integer from 0 to {MAX_TOKEN:,}")
        numbers.append(number)
    return tuple(numbers)


def check_key(key: object) -> None:
    """Refuse a name that a terminal, a file system or a report could stumble over."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise TraceError(f"the name {shown(key)} must be a text of 1 to {MAX_KEY} characters")
    if key == "__metadata__":
        raise TraceError("the name '__metadata__' is reserved by safetensors: rename the tensor")
    if not key.isprintable() or "/" in key or "\\" in key:
        raise TraceError(f"the name {shown(key)} holds a control character or a path separator: rename the tensor")


def _parts(text: str) -> tuple[str, int | None, int]:
    """Split a printed site into point, layer and step."""
    found = _SITE.fullmatch(text)
    assert found is not None  # any printable text matches, as a point at least
    layer = found["layer"]
    return found["point"], None if layer is None else int(layer), int(found["step"] or 0)
