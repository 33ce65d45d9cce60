"""Whatever bytes a trace is made of, it is read or refused with TraceError; values are widened exactly."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from builders.traces import mutated
from firstdiff.dumps import Site, Step, TraceError, TraceWriter, open_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)

SCALARS = st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
COUNTS = st.integers(-1, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64])
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "F4", "x"])
        | SCALARS,
        "shape": st.lists(COUNTS, max_size=4) | JSON,
        "data_offsets": st.lists(COUNTS, min_size=1, max_size=3) | JSON,
    },
)
HEADER = st.dictionaries(
    st.sampled_from(["embd", "l_out-0", "a@1", "__metadata__"]) | st.text(max_size=6), ENTRY | JSON
)
STEP = st.fixed_dictionaries(
    {}, optional={"tokens": st.lists(COUNTS, max_size=4) | JSON, "positions": JSON, "order": JSON}
)
MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "format": st.just("firstdiff-trace") | JSON,
        "version": st.just(1) | JSON,
        "steps": st.lists(STEP, max_size=3) | JSON,
        "order": st.lists(st.sampled_from(["embd", "l_out-0"]) | st.text(max_size=5)) | JSON,
        "names": JSON,
        "layouts": JSON,
        "engine": JSON,
        "model": JSON,
        "complete": JSON,
    },
)


@pytest.fixture(scope="module")
def run() -> Iterator[Path]:
    """One good trace of two steps, whose files each example replaces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with TraceWriter(path, engine={"name": "fuzz"}, model={}) as writer:
            writer.step(Step((1, 2), (0, 1)), {"embd": np.ones((2, 3)), "l_out-0": np.ones((2, 3), np.float16)})
            writer.step(Step((3,), (2,)), {"embd": np.ones((1, 3)), "l_out-0": np.ones((1, 3), np.float16)})
        yield path


def read_or_refuse(path: Path) -> None:
    try:
        trace = open_trace(path)
    except TraceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        return
    assert trace.steps
    assert all(note.isprintable() for note in trace.notes)
    for site in trace:
        assert site.step < len(trace.steps)
        assert trace[site].shape == trace.shape(site)
        assert trace[site].dtype in (np.float32, np.float64)
        str(site).encode()


def with_file(run: Path, name: str, content: bytes) -> None:
    good = (run / name).read_bytes()
    try:
        (run / name).write_bytes(content)
        read_or_refuse(run)
        if name.endswith(".safetensors"):
            read_or_refuse(run / name)
    finally:
        (run / name).write_bytes(good)


@pytest.mark.slow
@FUZZ
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["trace.json", "step-000.safetensors", "step-001.safetensors"])
def test_random_bytes_never_surprise(run: Path, name: str, content: bytes) -> None:
    with_file(run, name, content)


@pytest.mark.slow
@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("name", ["trace.json", "step-000.safetensors", "step-001.safetensors"])
def test_mutations_never_surprise(run: Path, name: str, data: st.DataObject) -> None:
    with_file(run, name, data.draw(mutated((run / name).read_bytes())))


@pytest.mark.slow
@FUZZ
@given(manifest=MANIFEST | JSON)
def test_any_json_as_manifest_never_surprises(run: Path, manifest: Any) -> None:
    with_file(run, "trace.json", json.dumps(manifest).encode())


@pytest.mark.slow
@FUZZ
@given(header=HEADER | JSON, data=st.binary(max_size=64))
@pytest.mark.parametrize("name", ["step-000.safetensors", "step-001.safetensors"])
def test_any_json_as_header_never_surprises(run: Path, name: str, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    with_file(run, name, struct.pack("<Q", len(text)) + text + data)


@FUZZ
@given(text=st.text(max_size=300))
def test_a_text_is_refused_or_is_a_site_that_prints_back(text: str) -> None:
    try:
        site = Site.parse(text)
    except TraceError:
        return
    assert Site.parse(str(site)) == site
    assert str(site) in (text, text.removesuffix("@0"))


@pytest.mark.slow
@FUZZ
@given(
    values=npst.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements={"allow_subnormal": True},
    ),
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
)
def test_a_recorded_array_is_read_back_bit_by_bit(run: Path, key: str, values: np.ndarray) -> None:
    path = run.parent / "round-trip"
    try:
        with TraceWriter(path, engine={}, model={}) as writer:
            writer.step(Step((1,), (0,)), {key: values})
    except TraceError as error:
        assert "tensor" in str(error)  # noqa: PT017 - a bad key is refused, all others survive
        return
    trace = open_trace(path)
    (site,) = trace
    assert site.key == key
    wide = np.float64 if values.dtype.itemsize == 8 or values.dtype.kind == "i" else np.float32
    assert trace[site].dtype == wide
    np.testing.assert_array_equal(trace[site], values.astype(wide))
    if values.dtype != np.int64:  # beyond 2**53 float64 rounds
        back = trace[site].astype(values.dtype)
        number = ~np.isnan(values)  # a processor may quieten a NaN
        assert back[number].tobytes() == values[number].tobytes()


def by_formula(code: int, exponent_bits: int, mantissa_bits: int, *, infinities: bool) -> float:
    """The value of an IEEE-like code: sign, exponent, mantissa, from the definition."""
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    bias = (1 << (exponent_bits - 1)) - 1
    top = exponent == (1 << exponent_bits) - 1
    if top and infinities:
        return math.nan if mantissa else sign * math.inf
    if top and mantissa == (1 << mantissa_bits) - 1:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)


@pytest.mark.parametrize(
    ("dtype", "exponent_bits", "mantissa_bits"),
    [("F8_E4M3", 4, 3), ("F8_E5M2", 5, 2), ("BF16", 8, 7), ("F16", 5, 10)],
)
def test_every_code_of_a_short_float_is_widened_to_its_value(
    tmp_path: Path, dtype: str, exponent_bits: int, mantissa_bits: int
) -> None:
    bits = 1 + exponent_bits + mantissa_bits
    codes = np.arange(2**bits, dtype=np.uint8 if bits == 8 else "<u2")
    header = json.dumps({"a": {"dtype": dtype, "shape": [2**bits], "data_offsets": [0, codes.nbytes]}}).encode()
    header += b" " * (1 - len(header) % 2)  # odd: the values start unaligned
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + codes.tobytes())
    values = open_trace(tmp_path / "x.safetensors", tokens=[1])[Site(0, None, "a")]
    expected = np.array(
        [by_formula(code, exponent_bits, mantissa_bits, infinities=dtype != "F8_E4M3") for code in range(2**bits)]
    )
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values[number]), np.signbit(expected[number]))
