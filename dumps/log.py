"""A log as a trace: the statistics and first values that an engine printed of its intermediates.

What is printed of one tensor is an observation: partial, rounded to the digits that were printed, and under a name
of the author's own. Names are understood by the tables of patterns.toml; those that are not are listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.log_lines import Head, LineReader, Values, cleaned
from firstdiff.dumps.observation import Observation, Unknown, with_row, with_values
from firstdiff.dumps.patterns import Patterns, load_patterns
from firstdiff.dumps.site import Site

MOST_CHARACTERS = 10_000  # of a line: what is behind them is passed over
MOST_OBSERVATIONS = 200_000  # 100 passes of 100 layers with 20 points each
_NEAR = 12  # lines below a heading that still belong to it
_BLOCK = 4000  # lines of one tensor that llama.cpp prints: 6 rows of 6 of 6 at most, and what interrupts them
_HEADING = 160  # characters of a line that may be a heading
_PROSE = 3  # words beside layer and step; a heading has few, and a sentence has more

_TORN = re.compile(r"[^\s,;\[\](){}|]{0,80}$")
_GGML = re.compile(
    r"(?:^|\s)([^\s={}]{1,100})((?: \([a-z ]{1,40}\))?) = \(([a-z0-9_]{1,16})\)\s{1,24}([A-Z0-9_]{1,32})\("
)
_GGML_SHAPE = re.compile(r"= \{(\d{1,12}), (\d{1,12}), (\d{1,12}), (\d{1,12})\}\s{0,8}$")
_GGML_ROW = re.compile(r"\s{0,120}\[?\s{0,40}[-+]?(?:\d|nan|inf)", re.IGNORECASE)
_GGML_SUM = re.compile(r"\s{0,120}sum = (\S{1,60})\s{0,8}$")


@dataclass(frozen=True, slots=True)
class Log:
    """What was read of a log.

    Parameters
    ----------
    path
        The file.
    observations
        In the order of the file.
    unknown
        Names that carry values and are not understood, in the order of the file.
    lines
        Lines read.
    notes
        What the reader should know, such as that a long file was read in part.
    """

    path: Path
    observations: tuple[Observation, ...]
    unknown: tuple[Unknown, ...]
    lines: int
    notes: tuple[str, ...] = ()


def read_log(path: Path, *, patterns: Path | None = None) -> Log:
    """Read a log.

    Parameters
    ----------
    path
        A text file, in UTF-8 or with a byte order mark; bytes that are no text are passed over.
    patterns
        A TOML file on top of the patterns that firstdiff brings.

    Raises
    ------
    TraceError
        For a file that cannot be read or is no log, or for wrong patterns.
    """
    table = load_patterns(patterns)
    try:
        with path.open(encoding=_encoding(path), errors="replace") as file:
            return _read(path, file, table)
    except OSError as e:
        raise TraceError(f"{path}: cannot be read: {e.strerror}") from None


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        raise TraceError(f"{path}: is a GGUF model and no log: give the log first, and the model with --model")
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _read(path: Path, file: TextIO, patterns: Patterns) -> Log:
    reader, count = _Reader(patterns), 0
    notes: tuple[str, ...] = ()
    for count, line in enumerate(_lines(file), 1):
        reader.line(count, line)
        if len(reader.found) >= MOST_OBSERVATIONS:
            notes = (f"read up to line {count:,}, where there are {MOST_OBSERVATIONS:,} observations",)
            break
    reader.end_block()
    return Log(path, tuple(reader.found), tuple(reader.unknown.values()), count, notes)


def _lines(file: TextIO) -> Iterator[str]:
    """Lines without their ends; one that is cut, by its length or the file's end, loses its torn last word."""
    while line := file.readline(MOST_CHARACTERS):
        if line.endswith("\n"):
            yield line[:-1]
            continue
        yield _TORN.sub("", line)
        while len(line) == MOST_CHARACTERS and not line.endswith("\n"):
            line = file.readline(MOST_CHARACTERS)


@dataclass(slots=True)
class _Block:
    """A tensor that llama.cpp is printing over several lines."""

    observation: Observation | None  # None: of no point of ours
    op: str
    until: int


class _Reader:
    """Reads line by line; remembers the headings that later lines stand under."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        self.lines = LineReader(patterns)
        self.found: list[Observation] = []
        self.unknown: dict[tuple[str, str], Unknown] = {}
        self._layer: int | None = None  # of the last heading
        self._step: int | None = None
        self._heading: tuple[int, Head] | None = None
        self._open: tuple[int, Head] | None = None  # under which the last observation was made
        self._block: _Block | None = None

    def line(self, number: int, line: str) -> None:
        """Take in one line."""
        line = cleaned(line)
        if self._in_block(number, line):
            return
        if (opened := _GGML.search(line)) and (shape := _GGML_SHAPE.search(line)):
            self._begin_block(number, opened, [int(n) for n in shape.groups()])
            return
        values = self.lines.values(line)
        if not values:
            self._head_line(number, line)
        for each in values:
            self._take(number, each)

    def _head_line(self, number: int, line: str) -> None:
        """A line without values may be a heading: a layer, a step, a name."""
        if len(line) > _HEADING or not any(c.isalpha() for c in line):
            return
        head = self.lines.head(line)
        if len(head.name.split()) > _PROSE:
            return
        if head.step is not None:
            self._step, self._layer = head.step, None
        if head.layer is not None:
            self._layer = head.layer
        self._heading = (number, head) if head.point is not None else None

    def _take(self, number: int, values: Values) -> None:
        head = self.lines.head(values.head)
        under = self._heading
        if not head.name and head.layer is None and under is not None and number - under[0] <= _NEAR:
            if under is self._open and self.found and self.found[-1].line == under[0]:
                self.found[-1] = with_values(self.found[-1], values)
                return
            self._open, head, number = under, under[1], under[0]
        elif head.point is not None:
            self._heading = None
        site = self._site(number, head)
        if site is None:
            return
        if self.found and (self.found[-1].site, self.found[-1].line) == (site, number):
            self.found[-1] = with_values(self.found[-1], values)
        else:
            self._keep(with_values(Observation(site, number, stepped=self._step_of(head) is not None), values))

    def _site(self, number: int, head: Head) -> Site | None:
        if head.point is None:
            self._not_understood(number, head.name or "(no name)", "no known point")
            return None
        layer = None
        if head.point not in self.patterns.outside:
            layer = self._layer if head.layer is None else head.layer
            if layer is None:
                self._not_understood(number, head.name, "no layer is printed with it")
                return None
        return Site(self._step_of(head) or 0, layer, head.point)

    def _step_of(self, head: Head) -> int | None:
        return self._step if head.step is None else head.step

    def _not_understood(self, number: int, name: str, why: str) -> None:
        key = name[:80], why
        known = self.unknown.get(key)
        if known is not None:
            self.unknown[key] = replace(known, count=known.count + 1)
        elif len(self.unknown) < MOST_CHARACTERS:
            self.unknown[key] = Unknown(number, name[:80], why)

    def _keep(self, observation: Observation) -> None:
        """Keep an observation; one that repeats the one before it was printed twice."""
        if self.found and replace(self.found[-1], line=observation.line) == observation:
            return
        self.found.append(observation)

    # llama.cpp's eval-callback and debug tools: a header, rows in brackets, a sum

    def _begin_block(self, number: int, opened: re.Match[str], shape: Sequence[int]) -> None:
        self.end_block()
        name, viewed, _, op = opened.groups()
        head = self.lines.head(name)
        head = replace(head, name=head.name or name)
        point = self.patterns.renamed.get((op, head.point or ""), head.point)
        observation = None
        if not viewed and op not in self.patterns.views and (site := self._site(number, replace(head, point=point))):
            observation = Observation(site, number, size=shape[0] * shape[1] * shape[2] * shape[3])
        self._block = _Block(observation, op, number + _BLOCK)

    def _in_block(self, number: int, line: str) -> bool:
        """Whether a line belongs to the tensor that is being printed."""
        block = self._block
        if block is None:
            return False
        if (total := _GGML_SUM.match(line)) is not None:
            if block.observation is not None:
                block.observation = replace(block.observation, sum=next(iter(self.lines.numbers(total[1])), None))
            self.end_block()
            return True
        if number > block.until:
            self.end_block()
            return False
        if _GGML_ROW.match(line) is None:
            return not line.strip(" [],.")
        if block.observation is not None:
            block.observation = with_row(block.observation, line, self.lines)
        return True

    def end_block(self) -> None:
        """Keep the tensor that was being printed."""
        block, self._block = self._block, None
        if block is None or block.observation is None:
            return
        last = self.found[-1] if self.found else None
        if block.op == "ADD" and last is not None and last.site == block.observation.site:
            self.found[-1] = block.observation  # a product, then its sum with the bias, under one name
        else:
            self._keep(block.observation)
