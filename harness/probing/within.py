"""Which tensor within a layer is the first to go wrong: the layer alone, with matrices of ours around what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.errors import CaptureError
from firstdiff.model.probes.layer import LayerProbes
from firstdiff.model.probes.reading import Reading
from firstdiff.probing.asking import BY_MEANS, Answer, Asking, TooManyRunsError
from firstdiff.probing.depth import Depth, scaled_like
from firstdiff.verdict import SiteVerdict, Status

Array = npt.NDArray[np.floating]
Make = Callable[[], Reading | None]
FirstWrong = Callable[[Mapping[Site, Array]], SiteVerdict | None]
"""Gives the first site of the layer that is wrong, of those that were read; None for none."""

BY_GATE, NEARLY = ("ffn_gate", "ffn_up"), 1e-4
"""Points that are read times what a gate was at, one number for each token, and how far that number may be off: it is
computed from one input of the gate, which is off by more, relative to itself, than a row is."""

OF_Q8_0 = 1e-6
"""How far from it a factor may be read that Q8_0 makes."""

FACTOR = 2e-3
"""A quarter of what holding a matrix in fewer digits may change: a block of Q8_0 or 16 bits, by its scale alone."""

MOST_TOKENS = 16
"""Tokens of which a tensor is read from differences of means: each token adds to what a difference is off."""

EXACT = "f32"
"""What an engine computes in that takes matrices of ours as they are: others round the numbers that are made by them,
or what is read from differences."""

UNSURE = 4e-6
"""The error up to which a tensor that is read so may be right; of 8 tokens it is below 1e-6 (tests/probing)."""


@dataclass(slots=True, eq=False)
class Within:
    """What is read of one layer.

    Parameters
    ----------
    asking, depth, layer
        The engine, what is known of its layers, and the one that is looked at.
    rows
        What the layer is given.
    read
        What was read, by site.
    alone
        Whether the layer is wrong too where it is the only one of its model; None where that was not asked.
    refused
        What the engine said of models that it did not run, in words.
    rounds_ours
        Whether the engine rounds matrices of ours.
    right_by_means
        What was read from differences of means, and is right as far as these tell.
    """

    asking: Asking
    depth: Depth
    layer: int
    rows: npt.NDArray[np.float32]
    read: dict[Site, Array] = field(default_factory=dict)
    alone: bool | None = None
    refused: list[str] = field(default_factory=list)
    rounds_ours: bool = False
    right_by_means: dict[Site, Array] = field(default_factory=dict)
    _given: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def look(self, *, first_wrong: FirstWrong, whole: bool = False) -> None:
        """Read tensor after tensor, as long as runs are left.

        Parameters
        ----------
        first_wrong
            Says what is wrong of what was read, by which the next one is chosen.
        whole
            Whether nothing is known to be wrong, so that everything is read.
        """
        try:
            layers = tuple(range(self.layer + 1)) if whole else self._layers()
            probes = self._probes(layers, self.rows)
            for make in self._readings(probes, layers, first_wrong, whole=whole):
                reading = make()
                if reading is None or len(reading.models) > self.asking.left:
                    continue
                with self._noting(reading.point):
                    self._take(reading, first_wrong)
        except TooManyRunsError:
            return
        except CaptureError as e:
            self.refused.append(f"layer {self.layer} by itself could not be looked at: {e}")

    @contextmanager
    def _noting(self, point: str) -> Iterator[None]:
        """Note that a tensor could not be read, where the engine does not run the models that it is read by."""
        try:
            yield
        except CaptureError as e:
            self.refused.append(f"{point}-{self.layer} could not be read: {e}")

    def by_itself(self) -> Answer:
        """The layer as it is wrong: alone, or with those before it, which pass on what they are given."""
        layers = self._layers()
        if self.alone:
            return self.asking.answered(self._probes(layers, self.rows).base, self._given, self.depth.parts)
        probe = self._probes(layers, self.rows).base
        given = self.asking.ask(probe, f"layer {self.layer} at its place", self.depth.parts).logits
        return self.asking.answered(probe, given, self.depth.parts)

    def _layers(self) -> tuple[int, ...]:
        """The layer alone; where it is right there, with those before it, which pass on what they are given."""
        probes = self._probes((self.layer,), self.rows)
        answer = self.asking.ask(probes.base, f"layer {self.layer} alone", self.depth.parts)
        self._given = answer.logits
        found = self.depth.judge(answer, {})
        self.alone = found.status is Status.DIVERGES
        return (self.layer,) if self.alone else tuple(range(self.layer + 1))

    def _probes(self, layers: tuple[int, ...], rows: npt.NDArray[np.float32]) -> LayerProbes:
        model = self.asking.run.model
        return LayerProbes(model.gguf, model.hp, layers, rows)

    def _readings(
        self, probes: LayerProbes, layers: tuple[int, ...], first_wrong: FirstWrong, *, whole: bool
    ) -> Iterator[Make]:
        """What to read next, as far as what was read tells."""
        yield lambda: probes.kqv_out(self._size("kqv_out"))
        attention = whole or first_wrong(self.read) is not None
        exact = self.depth.arithmetic == EXACT
        if attention and exact and len(self.rows) <= MOST_TOKENS:
            yield lambda: probes.values(self._size("Vcur"))
            yield lambda: probes.attn_norm(self._size("attn_norm"))
            yield lambda: self._probabilities(probes)
        if attention and not whole:
            if exact and len(self.rows) <= MOST_TOKENS:
                yield lambda: probes.keys(self._size("Kcur"))
                yield lambda: probes.queries(self._size("Qcur"))
            return
        rows = self._stream(probes)
        if rows is None:
            return
        after = self._probes(layers, rows)
        yield lambda: after.swiglu(self._size("ffn_swiglu"))
        if not exact or self.rounds_ours or (not whole and first_wrong(self.read) is None):
            return
        yield lambda: after.ffn_norm(self._free("ffn_norm"), self._size("ffn_norm"))
        yield lambda: after.up(self._normed(), self._size("ffn_up"))
        yield lambda: after.gate(self._normed(), self._size("ffn_gate"))

    def _stream(self, probes: LayerProbes) -> npt.NDArray[np.float32] | None:
        """What stands in the stream before the feed-forward network; None where it is wrong already."""
        answer = self.asking.ask(probes.changed({}, "ffn_down"), f"ffn_inp-{self.layer}")
        if self.depth.judge(answer, {}).status is Status.DIVERGES:
            return None
        site = Site(0, self.layer, "ffn_inp")
        self.read[site] = scaled_like(answer.logits, self.depth.free[site])
        return np.asarray(self.read[site], np.float32)

    def _probabilities(self, probes: LayerProbes) -> Reading | None:
        site = Site(0, self.layer, "attn_norm")
        normed = self.read.get(site, self.right_by_means.get(site))
        if normed is None or not np.isfinite(normed).all():
            return None
        return probes.probabilities(np.asarray(normed, np.float64))

    def _normed(self) -> npt.NDArray[np.float64]:
        read = self.read.get(Site(0, self.layer, "ffn_norm"))
        if read is None or not np.isfinite(read).all():
            return self._free("ffn_norm")
        return np.asarray(read, np.float64)

    def _take(self, reading: Reading, first_wrong: FirstWrong) -> None:
        logits = [self.asking.ask(model, f"{reading.point}-{self.layer}").logits for model in reading.models]
        site = Site(0, self.layer, reading.point)
        right, found = self.depth.free[site], reading.read(logits)
        if not np.isfinite(found).all():
            self.refused.append(f"{site.key} could not be read: the logits of its model are NaN or infinite")
            return
        if right.ndim > 2 and reading.point == "kq_soft_max":  # noqa: PLR2004 - [head, query, key]
            found = found.reshape(found.shape[0], right.shape[0], -1).transpose(1, 0, 2)
        found = found.reshape(right.shape)
        if reading.point == "attn_norm" and (factor := common_factor(found, right)) is not None:
            self.rounds_ours = True
            self.refused.append(
                f"{site.key} and other tensors that are read through matrices of firstdiff's own were left out: your "
                f"engine changes these matrices (1 became {factor:.6g}), as {_storage(factor)} does"
            )
            return
        if reading.point in BY_GATE:
            found = at_its_size(found, right)
        self.read[site] = np.asarray(found, np.float32)
        if reading.point not in BY_MEANS:
            return
        wrong = first_wrong(self.read)
        is_wrong = wrong is not None and wrong.site == site and (wrong.local_error or 0.0) > UNSURE
        # An engine may put the rows of Q and K in another order, which does not show in the values' place.
        if not is_wrong and (reading.point in ("Qcur", "Kcur") or (wrong is not None and wrong.site == site)):
            self.right_by_means[site] = self.read.pop(site)

    def _free(self, point: str) -> npt.NDArray[np.float64]:
        return np.asarray(self.depth.free[Site(0, self.layer, point)], np.float64)

    def _size(self, point: str) -> float:
        x = self._free(point)
        finite = x[np.isfinite(x)]
        return float(np.sqrt(np.square(finite).mean())) if finite.size else 1.0


def _storage(factor: float) -> str:
    """What makes of 1 the factor, in words."""
    of_q8_0 = 127 * float(np.float16(1 / 127))
    return "storage in 8 bits (Q8_0)" if abs(factor - of_q8_0) < OF_Q8_0 else "storage in fewer digits"


def at_its_size(found: npt.NDArray[np.float64], right: Array) -> npt.NDArray[np.float64]:
    """Rows times the number by which each is nearest to the right one, where that is hardly another than 1."""
    y, x = (np.asarray(rows, np.float64).reshape(len(rows), -1) for rows in (found, right))
    size = np.square(y).sum(1)
    factor = np.divide((x * y).sum(1), size, out=np.ones_like(size), where=size > 0)
    factor[~(np.abs(factor - 1) <= NEARLY)] = 1.0
    return np.asarray((y * factor[:, None]).reshape(found.shape))


def common_factor(found: npt.NDArray[np.float64], right: Array) -> float | None:
    """One factor by which all rows differ from the right ones, and by nothing else; None for none, or for nearly 1."""
    y, x = (np.asarray(rows, np.float64).reshape(len(rows), -1) for rows in (found, right))
    factor = float(np.vdot(x, y) / np.vdot(x, x)) if x.any() else 1.0
    left = np.abs(y - factor * x).max() / max(np.abs(y).max(), 1e-30)
    return factor if left < abs(factor - 1) / 4 < FACTOR else None
