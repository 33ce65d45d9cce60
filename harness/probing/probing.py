"""Probing: an engine that gives logits in, the verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Step
from firstdiff.engines.reference import Recording
from firstdiff.errors import UsageError
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.probes.shown import own_rows
from firstdiff.probing.arithmetics import ARITHMETICS, nearest
from firstdiff.probing.asking import LOGITS, Answer, Asking, TooManyRunsError, digits_of, steps_of
from firstdiff.probing.control import control
from firstdiff.probing.depth import Depth, scaled_like
from firstdiff.probing.engine import BlackBox
from firstdiff.probing.most_probable import best_shown
from firstdiff.probing.telling import of_cut, summed_up, with_judged
from firstdiff.probing.within import FirstWrong, Within
from firstdiff.runs.judge import judge
from firstdiff.runs.run import Run
from firstdiff.verdict import SiteVerdict, Status, Verdict

Array = npt.NDArray[np.floating]
EMBEDDING = Site(0, None, "embd")

AS_FAR, ROUNDING = 10.0, {None: 1e-4, "f16": 3e-3, "bf16": 2e-2}
"""How many times the error of the logits what is read of them may be off, and what its digits let it be off."""

BESIDE = 12
"""Runs beside those that halve the layers."""


IN_PARTS = 6
"""Further runs for a prompt in parts: the model itself, and models that end after some layers."""


def most_runs(layers: int, *, decodes: bool = False) -> int:
    """How often an engine may be run for a model of so many layers; more often where it runs a prompt in parts too."""
    return 2 * ceil(log2(max(2, layers))) + BESIDE + (IN_PARTS if decodes else 0)


@dataclass(slots=True, eq=False)
class Probing:
    """One engine, probed.

    Parameters
    ----------
    run, asking, tokens
        The model, the engine, and the prompt.
    top
        How many of its most probable tokens an engine is asked for; 0 for one that gives all logits.
    """

    run: Run
    asking: Asking
    tokens: tuple[int, ...]
    top: int = 0

    def verdict(self) -> Verdict:
        """Find the first layer that goes wrong, and what is wrong in it.

        Raises
        ------
        CaptureError
            Where the engine gives no logits, or those of something else.
        """
        depth = Depth(self.asking, self.tokens, free_run(self.run.model, self.tokens, ARITHMETICS[0]))
        if self.top:
            self.asking.shows = best_shown(depth.free)[: self.top - 1]
        own = control(self.asking, self.tokens)
        found = nearest(own, self.asking.engine.name)
        if found is None:
            return self._noted(self._judged(own, {}, depth, LOGITS), depth)
        self._settle(depth, own, *found)
        end = self._whole(depth)
        agrees = depth.whole_agrees()
        if agrees and self.asking.engine.decodes:
            depth.in_parts = in_parts(depth)
            if not depth.in_parts.whole_agrees() and (wrong := self._of_parts(depth)) is not None:
                return wrong
        layer = depth.first_wrong()
        if layer is None and agrees:
            self._halves(depth)
            layer = depth.first_wrong()
        if layer is not None:
            return self._of_layer(depth, layer)
        if depth.in_parts is not None and depth.reads and depth.one_token is None:
            self._halves(depth.in_parts)
            if depth.in_parts.first_wrong() is not None and (wrong := self._of_parts(depth)) is not None:
                return wrong
        within = self._inside(depth) if agrees else None
        known = depth.read if within is None else depth.read | within.read
        return self._noted(self._judged(depth.whole, known, depth, end), depth, within)

    def _settle(self, depth: Depth, own: Answer, error: float, arithmetic: str) -> None:
        """What the engine computes in, and whether tensors are read: by a first one, which is off by some error."""
        depth.arithmetic = arithmetic
        depth.find_arithmetic()
        depth.free = free_run(self.run.model, self.tokens, depth.arithmetic)
        depth.reads = len(own.given) == len(own.tokens)
        if depth.reads:
            rows = scaled_like(own.logits, depth.free[EMBEDDING])
            most = max(AS_FAR * error, ROUNDING[digits_of(depth.arithmetic)])
            depth.reads = same_direction(rows, depth.free[EMBEDDING], most)
        if depth.reads:
            depth.read[EMBEDDING] = rows

    def _whole(self, depth: Depth) -> Site | None:
        """The model itself, or the nearest to it that shows in most probable tokens: what its logits are then."""
        shows, last = self.asking.shows, self.run.model.hp.n_layer - 1
        if shows is None:
            return None
        logits = np.asarray(depth.free[LOGITS][-1])
        ids = np.argsort(-logits, kind="stable")[: min(len(shows), np.count_nonzero(logits > 0))]  # the others hide
        probe = own_rows(self.run.model.gguf, self.tokens, ids)
        depth.own_rows = 0 if probe is None else len(ids)
        if probe is None:
            depth.own, end = depth.cut(last), Site(0, last, "l_out")
        else:
            depth.own, end = self.asking.ask(probe, "rows of its own output matrix"), LOGITS
        self.asking.keep()
        return end

    def _of_parts(self, depth: Depth) -> Verdict | None:
        """The verdict on an engine whose prompt in parts is not what it should be; None for another arithmetic."""
        own = depth.in_parts
        assert own is not None, "the prompt was run in parts"
        depth.one_token = own.arithmetic_of_one()
        if depth.one_token is not None:
            return None
        layer = own.first_wrong()
        if layer is not None:
            return self._of_layer(own, layer)
        return self._noted(self._judged(own.whole, own.read, own), own)

    def _halves(self, depth: Depth) -> None:
        """Look at some layers between, so that less is computed between what is read."""
        last = self.run.model.hp.n_layer - 1
        for layer in dict.fromkeys((last // 2, last // 4, 3 * last // 4)):
            if layer not in depth.judged and self.asking.left > 0:
                depth.agrees(layer)

    def _of_layer(self, depth: Depth, layer: int) -> Verdict:
        """The verdict on the first layer that goes wrong: by its output alone, or by what is read within it."""
        within = Within(self.asking, depth, layer, depth.input_of(layer))
        if not depth.reads:
            alone = within.by_itself()
            if depth.judge(alone, {}).status is not Status.DIVERGES:  # it takes what comes before to be wrong
                alone = depth.wrong(layer)
            return self._noted(self._judged(alone, {}, depth, Site(0, layer, "l_out")), depth, within)
        answer = depth.wrong(layer)
        known = depth.known(layer)
        if depth.judge(answer, known).status is not Status.DIVERGES:  # what was read before it makes it right
            layer = depth.most_wrong()
            answer, known = depth.cut(layer), depth.known(layer)
            self.asking.keep()
            within = Within(self.asking, depth, layer, depth.input_of(layer))
        if not layer:  # the last norm hides what each row of the embedding is multiplied by
            known.pop(EMBEDDING, None)
        told = self._judged(answer, known, depth, Site(0, layer, "l_out"))
        settled = all(e.hypothesis is not None and not e.equals for e in told.explanations)
        if settled or depth.parts or self.run.model.tier == "graph":
            return self._noted(told, depth)
        within.look(first_wrong=self._first_wrong(answer, known, depth))
        closer = self._judged(answer, known | within.read, depth, Site(0, layer, "l_out"))
        return self._noted(closer if says_more(closer) else told, depth, within)

    def _first_wrong(self, answer: Answer, known: Mapping[Site, Array], depth: Depth) -> FirstWrong:
        """What says which tensor of those that were read is the first to be wrong."""

        def first_wrong(read: Mapping[Site, Array]) -> SiteVerdict | None:
            trace = answer.trace({**known, **read}, self.asking.engine.name, depth.arithmetic or ARITHMETICS[0])
            replay = Replay(arithmetic_named(depth.arithmetic or ARITHMETICS[0]), trace)
            run_trace(answer.model, trace, replay, frozenset(read).__contains__)
            return next((s for s in replay.settled() if s.status is Status.DIVERGES), None)

        return first_wrong

    def _inside(self, depth: Depth) -> Within | None:
        """Look at each operation of one layer whose input was read."""
        holds = "held=" in (depth.arithmetic or "")  # it would round the rows that a layer is given
        if not depth.reads or self.run.model.tier == "graph" or holds:
            return None
        layer = depth.most_wrong()
        within = Within(self.asking, depth, layer, depth.input_of(layer))
        within.look(first_wrong=self._first_wrong(depth.whole, depth.read, depth), whole=True)
        return within

    def _judged(self, answer: Answer, known: Mapping[Site, Array], depth: Depth, end: Site | None = None) -> Verdict:
        """Judge what was read, in the order of execution, with the logits of the model that it is of.

        `end` is what those logits show of the model that is probed; None where they are its own.
        """
        ordered = {site: known[site] for site in depth.free if site in known}
        trace = answer.trace(ordered, self.asking.engine.name, depth.arithmetic or ARITHMETICS[0])
        verdict = judge(replace(self.run, model=answer.model), trace)
        return verdict if end is None else of_cut(verdict, end, self.run, answer.shown)

    def _noted(self, verdict: Verdict, depth: Depth, within: Within | None = None) -> Verdict:
        """The verdict with what else the probes showed, and what they did not."""
        return replace(
            with_judged(verdict, depth.judged),
            model=verdict.model | {"probed": True},
            tokens=tuple(step.tokens for step in steps_of(self.tokens, depth.parts)),
            notes=(*summed_up(self.asking, depth, within), *verdict.notes),
        )


def in_parts(depth: Depth) -> Depth:
    """What is known of an engine's layers where the prompt is run in parts: the embedding, as far as it was read."""
    embedding = {site: x for site, x in depth.read.items() if site == EMBEDDING}
    parts = parts_of(len(depth.tokens), last=len(depth.whole.given) == 1)
    return Depth(depth.asking, depth.tokens, depth.free, depth.arithmetic, embedding, reads=depth.reads, parts=parts)


def parts_of(count: int, *, last: bool) -> tuple[int, ...]:
    """How many of a prompt's tokens are run at a time: half of them, then one, then several, then one.

    Where only the `last` one's logits are seen, it is run by itself after all others.
    """
    first = count - 1 if last else (count + 1) // 2
    left = count - first
    return tuple(part for part in (first, min(1, left), max(0, left - 2), 1 if left > 1 else 0) if part)


def same_direction(read: Array, right: Array, most: float) -> bool:
    """Whether what was read is the right rows but for their size: a LayerNorm takes their mean from them too."""
    off = np.linalg.norm(np.asarray(read, np.float64) - right, axis=-1)
    return bool((off <= most * np.linalg.norm(np.asarray(right, np.float64), axis=-1)).all())


def says_more(closer: Verdict) -> bool:
    """Whether what was read within a layer can be believed.

    What leads a tensor to the logits may be wrong itself. Several tensors then look wrong, and nothing explains all.
    """
    if len(closer.diverging) == 1:
        return True
    check = closer.counter_check
    return check is not None and check.agrees and all(e.hypothesis is not None for e in closer.explanations)


def free_run(model: Model, tokens: Sequence[int], arithmetic: str) -> dict[Site, Array]:
    """What the reference gives for a prompt in an arithmetic, by site."""
    recording = Recording(arithmetic_named(arithmetic))
    for _ in model.forward([Step(tuple(tokens), tuple(range(len(tokens))))], recording):
        pass
    return {Site.of_key(key, 0): x for key, x in recording.finish().items()}


def probe(
    run: Run, engine: BlackBox, tokens: Sequence[int], folder: Path, *, most: int | None = None, top: int = 0
) -> Verdict:
    """Judge an engine by its logits for models of our own making.

    Parameters
    ----------
    run
        The model, and how it is judged.
    engine
        The engine.
    tokens
        A prompt for the model.
    folder
        Where probe models are written, no more than two at a time.
    most
        How often the engine may be run; None for as often as a single fault takes.
    top
        How many of its most probable tokens it is asked for, where it gives the log probabilities of these; 0 for an
        engine that gives logits.

    Raises
    ------
    CaptureError
        Where the engine gives no logits, or those of something else.
    UsageError
        For fewer runs than it takes to find a layer.
    """
    usual = most_runs(run.model.hp.n_layer, decodes=engine.decodes)
    asking = Asking(run, engine, folder, usual if most is None else most)
    try:
        return Probing(run, asking, tuple(tokens), top).verdict()
    except TooManyRunsError:
        raise UsageError(
            f"--runs: {asking.most} runs of the engine do not find a layer of {run.model.hp.n_layer}: give {usual}, "
            "which is what is usual"
        ) from None
    finally:
        asking.remove()
