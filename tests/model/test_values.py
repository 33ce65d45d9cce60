"""Values are handles: an architecture can hand them to a probe, and nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import replayed, with_status
from builders.models import synthetic
from firstdiff.dumps import Site, Trace
from firstdiff.model.architectures import llama
from firstdiff.model.arithmetic import F32, F64
from firstdiff.model.engine import open_model
from firstdiff.model.moves import MOVES, columns, gather, merged
from firstdiff.model.operations import add, rms_norm
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.verdict import Status

TOKENS = [1, 70, 71, 72, 73]


@pytest.fixture
def value() -> Value:
    return Probe(F32)("embd", add, Probe(F32)(None, _zeros), Probe(F32)(None, _zeros))


def _zeros(*, arithmetic: object) -> Any:
    del arithmetic
    return np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x[:1],
        lambda x: x + x,
        lambda x: 2 * x,
        lambda x: -x,
        lambda x: x @ x,
        lambda x: x == x,  # noqa: PLR0124 - what is compared is a handle
        lambda x: x < 1,
        np.asarray,
        np.exp,
        lambda x: np.concatenate([x, x]),
        lambda x: np.ones((2, 4)) * x,
        list,
        bool,
        float,
        operator.abs,
    ],
)
def test_a_value_can_only_be_handed_on(value: Value, use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"can only be handed to a probe.*probe\(None, operation, value\)"):
        use(value)


def test_an_array_that_no_probe_returned_is_refused(value: Value) -> None:
    with pytest.raises(TypeError, match=r"probe\('ffn_inp', add\): input 1 is an array that no probe returned"):
        Probe(F32)("ffn_inp", add, value, value.array.copy())


def test_an_architecture_that_slices_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(synthetic(tmp_path, n_layer=1))

    def sliced(probe: Probe, *args: Any) -> Value:
        return llama_block(probe, args[0][:], *args[1:])

    llama_block = llama.block
    monkeypatch.setattr(llama, "block", sliced)
    with pytest.raises(TypeError, match="can only be handed to a probe"):
        plant(model, TOKENS)


def _viewed(probe: Probe, point: str, op: Any, *inputs: Any, **attributes: Any) -> Value:
    """A call whose inputs go through a view and a gather that change nothing, as in a fused or a routed layer."""
    moved = []
    for x in inputs:
        if isinstance(x, Value) and x.array.ndim == 2:
            width, rows = x.shape[1], list(range(len(x)))
            x = probe(None, gather, probe(None, columns, x, start=0, stop=width), rows)  # noqa: PLW2901
        moved.append(x)
    return Probe.__call__(probe, point, op, *moved, **attributes)


def _through_views(monkeypatch: pytest.MonkeyPatch) -> None:
    class Viewing:
        """The probe of an architecture that views between its points."""

        def __init__(self, probe: Probe) -> None:
            self.probe = probe

        def __call__(self, point: str | None, op: Any, *inputs: Any, **attributes: Any) -> Value:
            assert point is not None
            return _viewed(self.probe, point, op, *inputs, **attributes)

        layer = property(lambda self: self.probe.layer)

    right = llama.block
    monkeypatch.setattr(llama, "block", lambda probe, *args: right(Viewing(probe), *args))


def test_views_between_points_change_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean engine that records no norms: sliced values once had no segment, and five right products were accused."""
    model = open_model(synthetic(tmp_path, n_layer=3))
    trace, _ = plant(model, TOKENS, arithmetic=F64)
    kept = {s: np.asarray(trace[s]) for s in trace.sites() if not s.point.endswith("_norm")}
    partly = Trace.from_arrays(trace.steps, kept, engine=dict(trace.engine), model={})
    plain = replayed(model, partly, F32)
    _through_views(monkeypatch)
    assert replayed(model, partly, F32) == plain
    assert not with_status(plain, Status.DIVERGES)


def test_what_comes_of_a_wrong_tensor_inherits_through_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(synthetic(tmp_path, n_layer=2))
    trace, touched = plant(model, TOKENS, ("norm-plus-one", 0))
    _through_views(monkeypatch)
    sites = replayed(model, trace, F32)
    assert with_status(sites, Status.DIVERGES) == touched
    assert set(with_status(sites, Status.AGREES)) == {"embd", "embd@1"}


def test_a_silent_call_has_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(synthetic(tmp_path, n_layer=1))
    plain, _ = plant(model, TOKENS)
    _through_views(monkeypatch)
    viewed, _ = plant(model, TOKENS)
    assert viewed.sites() == plain.sites()


def test_a_call_runs_again_on_other_arrays_in_place_of_its_values(value: Value) -> None:
    call = Call(0, None, "embd", rms_norm, (value.array, None), {"eps": 1e-5}, (value, None))
    ones = np.ones((2, 4), np.float32)
    assert call.with_inputs({value: ones}).inputs[0] is ones
    assert call.with_inputs({}) is call
    assert str(Site(0, None, "embd")) == "embd"


def test_heads_that_are_merged_and_parted_again_are_the_same() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)  # [token, head, head_dim]
    row = merged(x, arithmetic=F32)
    assert row.shape == (2, 12)
    np.testing.assert_array_equal(columns(row, start=0, stop=12, heads=3, arithmetic=F32), x)
    assert {merged, columns} <= MOVES
