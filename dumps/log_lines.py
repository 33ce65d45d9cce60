"""One line of a log: the numbers printed in it, and of what they are.

Every quantifier is bounded and a line has at most 10,000 characters, so reading one takes bounded time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from firstdiff.dumps.patterns import NUMBERS, Patterns, spaced, words

_OPENED = re.compile(r"[\s:=]*[\[(]")

MOST_VALUES = 256  # of a list of first values; people print 3 to 20
_MOST_MATCHES = 64  # in one line; seven statistics of each of a handful of tensors
_HEAD = 300  # characters ahead of a value in which its name is looked for

NUMBER = r"[-+]?(?:(?:\d{1,40}+(?:\.\d{0,40}+)?|\.\d{1,40}+)(?:[eE][-+]?\d{1,4}+)?|(?:nan|inf(?:inity)?))(?!\w|\.\d)"
_NUMBER = re.compile(NUMBER, re.IGNORECASE)
_NEXT = re.compile(r"[\s,;]{0,12}+(" + NUMBER + ")", re.IGNORECASE)
_PAIR = re.compile(r"[\[(]?\s{0,4}(" + NUMBER + r")\s{0,4}(?:,|\.\.|/|;|to\b|\s)\s{0,4}(" + NUMBER + ")", re.IGNORECASE)
_TOP = re.compile(r"[\s,;\[]{0,6}+\(?\s?(\d{1,9}+)\s?[,:=(]\s{0,4}(" + NUMBER + r")\s?\)?", re.IGNORECASE)
_TOP_HEAD = re.compile(
    r"(?<![\w])top(?:[ _-]?\d{1,4})?(?:[ _-](?:logits?|tokens?|ids?|k))?\s{0,4}[:=]\s{0,4}(?=[\[(]|\d)", re.IGNORECASE
)
_BARE = re.compile(r"[:=]\s{0,4}(?:(?:tensor|array)\()?\[{1,4}(?=\s{0,12}" + NUMBER + ")", re.IGNORECASE)
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]{0,64}[ -/]{0,2}[@-~]|\][^\x07\x1b]{0,300}(?:\x07|\x1b\\)|[@-Z\\^_])")
_FIELD = re.compile(r"(?<!\w)([A-Za-z_]{1,40})\s{0,2}=\s{0,2}([^\s=]{1,80})")
_DELIMITERS = re.compile(r"(::|[\[\]|>{}:]|\s[-–—]\s)")
_SUFFIX = re.compile(r"(?<=[A-Za-z)])-(\d{1,6})(?![\w.])")
_SHORT_LAYER = re.compile(r"(?<![A-Za-z0-9_])L(\d{1,4})(?![A-Za-z0-9])")
_AT_STEP = re.compile(r"(?<=[\w)])@(\d{1,6})(?![\w.])")


@dataclass(frozen=True, slots=True)
class Printed:
    """A number as it was printed, and half a unit of its last printed digit."""

    value: float
    resolution: float

    @classmethod
    def of(cls, text: str) -> Printed:
        """Read a number that :data:`NUMBER` matches."""
        value = float(text)
        mantissa, _, exponent = text.lower().partition("e")
        if not math.isfinite(value):
            return cls(value, 0.0)
        power = int(exponent or 0) - len(mantissa.partition(".")[2])
        return cls(value, 0.5 * 10.0 ** max(-400, min(power, 300)))


@dataclass(frozen=True, slots=True)
class Head:
    """What a text says of the values behind it; `name` is what is left of it, `point` what that means."""

    name: str
    point: str | None
    layer: int | None
    step: int | None


@dataclass(frozen=True, slots=True)
class Values:
    """Values printed of one tensor, with the text ahead of them."""

    head: str
    numbers: dict[str, Printed] = field(default_factory=dict)
    lists: dict[str, tuple[Printed, ...]] = field(default_factory=dict)
    top: tuple[tuple[int, Printed], ...] = ()


def cleaned(line: str) -> str:
    """`line` without colour codes, its minus signs as ASCII has them."""
    return _ESCAPES.sub("", line).replace("\u2212", "-").replace("\xa0", " ")


class LineReader:
    """Finds values in lines, by the words of `patterns`."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        plain = {s: f for s, f in patterns.statistics.items() if f in NUMBERS}
        listed = {s: f for s, f in patterns.statistics.items() if f not in NUMBERS}
        separator = r"\s{0,6}+[:=]{0,2}+\s{0,12}+"
        self._values = re.compile(
            rf"(?<![\w.-])(?:(?P<pair>{_any(patterns.pairs)}){separator}(?=[\[(]?\s{{0,4}}[-+.\dni])"
            rf"|(?P<number>{_any(plain)}){separator}(?P<value>{NUMBER})"
            rf"|(?P<list>{_any(listed)})(?:[ _-]?\d{{1,4}}(?![\d.]))?(?:[ _-](?:values?|elements?|items?|elems?))?"
            rf"{separator}(?:(?:tensor|array)\()?\[{{0,4}}(?=\s{{0,12}}{NUMBER}))"
            rf"|\[(?P<slice>:\d{{1,4}}|-\d{{1,4}}:)\]{separator}(?:(?:tensor|array)\()?\[{{0,4}}(?=\s{{0,12}}{NUMBER})",
            re.IGNORECASE,
        )
        layer, step = _any(patterns.layer), _any(patterns.step)
        number = r"[\s_.:=#\[(-]{0,3}(\d{1,6})(?!\.?\d)(?:\s?/\s?\d{1,6})?"
        self._layer = re.compile(rf"(?<![A-Za-z0-9])(?:{layer}){number}", re.IGNORECASE)
        self._step = re.compile(rf"(?<![A-Za-z0-9])(?:{step}){number}", re.IGNORECASE)

    def values(self, line: str) -> list[Values]:
        """The values of a line, one entry for each tensor that it names; a last value cut off is the caller's."""
        for form in self.patterns.forms:
            found = form.match(spaced(line))
            if found is not None and (values := self._of_form(found)) is not None:
                return [values]
        if top := _TOP_HEAD.search(line):
            pairs = tuple((int(m[1]), Printed.of(m[2])) for m in _run(_TOP, line, top.end()))
            return [Values("logits", top=pairs)] if pairs else []
        return self._by_words(line)

    def numbers(self, text: str) -> tuple[Printed, ...]:
        """The numbers that a text begins with."""
        return _numbers(text, 0)[0]

    def head(self, text: str) -> Head:
        """Read layer, step and name from the text ahead of values."""
        text = _FIELD.sub(self._field, text[-_HEAD:])
        text, step = _taken(self._step, text)
        if step is None:
            text, step = _taken(_AT_STEP, text)
        for pattern in (self._layer, _SUFFIX, _SHORT_LAYER):
            text, layer = _taken(pattern, text)
            if layer is not None:
                break
        segments = _DELIMITERS.split(text)
        whole = self._name(" ".join(segments[0::2]))
        if not self.patterns.other & set(whole.split()):
            for start in range(0, len(segments), 2):
                name = self._name(" ".join(segments[start::2]))
                if name in self.patterns.points:
                    return Head(name, self.patterns.points[name], layer, step)
        return Head(whole, None, layer, step)

    def _by_words(self, line: str) -> list[Values]:
        found: list[Values] = []
        end = 0
        for match in islice(self._values.finditer(line), _MOST_MATCHES):
            if match.start() < end:
                continue  # inside of a list
            gap = line[end : match.start()]
            if not found or self.head(gap).point is not None:
                found.append(Values(gap if not found else self._with_layer(found[0].head, gap)))
            end = self._take(found[-1], match, line)
        if not found and (bare := _BARE.search(line)) is not None:
            listed = _numbers(line, bare.end())[0]
            if sum(p.resolution < 0.5 for p in listed) > 1 and self.head(line[: bare.start()]).point is not None:  # noqa: PLR2004 - 0.5 is a whole number's
                return [Values(line[: bare.start()], lists={"first": listed})]
        return [v for v in found if v.numbers or v.lists]

    def _take(self, values: Values, match: re.Match[str], line: str) -> int:
        """Note what a match found, the first time; return where it ends."""
        if (key := match["number"]) is not None:
            values.numbers.setdefault(self.patterns.statistics[words(key)], Printed.of(match["value"]))
            return match.end()
        if (key := match["pair"]) is not None:
            pair = _PAIR.match(line, match.end())
            for which, text in zip(self.patterns.pairs[words(key)], pair.groups() if pair else (), strict=False):
                values.numbers.setdefault(which, Printed.of(text))
            return pair.end() if pair else match.end()
        listed, end = _numbers(line, match.end())
        if bracket := _OPENED.match(line, end):  # what was read is how many there are, and the first of them is broken
            listed, end = _numbers(line, bracket.end())
        if match["list"] is not None:
            which = self.patterns.statistics[words(match["list"])]
        else:
            which = "first" if match["slice"].startswith(":") else "last"
        values.lists.setdefault(which, listed)
        return end

    def _with_layer(self, first: str, gap: str) -> str:
        """A later name of a line stands at the line's layer and step, where it says none itself."""
        whole, own = self.head(first), self.head(gap)
        layer = f" layer {whole.layer}" if own.layer is None and whole.layer is not None else ""
        step = f" step {whole.step}" if own.step is None and whole.step is not None else ""
        return f"{gap}{layer}{step}"

    def _of_form(self, found: dict[str, str]) -> Values | None:
        layer = f" layer {found['layer']}" if "layer" in found else ""
        step = f" step {found['step']}" if "step" in found else ""
        values = Values(f"{found['name']}{layer}{step}")
        for key, text in found.items():
            if key in NUMBERS:
                number = _NUMBER.match(text)
                if number is None:
                    return None
                values.numbers[key] = Printed.of(number[0])
            elif key in ("first", "last"):
                values.lists[key] = _numbers(text.lstrip("[( "), 0)[0]
        return values

    def _field(self, match: re.Match[str]) -> str:
        """``op=attn_norm`` names, ``layer=3`` places, and any other ``word=value`` is passed over."""
        key = words(match[1])
        if key in self.patterns.name:
            return f": {match[2]} "
        return match[0] if key in (*self.patterns.layer, *self.patterns.step) else " "

    def _name(self, text: str) -> str:
        """`text` as a spelling, without noise and without words that hold no letter."""
        spelling = f" {words(' '.join(w for w in text.split() if any(c.isalpha() for c in w)))} "
        for noise in self.patterns.noise:
            while f" {noise} " in spelling:
                spelling = spelling.replace(f" {noise} ", " ")
        return " ".join(w for w in spelling.split() if not w.isdigit())


def _numbers(line: str, at: int) -> tuple[tuple[Printed, ...], int]:
    """The numbers in a row from `at` on, and where they end."""
    found: list[Printed] = []
    for match in _run(_NEXT, line, at):
        at = match.end()
        if len(found) < MOST_VALUES:
            found.append(Printed.of(match[1]))
    return tuple(found), at


def _run(pattern: re.Pattern[str], line: str, at: int) -> Iterator[re.Match[str]]:
    while (match := pattern.match(line, at)) is not None:
        yield match
        at = match.end()


def _taken(pattern: re.Pattern[str], text: str) -> tuple[str, int | None]:
    """`text` without every number that `pattern` finds, and the first of them."""
    first = pattern.search(text)
    return (text, None) if first is None else (pattern.sub(" ", text), int(first[1]))


def _any(spellings: object) -> str:
    """A pattern of any of the spellings, the longest first, a space standing for a space, `_`, `-` or `/`."""
    listed = sorted(spellings, key=lambda s: (-len(s), s))  # type: ignore[call-overload]
    return "|".join(re.escape(s).replace(r"\ ", "[ _/-]") for s in listed) or r"(?!)"
