"""Running an engine on probe models, and what its logits are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps.tensors import Held
from firstdiff.engines.opening import open_reference
from firstdiff.errors import CaptureError
from firstdiff.model.engine import Model
from firstdiff.model.probes.files import HEAD, ProbeModel
from firstdiff.model.probes.most_probable import Shown
from firstdiff.model.probes.shown import showing
from firstdiff.model.rounding import bf16_bits
from firstdiff.probing.engine import BlackBox, Floats, whole
from firstdiff.probing.most_probable import fewer
from firstdiff.progress import Progress
from firstdiff.runs.run import Run

LOGITS = Site(0, None, "result_output")
"""Where the logits of a probe model are in its trace."""


def digits_of(arithmetic: str) -> str | None:
    """What a number that an engine passes on to its logits is rounded to; None for float32."""
    base = arithmetic.partition("+")[0]
    return {"bf16": "bf16", "bf16-operands": "bf16", "f16": "f16", "f16-operands": "f16", "tf32": "f16"}.get(base)


def _narrow(x: npt.NDArray[np.floating], digits: str) -> npt.NDArray[np.generic]:
    return np.asarray(x, np.float16) if digits == "f16" else bf16_bits(x)


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
    shown
        What the logits are of, where they were made of log probabilities.
    """

    model: Model
    tokens: tuple[int, ...]
    logits: Floats
    shown: Shown | None = None

    @property
    def given(self) -> npt.NDArray[np.intp]:
        """The tokens whose logits it gave."""
        return np.flatnonzero(~np.isnan(self.logits).all(1))

    def trace(self, known: Mapping[Site, npt.NDArray[np.floating]], engine: str, arithmetic: str) -> Trace:
        """The trace that the engine would have dumped: what is known of it, and its logits.

        What was read of an engine that rounds to 16 bits has no more digits than these.
        """
        steps = [Step(self.tokens, tuple(range(len(self.tokens))))]
        logits = self.logits[self.given]
        stated = {"name": engine, "arithmetic": arithmetic}
        trace = Trace.from_arrays(steps, {**known, LOGITS: logits}, engine=stated, model={})
        digits = digits_of(arithmetic)
        if digits is None:
            return trace
        held = {site: Held(_narrow(x, digits), digits) for site, x in known.items()}
        return replace(trace, tensors={**trace.tensors, **held})


@dataclass(slots=True, eq=False)
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

    @property
    def option(self) -> str:
        """The option that the engine was given by, which errors begin with."""
        return "--engine" if self.shows is None else "--server"

    def original(self, tokens: Sequence[int]) -> Answer:
        """Run the model itself."""
        model = self.run.model
        logits = self._logits(model.gguf.path, tokens, model.hp.n_vocab)
        return Answer(model, tuple(tokens), whole(logits, len(tokens)))

    def ask(self, probe: ProbeModel, what: str) -> Answer:
        """Write a probe model, and run the engine on it. Its file is there until the next one is written.

        Parameters
        ----------
        probe, what
            The model, and what it shows, in words.

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
        given = self._logits(path, form.tokens, form.tensors[HEAD].shape[0])
        logits = given if form.shown is None else form.shown.logits(given)
        if logits is None:  # how many it gives shows in the first answer
            count = fewer(given, form, first=self.runs == 1)
            self.shows = None if self.shows is None else self.shows[:count]
            return self.ask(probe, what)
        return Answer(self._opened(path), form.tokens, whole(logits, len(form.tokens)), form.shown)

    def answered(self, probe: ProbeModel, logits: Floats) -> Answer:
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
        return Answer(self._opened(path), form.tokens, logits, form.shown)

    def _form(self, probe: ProbeModel) -> ProbeModel:
        """The model as this engine shows it."""
        if self.shows is None or probe.shown is not None:
            return probe
        return showing(self.run.model.gguf, probe, self.shows)

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

    def _logits(self, path: Path, tokens: Sequence[int], width: int) -> Floats:
        if self.left <= 0:
            raise TooManyRunsError
        self.runs += 1
        return self.engine.logits(path, tokens, width)


def _remove(path: Path | None) -> None:
    if path is not None:
        with suppress(OSError):
            path.unlink()
