"""The outline of a pass: what is called, in which shapes, with nothing computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builders.tiny_models import tiny
from firstdiff.dumps import Step
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import ARCHITECTURES, open_model
from firstdiff.model.outline import outline, sources
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value

STEPS = (Step((1, 70, 71, 72), (0, 1, 2, 3)), Step((5,), (4,)))


@dataclass
class Noting(Probe):
    """Runs everything, and notes each call with the shape of its result."""

    noted: list[tuple[Call, tuple[int, ...]]] = field(default_factory=list)

    def run(self, call: Call) -> Value:
        value = super().run(call)
        self.noted.append((call, value.shape))
        return value


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_outline_has_the_calls_and_the_shapes_of_the_pass(arch: str, tmp_path: Path) -> None:
    model = open_model(tiny(arch, tmp_path, n_layer=2))
    probe = Noting(F32)
    for _ in model.forward(STEPS, probe):
        pass
    awaited = outline(model, STEPS)
    assert len(awaited) == len(probe.noted)
    for each, (call, shape) in zip(awaited, probe.noted, strict=True):
        assert each.shape == shape, call.point
        assert (each.call.step, each.call.layer, each.call.point, each.call.order) == (
            call.step, call.layer, call.point, call.order,
        )  # fmt: skip
        assert [s.shape for s in sources(each.call)] == [s.shape for s in call.sources if s is not None]
    assert sum(each.array.strides != (0,) * each.array.ndim for each in awaited) == 0  # no memory
