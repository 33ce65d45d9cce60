"""``firstdiff.toml``: which cases a gate runs, and what they are held to. Every mistake in it is named."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from firstdiff.dumps.errors import TraceError
from firstdiff.errors import UsageError

LLAMA = "llama.cpp:cpu"
"""In place of a command: llama.cpp itself is the candidate."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_TOP = ("models", "prompts", "engines", "traces", "decode", "limits", "baseline", "names", "timeout")
_PROMPT = ("text", "tokens", "chat", "special")
_TRACE = ("path", "model", "prompt")
_LIMITS = ("floors", "coverage", "kl", "allowed")

MOST_TOKEN = 2**31 - 1
MOST_DECODE = 10**6
TIMEOUT = 600.0
"""Seconds for an engine, as for ``firstdiff run``."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is run: token ids, or a text. None of both is the text that ``firstdiff run`` takes."""

    text: str | None = None
    tokens: tuple[int, ...] | None = None
    chat: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True)
class GateCase:
    """One case: a model, and an engine with a prompt and steps to decode, or a stored trace."""

    name: str
    model: Path
    prompt: Prompt | None
    decode: int = 0
    command: str | None = None
    trace: Path | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a case is held to.

    Parameters
    ----------
    floors
        A diverging site passes up to this multiple of its floor.
    coverage
        The least share of the model's sites that must be judged.
    kl
        The largest divergence of the next token's distribution from llama.cpp's (or the reference's), in nats, at
        any step; None for any.
    allowed
        Hypotheses that may be true: sites that they explain pass.
    """

    floors: float = 1.0
    coverage: float = 0.0
    kl: float | None = None
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GateConfig:
    """A whole ``firstdiff.toml``; paths are absolute or relative to the working directory."""

    path: Path
    cases: tuple[GateCase, ...]
    baseline: Path
    limits: Limits = field(default_factory=Limits)
    names: str | None = None
    timeout: float = TIMEOUT


def read_config(path: Path) -> GateConfig:
    """Read a ``firstdiff.toml``.

    Raises
    ------
    UsageError
        For a key that is unknown, a value that cannot be, or no case at all.
    TraceError
        For a file that is no TOML.
    OSError
        For a file that cannot be read.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as e:  # of TOML and of UTF-8
        raise TraceError(f"{path}: is no TOML: {str(e)[:200] or 'nested too deep'}") from None
    return _Reader(path).config(data)


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path

    def config(self, data: dict[str, Any]) -> GateConfig:
        self._known(data, _TOP, "")
        models = {name: self._path(f"models.{name}", v) for name, v in self._table(data, "models").items()}
        if not models:
            raise self._wrong("names no model: give [models] with a name and a path, such as tiny = 'tiny.gguf'")
        prompts = {name: self._prompt(name, v) for name, v in self._table(data, "prompts").items()}
        cases = (
            *self._run(data, models, prompts),
            *(self._stored(name, v, models, prompts) for name, v in self._table(data, "traces").items()),
        )
        if not cases:
            raise self._wrong("names no case: give [engines] with a command, or [traces] with a path")
        timeout = self._number(data, "timeout", TIMEOUT, least=0.1)
        return GateConfig(
            self.path,
            cases,
            self._path("baseline", data.get("baseline", "firstdiff-baseline")),
            self._limits(self._table(data, "limits", named=False)),
            self._names(data),
            TIMEOUT if timeout is None else timeout,
        )

    def _run(self, data: dict[str, Any], models: dict[str, Path], prompts: dict[str, Prompt]) -> Iterator[GateCase]:
        """Models × prompts × engines × steps."""
        engines = {n: self._text(f"engines.{n}", v) for n, v in self._table(data, "engines").items()}
        given = data.get("decode", 2)
        steps = given if isinstance(given, list) else [given]
        if not steps or not all(_whole(n, MOST_DECODE) for n in steps):
            raise self._wrong(f"decode is {given!r:.60}: give a number of steps, or a list of them")
        shown = prompts or {"default": Prompt()}
        for (model, path), (prompt, source), (engine, command), decode in product(
            models.items(), shown.items(), engines.items(), dict.fromkeys(steps)
        ):
            name = f"{model}/{prompt}/{engine}" + (f"/decode-{decode}" if len(steps) > 1 else "")
            yield GateCase(name, path, source, decode, command)

    def _stored(self, name: str, value: object, models: dict[str, Path], prompts: dict[str, Prompt]) -> GateCase:
        """A stored trace: a path, or a table where there is more to say."""
        where = f"traces.{name}"
        told = {"path": value} if isinstance(value, str) else value
        if not isinstance(told, dict):
            raise self._wrong(f"{where} is {value!r:.60}: give a path, or a table with {_listed(_TRACE)}")
        self._known(told, _TRACE, f"{where}.")
        path = self._path(f"{where}.path", told.get("path"))
        if "model" not in told and len(models) > 1:
            raise self._wrong(f"{where}.model is missing: there are {_listed(models)}")
        model = self._one_of(f"{where}.model", told.get("model", next(iter(models))), models)
        prompt = self._one_of(f"{where}.prompt", told["prompt"], prompts) if "prompt" in told else None
        return GateCase(f"{model}/{name}", models[model], None if prompt is None else prompts[prompt], trace=path)

    def _prompt(self, name: str, value: object) -> Prompt:
        where = f"prompts.{name}"
        if isinstance(value, str):
            return Prompt(text=value)
        if isinstance(value, list):
            return Prompt(tokens=self._tokens(where, value))
        if not isinstance(value, dict):
            raise self._wrong(f"{where} is {value!r:.60}: give a text, a list of token ids, or a table")
        self._known(value, _PROMPT, f"{where}.")
        if ("text" in value) == ("tokens" in value):
            raise self._wrong(f"{where}: give either text or tokens")
        for key in ("chat", "special"):
            if not isinstance(value.get(key, True), bool):
                raise self._wrong(f"{where}.{key} is {value[key]!r:.60}: give true or false")
        if "tokens" in value:
            if len(value) > 1:
                raise self._wrong(f"{where}: chat and special are for a text, and tokens are given")
            return Prompt(tokens=self._tokens(f"{where}.tokens", value["tokens"]))
        text = self._text(f"{where}.text", value["text"])
        return Prompt(text, None, value.get("chat", False), value.get("special", True))

    def _tokens(self, where: str, value: object) -> tuple[int, ...]:
        if not (isinstance(value, list) and value and all(_whole(n, MOST_TOKEN) for n in value)):
            raise self._wrong(f"{where} is {value!r:.60}: give a list of token ids, such as [1, 450, 7483]")
        return tuple(value)

    def _limits(self, given: dict[str, Any]) -> Limits:
        self._known(given, _LIMITS, "limits.")
        allowed = given.get("allowed", [])
        if not isinstance(allowed, list) or not all(isinstance(x, str) for x in allowed):
            raise self._wrong(f"limits.allowed is {allowed!r:.60}: give a list of hypotheses (firstdiff demo --list)")
        if allowed:
            from firstdiff.hypotheses import TABLE
            from firstdiff.hypotheses.catalogue import no_such

            for id_ in allowed:
                if id_ not in TABLE:
                    raise self._wrong(f"limits.allowed is {id_!r:.80}: {no_such(id_)}")
        return Limits(
            self._number(given, "floors", 1.0, least=1.0, name="limits.floors") or 1.0,
            self._number(given, "coverage", 0.0, least=0.0, most=1.0, name="limits.coverage") or 0.0,
            self._number(given, "kl", None, least=0.0, name="limits.kl"),
            tuple(allowed),
        )

    def _names(self, data: dict[str, Any]) -> str | None:
        """``firstdiff``, ``llama.cpp``, ``hf``, or a table's path."""
        if "names" not in data:
            return None
        text = self._text("names", data["names"])
        return text if text in ("firstdiff", "llama.cpp", "hf") else str(self._path("names", text))

    # Values, and what is wrong with them.

    def _table(self, data: dict[str, Any], key: str, *, named: bool = True) -> dict[str, Any]:
        value = data.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(f"{key} is {value!r:.60}: give a table, [{key}]")
        for name in value if named else ():
            if not _NAME.fullmatch(name):
                raise self._wrong(
                    f"{key}.{name!r:.80} is no name of a case: files are named so, give letters, digits, . _ + and -"
                )
        return value

    def _known(self, given: Iterable[str], known: Iterable[str], prefix: str) -> None:
        for key in given:
            if key not in known:
                raise self._wrong(f"unknown key {prefix + key!r:.80}{_perhaps(key, known)}: there are {_listed(known)}")

    def _one_of(self, where: str, value: object, known: Iterable[str]) -> str:
        if not isinstance(value, str) or value not in known:
            raise self._wrong(f"{where} is {value!r:.80}{_perhaps(str(value), known)}: there are {_listed(known)}")
        return value

    def _text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._wrong(f"{where} is {value!r:.60}: give a text in quotes")
        return value

    def _path(self, where: str, value: object) -> Path:
        return self.path.parent / self._text(where, value)

    def _number(
        self, data: Mapping[str, Any], key: str, default: float | None, *,
        least: float, most: float | None = None, name: str | None = None,
    ) -> float | None:  # fmt: skip
        value = data.get(key, default)
        if value is None:
            return None
        fits = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= least
        if not fits or (most is not None and value > most):
            span = f"a number from {least:g} on" if most is None else f"a number from {least:g} to {most:g}"
            raise self._wrong(f"{name or key} is {value!r:.60}: give {span}")
        return float(value)

    def _wrong(self, message: str) -> UsageError:
        return UsageError(f"{self.path}: {message}")


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _perhaps(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key[:80], list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
