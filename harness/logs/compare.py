"""Holding a log against the reference: which printed number is the first that no correct engine would print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firstdiff.dumps import Site, Step
from firstdiff.dumps.log import Log
from firstdiff.dumps.observation import Observation
from firstdiff.logs.interpretation import EACH, MOST_ROWS, Reading, in_turn, judged_as, order_key, understood
from firstdiff.logs.record import DISAGREES, LogVerdict, Observed
from firstdiff.logs.statistics import SCORES, Sampling
from firstdiff.model.arithmetic import F32, GGML_CPU
from firstdiff.model.engine import Model


def judge_log(
    model: Model, log: Log, tokens: Sequence[int], decode: int = 0, *, decoded: Sequence[int] = ()
) -> LogVerdict:
    """Hold every observation of a log against the reference's free run in f32.

    A number disagrees where it lies further away than half a unit of its last printed digit and a multiple of the
    drift between two arithmetics, f32 and ggml-cpu, at that site.

    Parameters
    ----------
    model, tokens
        What the engine ran.
    log
        What it printed.
    decode
        Steps that it decoded after the prompt. The reference decodes its own greedy choice, as long as any correct
        engine would choose the same.
    decoded
        The tokens that the engine decoded, in place of `decode`.
    """
    model.check_tokens([*tokens, *decoded], decode=0 if decoded else decode)
    observations, notes = _counted_from_0(log.observations, model.hp.n_layer)
    seen = in_turn(observations)
    passes = 1 + max((s.turn for s in seen), default=0)
    printed = [s.observation for s in seen]
    probe = Sampling(
        F32,
        GGML_CPU,
        wanted={(o.site.layer, o.site.point) for o in printed},
        values=max((len(values) for o in printed for values in (o.first, o.last)), default=0),
        ids={i for o in printed for i, _ in o.top},
        every_row=1 < len(tokens) <= min(MOST_ROWS, passes),
    )
    steps = _run(model, tokens, decode, decoded, probe) if printed else ()
    reading = understood(seen, probe, len(tokens), passes)
    order = {key: place for place, key in enumerate(probe.order)}
    judged = [(order_key(s, reading, order, len(tokens)), judged_as(s, reading, probe, len(tokens))) for s in seen]
    judged.sort(key=lambda pair: pair[0])
    verdict = LogVerdict(
        log=log.path.name,
        lines=log.lines,
        model=model.gguf.path.name,
        tokens=tuple(step.tokens for step in steps),
        reading=_in_words(reading, printed, len(tokens)),
        observed=tuple(o for _, o in judged),
        unknown=log.unknown,
        notes=(*log.notes, *notes, *_near_tie(probe, steps, decode, decoded), *_other_tokens(judged)),
    )
    return replace(verdict, unprinted=_unprinted(verdict, probe))


def _run(model: Model, tokens: Sequence[int], decode: int, decoded: Sequence[int], probe: Sampling) -> tuple[Step, ...]:
    steps = [Step(tuple(tokens), tuple(range(len(tokens))))]
    steps += [Step((t,), (len(tokens) + i,)) for i, t in enumerate(decoded)]
    for step, logits in enumerate(model.forward(steps, probe)):  # reads `steps` as it grows
        if not decoded and len(steps) <= decode and step not in probe.rivals:
            steps.append(Step((int(logits[-1].argmax()),), (len(tokens) + len(steps) - 1,)))
    return tuple(steps)


def _counted_from_0(observations: Sequence[Observation], layers: int) -> tuple[list[Observation], tuple[str, ...]]:
    """Layers that are printed from 1 on, counted from 0."""
    found = {o.site.layer for o in observations if o.site.layer is not None}
    if not found or 0 in found or max(found) != layers:
        return list(observations), ()
    moved = [
        o if o.site.layer is None else replace(o, site=replace(o.site, layer=o.site.layer - 1)) for o in observations
    ]
    return moved, (f"the log counts its layers from 1 to {layers}: here they are 0 to {layers - 1}",)


def _in_words(reading: Reading, printed: Sequence[Observation], tokens: int) -> str:
    said = f"statistics of {reading.rows}" if reading.rows != EACH else "one pass for each token of the prompt"
    if tokens == 1:
        said = "statistics of the one token"
    parts = [said if printed else "nothing"]
    if reading.skipped:
        passes = "pass" if reading.skipped == 1 else f"{reading.skipped} passes"
        parts.append(f"the first {passes} of the log left out, of other tokens")
    points = {o.site.point for o in printed}
    if "kq" in points:
        parts.append(f"scores printed {'after' if reading.scaled else 'before'} scaling")
    if reading.rounding != "f32":
        parts.append(f"activations rounded like {reading.rounding}, by the first values printed")
    if points & set(SCORES):
        parts.append(f"scores hidden by causality {'counted' if reading.hidden else 'left out'}")
    return "; ".join(parts)


def _near_tie(probe: Sampling, steps: Sequence[Step], decode: int, decoded: Sequence[int]) -> tuple[str, ...]:
    if decoded or not steps or len(steps) > decode:
        return ()
    top, rival = probe.rivals[len(steps) - 1]
    note = (
        f"after step {len(steps) - 1} correct engines may go on with token {top} or {rival}, so nothing behind it is "
        "compared: give the tokens that the engine decoded"
    )
    return (note,)


def _other_tokens(judged: Sequence[tuple[tuple[int, ...], Observed]]) -> tuple[str, ...]:
    first = next(((key, o) for key, o in judged if o.status == DISAGREES), None)
    if first is None or first[1].site.point != "embd":
        return ()
    if first[0][0] > 0:
        return ("it goes wrong at the embedding of a later step: the engine may have decoded another token",)
    return ("it goes wrong at the embedding: the engine may have run other tokens, or another model",)


def _unprinted(verdict: LogVerdict, probe: Sampling) -> tuple[Site, ...]:
    """Sites between the last observation that agrees and the first that does not, of one step."""
    first, before = verdict.first, verdict.before
    if first is None:
        return ()
    sites = [Site(first.site.step, layer, point) for layer, point in probe.order]
    start = sites.index(before.site) + 1 if before is not None and before.site in sites else 0
    return tuple(sites[start : sites.index(first.site)])
