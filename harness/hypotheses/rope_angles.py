"""What angles of rotary position embedding are made of, gone wrong: bases, scales, factors and positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model import quants
from firstdiff.model.arithmetic import Array
from firstdiff.model.probe import Call
from firstdiff.model.rope import angles, frequencies
from firstdiff.model.rope_fit import FARTHEST, fit_ratios, frequencies_of
from firstdiff.model.weights import Weight

DEFAULT_BASE, LLAMA_3_BASE = 10000.0, 500000.0  # of the paper, and of Llama 3
BASES = (DEFAULT_BASE, LLAMA_3_BASE, 1e6, 1e5)

CHUNK = 1 << 13  # offsets that are tried at once

DEFAULT_FACTOR = 2  # of positions, where scaling is not linear: ml-explore/mlx-lm#1545

LLAMA_3 = {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 8192.0}
"""Llama 3.1's scaling of frequencies; 3.2 has a factor of 32 (transformers' ``_compute_llama3_parameters``)."""


def with_base(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The rotation with another base."""
    return call.with_arguments(base=values["base"]) if values["base"] > 0 else None


def bases(call: Call, _scene: Scene) -> Iterator[float]:
    """Bases to plant and to try."""
    own = call.argument("base")
    yield LLAMA_3_BASE if own == DEFAULT_BASE else DEFAULT_BASE
    yield from BASES


def own_base(call: Call, _scene: Scene) -> Iterator[float]:
    """The file's base: no fault."""
    yield float(call.argument("base"))


def _fitted(call: Call, observed: Array) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.float64]]:
    """Radians a position of each pair in what was observed, the distance it was measured over, and the right ones."""
    of = call.arguments
    ratio, _, _ = fit_ratios(of["x"], observed, of["pairing"])
    fitted, span = frequencies_of(ratio, np.asarray(of["positions"], np.int64))
    factors = None if of["factors"] is None else of["factors"].values()
    right = angles([1], of["x"].shape[-1], base=of["base"], scale=of["scale"], factors=factors)[0]
    return fitted, span, right


def base_starts(call: Call, _scene: Scene, observed: Array) -> Iterator[float]:
    """The logarithm of the ratio of frequencies is a line through 0 over the pairs."""
    fitted, span, right = _fitted(call, observed)
    pair = np.arange(len(fitted))
    seen = (fitted > 0) & (fitted * span > 1e-3) & (pair > 0)  # noqa: PLR2004 - radians that float32 tells well
    if seen.any():
        weight = (fitted[seen] * span) ** 2
        slope = (weight * pair[seen] * np.log(fitted[seen] / right[seen])).sum() / (weight * pair[seen] ** 2).sum()
        with np.errstate(over="ignore"):
            base = float(call.argument("base") * np.exp(-slope * len(fitted)))
        if 0 < base < np.inf:
            yield base


def with_denominator(call: Call, _scene: Scene, values: Values) -> Call:
    """The exponents divided by another number, as another base's."""
    head_dim = call.argument("x").shape[-1]
    return call.with_arguments(base=call.argument("base") ** (head_dim / values["denominator"]))


def denominators(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, float]]:
    """What engines divide by in place of head_dim."""
    head_dim = call.argument("x").shape[-1]
    for value in dict.fromkeys((scene.model.hp.n_embd, head_dim // 2, 2 * head_dim, head_dim - 2)):
        if value not in (0, head_dim):
            yield {"denominator": value}


def with_scale(call: Call, _scene: Scene, values: Values) -> Call:
    """All angles multiplied."""
    return call.with_arguments(scale=call.argument("scale") * values["factor"])


def scales(call: Call, _scene: Scene) -> Iterator[float]:
    """The file's scale ignored or inverted, and other factors."""
    own = call.argument("scale")
    if own != 1:
        yield from (1 / own, 1 / own**2)  # ignored, inverted
    yield from (0.5, 0.25, 0.125, 4.0, 8.0)


def scale_starts(call: Call, _scene: Scene, observed: Array) -> Iterator[float]:
    """The factor that fits the slow pairs best."""
    fitted, _, right = _fitted(call, observed)
    slow = np.arange(len(right)) >= len(right) // 2  # which no position turns by whole turns
    yield float((fitted[slow] * right[slow]).sum() / (right[slow] ** 2).sum())


def with_factors(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The file's factors ignored, or Llama 3's where the file has none."""
    if call.argument("factors") is not None:
        return call.with_arguments(factors=None) if values["factor"] == 1 else None
    if values["factor"] == 1:
        return None
    x = call.argument("x")
    table = llama_3_factors(x.shape[-1], base=call.argument("base"), factor=values["factor"])
    if (table == 1).all():
        return None
    name, kind = "rope_freqs.weight", quants.BY_NAME["F32"]
    return call.with_arguments(factors=Weight(name, kind, table.shape, np.empty(0, np.uint8), dense=table))


def factor_values(_call: Call, _scene: Scene) -> Iterator[float]:
    """None at all, and those of Llama 3.1 and 3.2."""
    yield from (1.0, 8.0, 32.0)


def factor_starts(call: Call, scene: Scene, observed: Array) -> Iterator[float]:
    """What the slowest pair's angles are divided by."""
    yield from factor_values(call, scene)
    fitted, _, right = _fitted(call, observed)
    if fitted[-1] > 0 and np.isfinite(right[-1] / fitted[-1]):
        yield float(right[-1] / fitted[-1])


def no_factors(call: Call, _scene: Scene) -> Iterator[float]:
    """What is no fault of a file without factors."""
    if call.argument("factors") is None:
        yield 1.0


def llama_3_factors(head_dim: int, *, base: float, factor: float) -> npt.NDArray[np.float32]:
    """What Llama 3.1 divides each pair's angles by, float32 [head_dim / 2]."""
    wavelength = 2 * np.pi / frequencies(head_dim, base=base)
    low, high = LLAMA_3["context"] / LLAMA_3["low"], LLAMA_3["context"] / LLAMA_3["high"]
    smooth = (LLAMA_3["context"] / wavelength - LLAMA_3["low"]) / (LLAMA_3["high"] - LLAMA_3["low"])
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength > low, factor, np.where(wavelength < high, 1.0, between)).astype(np.float32)


# Positions


def restarted(call: Call, _scene: Scene, _values: Values) -> Call | None:
    """Positions from 0 again, in a decode step."""
    return call.with_arguments(positions=range(len(call.argument("positions")))) if call.step else None


def with_offset(call: Call, _scene: Scene, values: Values) -> Call | None:
    """All positions moved by one offset."""
    return call.with_arguments(positions=[p + values["offset"] for p in call.argument("positions")])


def ways_off(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """The offset that was observed, of all in the file's context; to plant, one position."""
    if observed is None:
        yield from ({"offset": 1}, {"offset": -1})
        return
    x, positions = call.argument("x"), call.argument("positions")
    ratio, _, _ = fit_ratios(x, observed, call.argument("pairing"))
    _, _, right = _fitted(call, observed)
    phase = np.nansum(ratio * np.exp(-1j * np.outer(positions, right)), 0)  # of the tokens that were recorded
    phase /= np.maximum(np.abs(phase), 1e-30)
    offsets = np.arange(-max(positions) - 1, max(FARTHEST, scene.model.hp.n_ctx_train) + 1)
    fit = np.concatenate([_alike(part, right, phase) for part in np.array_split(offsets, len(offsets) // CHUNK + 1)])
    if best := int(offsets[fit.argmax()]):
        yield {"offset": best}


def _alike(offsets: npt.NDArray[np.int64], right: npt.NDArray[np.float64], phase: Array) -> npt.NDArray[np.float64]:
    """How well each offset turns all pairs by their phases."""
    turned: npt.NDArray[np.float64] = (np.exp(-1j * np.outer(offsets, right)) * phase).real.sum(1)
    return turned


def with_factor(call: Call, _scene: Scene, values: Values) -> Call:
    """All positions multiplied by a whole number."""
    return call.with_arguments(positions=[p * values["factor"] for p in call.argument("positions")])


def ways_multiplied(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """The whole number that was observed; to plant, the default of some engines."""
    if observed is None or scene.later is not None:
        yield {"factor": DEFAULT_FACTOR}
        return
    factor = next(scale_starts(call, scene, observed))
    if np.isfinite(factor) and abs(round(factor)) > 1:
        yield {"factor": round(factor)}
