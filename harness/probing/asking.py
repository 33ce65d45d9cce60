"""Running an engine on probe models, and what its logits are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps.tensors import Held
from firstdiff.engines.opening import open_reference
from firstdiff.errors import CaptureError
from firstdiff.judging.floors import READ
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError
from firstdiff.model.probes.files import HEAD, ProbeModel, probe_model
from firstdiff.model.probes.most_probable import Shown
from firstdiff.model.probes.shown import showing
from firstdiff.model.rounding import bf16_bits
from firstdiff.probing.engine import BlackBox, Floats, whole
from firstdiff.probing.most_probable import fewer
from firstdiff.progress import Progress
from firstdiff.runs.run import Run

DIRECT = ("embd", "ffn_inp", "l_out")
"""Points that logits are, but for the size of each row: nothing but the last norm stands between."""

BY_MEANS = ("Vcur", "Kcur", "Qcur", "attn_norm")
"""Points that are read from differences of means."""

LOGITS = Site(0, None, "result_output")
"""Where the logits of a probe model are in its trace."""


def digits_of(arithmetic: str) -> str | None:
    """What a number that an engine passes on to its logits is rounded to; None for float32."""
    base = arithmetic.partition("+")[0]
    return {"bf16": "bf16", "bf16-operands": "bf16", "f16": "f16", "f16-operands": "f16", "tf32": "f16"}.get(base)


def _narrow(x: npt.NDArray[np.floating], digits: str) -> npt.NDArray[np.generic]:
    return np.asarray(x, np.float16) if digits == "f16" else bf16_bits(x)


def steps_of(tokens: Sequence[int], parts: Sequence[int]) -> list[Step]:
    """The steps in which tokens are run, so many at a time."""
    ends = list(accumulate(parts or (len(tokens),)))
    return [Step(tuple(tokens[a:b]), tuple(range(a, b))) for a, b in pairwise([0, *ends])]


def by_step(site: Site, rows: Floats, steps: Sequence[Step]) -> dict[Site, Floats]:
    """A tensor of all tokens as the steps have it, without the rows that are NaN: a step that has none is left out."""
    found = {}
    for number, step in enumerate(steps):
        own = rows[list(step.positions)]
        given = own[~np.isnan(own).all(1)]
        if len(given):
            found[replace(site, step=number)] = given
    return found


class TooManyRunsError(Exception):
    """The engine was run as often as it may be."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the engine gave for one model.

    Parameters
    ----------
    model
        The model, opened by the reference. Its file is there until the next one is asked for.
    tokens
        What was run.
    logits
        Float32 [token, vocabulary]; rows that it did not give are NaN.
    parts
        How many tokens were run at a time; all at once where there are none.
    shown
        What the logits are of, where they were made of log probabilities.
    """

    model: Model
    tokens: tuple[int, ...]
    logits: Floats
    parts: tuple[int, ...] = ()
    shown: Shown | None = None

    @property
    def given(self) -> npt.NDArray[np.intp]:
        """The tokens whose logits it gave."""
        return np.flatnonzero(~np.isnan(self.logits).all(1))

    def trace(self, known: Mapping[Site, npt.NDArray[np.floating]], engine: str, arithmetic: str) -> Trace:
        """The trace that the engine would have dumped: what is known of it, and its logits.

        What was read of an engine that rounds to 16 bits has no more digits than these.
        """
        steps = steps_of(self.tokens, self.parts)
        stated = {"name": engine, "arithmetic": arithmetic}
        if len(steps) > 1:
            known = {of: x for site, rows in known.items() for of, x in by_step(site, rows, steps).items()}
        trace = Trace.from_arrays(steps, {**known, **by_step(LOGITS, self.logits, steps)}, engine=stated, model={})
        digits = digits_of(arithmetic)
        if digits is None:
            codes = arithmetic_named(arithmetic).ggml_products
            less = {site for site in known if site.point in BY_MEANS or (codes and site.point not in DIRECT)}
            held = {site: Held(np.asarray(known[site]), READ) for site in less}
        else:
            held = {site: Held(_narrow(x, digits), digits) for site, x in known.items()}
        return replace(trace, tensors={**trace.tensors, **held})


@dataclass(eq=False)
class Asking:
    """An engine that is asked for the logits of one model after another.

    Parameters
    ----------
    run
        The model that is probed, and how it is judged.
    engine
        The engine.
    folder
        Where files are written: no more than two at a time.
    most
        How often the engine may be run.
    shows
        Coordinates of the stream that an engine shows which gives its most probable tokens only; None for one that
        gives all logits.
    """

    run: Run
    engine: BlackBox
    folder: Path
    most: int
    shows: npt.NDArray[np.intp] | None = None
    runs: int = 0
    _count: int = 0
    _latest: Path | None = None
    _kept: Path | None = None

    @property
    def progress(self) -> Progress:
        """Where to say what is being done."""
        return self.run.progress

    @property
    def left(self) -> int:
        """How many runs are left."""
        return self.most - self.runs

    @cached_property
    def tied(self) -> bool:
        """Whether llama.cpp always takes the embedding for the output matrix, and loads no file that has one."""
        gguf = self.run.model.gguf
        if self.run.model.tier != "graph" or HEAD in gguf.tensors:
            return False
        probe = probe_model(gguf, (0,), (0,))
        try:
            self._readable(self._written(probe), probe.tokens, ())
        except CaptureError:
            return True
        return False

    @property
    def option(self) -> str:
        """The option that the engine was given by, which errors begin with."""
        return "--engine" if self.shows is None else "--server"

    def model_of(
        self, layers: Sequence[int], rows: Sequence[int] | Floats, passing: frozenset[int] = frozenset()
    ) -> ProbeModel:
        """A probe model, as :func:`firstdiff.model.probes.files.probe_model` makes it."""
        return probe_model(self.run.model.gguf, layers, rows, passing=passing, tied=self.tied)

    def original(self, tokens: Sequence[int], parts: tuple[int, ...] = ()) -> Answer:
        """Run the model itself."""
        model = self.run.model
        logits = self._logits(model.gguf.path, tokens, model.hp.n_vocab, parts)
        return Answer(model, tuple(tokens), whole(logits, len(tokens)), parts)

    def ask(self, probe: ProbeModel, what: str, parts: tuple[int, ...] = ()) -> Answer:
        """Write a probe model, and run the engine on it. Its file is there until the next one is written.

        Parameters
        ----------
        probe, what
            The model, and what it shows, in words.
        parts
            How many tokens are run at a time; all at once where there are none.

        Raises
        ------
        TooManyRunsError
            Where the engine was run often enough.
        CaptureError
            Where it fails, or the file cannot be written.
        """
        self.progress.say(f"asking for {what}")
        form = self._form(probe)
        path = self._written(form)
        model = self._readable(path, form.tokens, parts)
        given = self._logits(path, form.tokens, model.hp.n_vocab, parts)
        logits = given if form.shown is None else form.shown.logits(given)
        if logits is None:  # how many it gives shows in the first answer
            count = fewer(given, form, first=self.runs == 1)
            self.shows = None if self.shows is None else self.shows[:count]
            return self.ask(probe, what, parts)
        return Answer(model, form.tokens, whole(logits, len(form.tokens)), parts, form.shown)

    def answered(self, probe: ProbeModel, logits: Floats, parts: tuple[int, ...] = ()) -> Answer:
        """A model that was asked for before: its file stays where the next ones are written.

        Raises
        ------
        CaptureError
            Where it cannot be written.
        """
        _remove(self._kept)
        form = self._form(probe)
        path = self._kept = self._written(form)
        self._latest = None
        return Answer(self._opened(path), form.tokens, logits, parts, form.shown)

    def _form(self, probe: ProbeModel) -> ProbeModel:
        """The model as this engine shows it."""
        if self.shows is None or probe.shown is not None:
            return probe
        if self.tied:
            raise CaptureError(
                f"probe: models of {self.run.model.architecture} always take the embedding for the output matrix, so "
                "that most probable tokens cannot be made to show what is to be read: give an engine that writes all "
                "logits (--engine)"
            )
        return showing(self.run.model.gguf, probe, self.shows)

    def _readable(self, path: Path, tokens: Sequence[int], parts: Sequence[int]) -> Model:
        """A probe model that is opened, and can be run."""
        try:
            model = self._opened(path)
            model.prepare(steps_of(tokens, parts))
        except (CaptureError, ModelError) as e:
            raise CaptureError(
                f"probe: {self.run.model.architecture} cannot be probed, because llama.cpp, by which firstdiff judges "
                f"it, does not run the model that was made of this file: {e}; let your engine dump its tensors instead "
                "(firstdiff run --engine)"
            ) from None
        return model

    def _opened(self, path: Path) -> Model:
        return open_reference(path, tier="graph" if self.run.model.tier == "graph" else "hand")

    def _written(self, probe: ProbeModel) -> Path:
        _remove(self._latest)
        path = self._latest = self.folder / f"probe-{self._count}.gguf"
        self._count += 1
        try:
            return probe.write(path)
        except OSError as e:
            raise CaptureError(
                f"{path}: a probe model cannot be written ({e.strerror}): give another folder with --out"
            ) from e

    def keep(self) -> None:
        """Let the file of the last probe stay where the next ones are written, in the place of the one before."""
        _remove(self._kept)
        self._kept, self._latest = self._latest, None

    def remove(self) -> None:
        """Remove all files."""
        _remove(self._latest)
        _remove(self._kept)
        self._latest = self._kept = None

    def _logits(self, path: Path, tokens: Sequence[int], width: int, parts: tuple[int, ...] = ()) -> Floats:
        if self.left <= 0:
            raise TooManyRunsError
        self.runs += 1
        return self.engine.logits(path, tokens, width, parts)


def _remove(path: Path | None) -> None:
    if path is not None:
        with suppress(OSError):
            path.unlink()
