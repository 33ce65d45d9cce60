"""Every value against llama.cpp's own functions, reached in its shared libraries, and against `gguf`."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from firstdiff.engines.ggml import bindings
from firstdiff.model import quants
from firstdiff.model.errors import ModelError
from firstdiff.model.quants import BY_NAME, SUPPORTED, TYPES, QuantType, dequantize, round_activations

NAMES = [name for name in BY_NAME if name in SUPPORTED]
# Where each block keeps its float16 fields.
HALVES = {
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ1_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q1_0": [0],
    "Q2_0": [0],
}
# How ggml stores rounded activations (ggml-common.h).
ACTIVATIONS = {
    "Q8_0": np.dtype([("d", np.float16), ("qs", np.int8, 32)]),
    "Q8_1": np.dtype([("d", np.float16), ("s", np.float16), ("qs", np.int8, 32)]),
    "Q8_K": np.dtype([("d", np.float32), ("qs", np.int8, 256), ("bsums", np.int16, 16)]),
}


class TypeTraits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


class TypeTraitsCpu(ctypes.Structure):
    _fields_ = [
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(
                None,
                ctypes.c_int,
                *[ctypes.c_void_p, ctypes.c_size_t] * 3,
                ctypes.c_int,
            ),
        ),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


class Ggml:
    """The functions of ggml that are compared with."""

    def __init__(self, folder: Path) -> None:
        self.base, self.cpu = (ctypes.CDLL(str(next(iter(folder.glob(f"*ggml-{part}.*"))))) for part in ("base", "cpu"))
        self.base.ggml_type_name.restype = ctypes.c_char_p
        self.base.ggml_blck_size.restype = ctypes.c_int64
        self.base.ggml_type_size.restype = ctypes.c_size_t
        self.base.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
        self.base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            *[ctypes.c_void_p] * 2,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(TypeTraitsCpu)
        self.cpu.ggml_cpu_init()

    def traits_cpu(self, number: int) -> TypeTraitsCpu:
        return self.cpu.ggml_get_type_traits_cpu(number).contents

    def dequantize(self, raw: Any, kind: QuantType) -> Any:
        if kind.name == "F32":  # ggml has no function for what needs no work
            return raw.view(np.float32)
        out = np.empty(raw.size // kind.nbytes * kind.block, np.float32)
        self.base.ggml_get_type_traits(kind.id).contents.to_float(raw.ctypes.data, out.ctypes.data, out.size)
        return out

    def quantize(self, values: Any, kind: QuantType) -> Any:
        """Return float32 [rows, n] as whole blocks."""
        raw = np.empty(values.size // kind.block * kind.nbytes, np.uint8)
        weights = np.ones(values.shape[1], np.float32)  # of each column: some types must have them
        matrix = weights.ctypes.data if self.base.ggml_quantize_requires_imatrix(kind.id) else None
        written = self.base.ggml_quantize_chunk(kind.id, values.ctypes.data, raw.ctypes.data, 0, *values.shape, matrix)
        assert written == raw.size
        return raw

    def round(self, x: Any, weight: QuantType) -> tuple[str, Any]:
        """Return the type that ggml rounds float32 [rows, n] to for this weight, and the bytes."""
        target = TYPES[self.traits_cpu(weight.id).vec_dot_type]
        raw = np.empty(x.size // target.block * target.nbytes, np.uint8)
        self.traits_cpu(target.id).from_float(x.ctypes.data, raw.ctypes.data, x.size)
        return target.name, raw

    def dot(self, weight: QuantType, row: Any, activations: Any, n: int) -> float:
        out = np.zeros(1, np.float32)
        self.traits_cpu(weight.id).vec_dot(n, out.ctypes.data, 0, row.ctypes.data, 0, activations.ctypes.data, 0, 1)
        return float(out[0])


@pytest.fixture(scope="module")
def ggml(llama: None) -> Ggml:
    found = importlib.util.find_spec("llama_cpp")
    assert found
    assert found.origin
    return Ggml(Path(found.origin).parent / "lib")


def assert_same_bits_as_gguf(actual: Any, raw: Any, kind: QuantType) -> None:
    with np.errstate(all="ignore"):
        try:
            expected = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind.id))
        except (NotImplementedError, ValueError):
            assert kind.name in ("Q1_0", "Q2_0")  # which are newer than the package
            return
    assert_same_bits(actual, expected)


def random_blocks(kind: QuantType, count: int) -> Any:
    return np.random.default_rng(kind.id).integers(0, 256, (count, kind.nbytes), dtype=np.uint8)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Equal to the bit, except that every NaN equals every other."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    wrong = actual.view(np.uint32) != expected.view(np.uint32)
    wrong &= ~(np.isnan(actual) & np.isnan(expected))
    first = np.flatnonzero(wrong)[:4]
    assert not first.size, (
        f"{wrong.sum()} of {wrong.size} differ, first at {first}: {actual.flat[first]} {expected.flat[first]}"
    )


def test_the_type_table_is_ggmls(ggml: Ggml) -> None:
    count = bindings().GGML_TYPE_COUNT
    sizes = [ggml.base.ggml_type_size(number) for number in range(count)]  # 0 for a type that was removed

    assert sorted(TYPES) == [number for number, size in enumerate(sizes) if size]
    for number, kind in TYPES.items():
        assert kind.id == number
        assert kind.name == ggml.base.ggml_type_name(number).decode().upper()
        assert kind.block == ggml.base.ggml_blck_size(number)
        assert kind.nbytes == ggml.base.ggml_type_size(number)


@pytest.mark.parametrize("name", NAMES)
def test_quantised_values_are_llama_cpps_and_ggufs(name: str, ggml: Ggml) -> None:
    kind = BY_NAME[name]
    values = np.random.default_rng(1).normal(size=(64, 2048)).astype(np.float32)
    raw = ggml.quantize(values, kind)

    actual = dequantize(raw, kind)

    assert_same_bits(actual, ggml.dequantize(raw, kind))
    assert_same_bits_as_gguf(actual, raw, kind)
    # One bit keeps the sign alone; that the rest is right is said above.
    assert np.corrcoef(actual, values.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_what_llama_cpp_and_gguf_make_of_them(name: str, ggml: Ggml) -> None:
    kind = BY_NAME[name]
    blocks = random_blocks(kind, 5000)
    for offset in HALVES.get(name, []):
        blocks[:, offset + 1] &= 0xBF  # an exponent that is not all ones: finite
    raw = blocks.ravel()

    actual = dequantize(raw, kind)

    assert_same_bits(actual, ggml.dequantize(raw, kind))
    assert_same_bits_as_gguf(actual, raw, kind)


@pytest.mark.parametrize("name", HALVES)
def test_every_float16_is_right_as_scale_and_as_minimum(name: str, ggml: Ggml) -> None:
    kind = BY_NAME[name]
    halves = np.arange(65536, dtype=np.uint16)
    blocks = random_blocks(kind, 65536)
    for offset in HALVES[name]:
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
        # A second field meets the first in another order.
        halves = np.random.default_rng(2).permutation(halves)
    raw = blocks.ravel()

    actual = dequantize(raw, kind)

    assert_same_bits(actual, ggml.dequantize(raw, kind))
    assert_same_bits_as_gguf(actual, raw, kind)


def test_every_bfloat16_is_right(ggml: Ggml) -> None:
    raw = np.arange(65536, dtype=np.uint16).view(np.uint8)

    actual = dequantize(raw, BY_NAME["BF16"])

    assert_same_bits(actual, ggml.dequantize(raw, BY_NAME["BF16"]))
    assert_same_bits_as_gguf(actual, raw, BY_NAME["BF16"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_values_do_not_depend_on_how_the_bytes_lie_in_memory(name: str) -> None:
    kind = BY_NAME[name]
    raw = random_blocks(kind, 3).ravel()
    expected = dequantize(raw.copy(), kind)

    odd = np.empty(raw.size + 1, np.uint8)[1:]
    odd[:] = raw
    read_only = raw.copy()
    read_only.flags.writeable = False
    given = np.empty_like(expected)

    assert_same_bits(dequantize(odd, kind), expected)
    assert_same_bits(dequantize(read_only, kind), expected)
    assert dequantize(odd, kind, given) is given
    assert_same_bits(given, expected)
    assert dequantize(raw[:0], kind).shape == (0,)


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q6_K"])
def test_two_threads_write_what_one_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME[name]
    raw = random_blocks(kind, quants._SPLIT // kind.block + 1).ravel()

    monkeypatch.setattr(quants, "jobs", lambda: 1)
    one = dequantize(raw, kind)
    monkeypatch.setattr(quants, "jobs", lambda: 2)
    two = dequantize(raw, kind)

    assert_same_bits(two, one)


def test_f32_is_a_view_where_alignment_allows() -> None:
    raw = np.arange(8, dtype=np.float32).view(np.uint8)

    assert np.shares_memory(dequantize(raw, BY_NAME["F32"]), raw)
    assert not np.shares_memory(dequantize(raw[1:-3], BY_NAME["F32"]), raw)


def test_an_unsupported_type_is_named_beside_the_supported_ones() -> None:
    with pytest.raises(ModelError, match=r"type Q8_K is not supported.*Q4_K") as caught:
        dequantize(np.zeros(292, np.uint8), BY_NAME["Q8_K"])
    assert all(name in str(caught.value) for name in SUPPORTED)
    with pytest.raises(ModelError, match="type I8 is not supported"):
        round_activations(np.zeros((1, 32), np.float32), BY_NAME["I8"])


def test_a_cut_block_is_refused() -> None:
    with pytest.raises(ModelError, match=r"35 bytes of Q4_0 .* blocks of 18 bytes"):
        dequantize(np.zeros(35, np.uint8), BY_NAME["Q4_0"])
    with pytest.raises(ModelError, match=r"Q4_K weight .* multiple of 256 values, not 32"):
        round_activations(np.zeros((1, 32), np.float32), BY_NAME["Q4_K"])


@pytest.mark.parametrize(
    "out",
    [np.empty(31, np.float32), np.empty(32), np.empty((1, 32), np.float32), np.empty(64, np.float32)[::2]],
    ids=["short", "float64", "two axes", "strided"],
)
def test_an_output_that_does_not_fit_is_refused(out: Any) -> None:
    with pytest.raises(ValueError, match="out must be"):
        dequantize(np.zeros(18, np.uint8), BY_NAME["Q4_0"], out)


@pytest.mark.parametrize("raw", [np.zeros(18), np.zeros((1, 18), np.uint8), np.zeros(36, np.uint8)[::2]])
def test_input_that_is_no_run_of_bytes_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match="raw must be"):
        dequantize(raw, BY_NAME["Q4_0"])


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_minima_are_the_second_float16_of_each_block(name: str) -> None:
    kind = BY_NAME[name]
    blocks = random_blocks(kind, 100)
    expected = blocks[:, 2:4].copy().view(np.float16)[:, 0].astype(np.float32)

    assert_same_bits(quants.minima(blocks.ravel(), kind), expected)
    with pytest.raises(ModelError, match="Q4_K keeps no minimum"):
        quants.minima(blocks.ravel(), BY_NAME["Q4_K"])


def activations() -> Any:
    """Return float32 [row, 1024] with everything in it that rounding can stumble over."""
    rng = np.random.default_rng(3)
    usual = rng.normal(size=(64, 1024))
    heavy = usual[:16] ** 5
    ties = rng.integers(-254, 255, (16, 1024)) / 2  # with 127 in each block, codes end in .5
    ties[:, ::32] = 127
    near_ties = (ties.reshape(16, 32, 32) * rng.normal(size=(16, 32, 1)).astype(np.float32)).reshape(16, 1024)
    bits = usual[:8].astype(np.float32).view(np.uint32)
    half_ties = [(bits & ~np.uint32(2 * tie - 1) | tie).view(np.float32) for tie in (0x8000, 0x1000)]
    both_signs = np.where(usual[:8] > 0, 3.7, -3.7)
    tiny = [usual[:4] * 10.0**exponent for exponent in range(-45, -30)]
    great = [usual[:4] * 10.0**exponent for exponent in range(4, 37, 4)]
    gaps = np.where(np.arange(1024) // 32 % 2, usual[:4], 0)
    rows = [
        usual,
        heavy,
        ties,
        -ties,
        near_ties,
        *half_ties,
        both_signs,
        *tiny,
        *great,
        gaps,
        np.zeros((2, 1024)),
        -np.zeros((2, 1024)),
    ]
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_rounded_as_ggml_rounds_them(name: str, ggml: Ggml) -> None:
    weight = BY_NAME[name]
    x = activations()

    rounded, offsets = round_activations(x, weight)

    target, raw = ggml.round(x, weight)
    if target not in ACTIVATIONS:
        assert_same_bits(rounded.ravel(), ggml.dequantize(raw, BY_NAME[target]))
        assert offsets is None
        return
    blocks = raw.view(ACTIVATIONS[target])
    d = blocks["d"].astype(np.float32)
    with np.errstate(invalid="ignore"):  # scales that overflow float16
        expected = blocks["qs"] * d[:, None]
    assert_same_bits(rounded, expected.reshape(x.shape))
    if target != "Q8_1":
        assert offsets is None
        return
    assert offsets is not None
    with np.errstate(invalid="ignore"):
        missed = blocks["s"].astype(np.float32) - d * blocks["qs"].sum(axis=1, dtype=np.int32).astype(np.float32)
    np.testing.assert_array_equal(offsets, missed.reshape(len(x), -1))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("F32", "F16", "BF16")])
def test_a_product_of_rounded_values_is_ggmls_product(name: str, ggml: Ggml) -> None:
    weight = BY_NAME[name]
    n = 2048
    rng = np.random.default_rng(4)
    raw = ggml.quantize(rng.normal(0.5, 1, (64, n)).astype(np.float32), weight).reshape(64, -1)
    x = rng.normal(0.5, 1, (1, n)).astype(np.float32)
    values = dequantize(raw.ravel(), weight).reshape(64, n).astype(np.float64)

    rounded, offsets = round_activations(x, weight)
    product = rounded[0] @ values.T
    if offsets is not None:
        product += offsets[0] @ quants.minima(raw.ravel(), weight).reshape(64, -1).T.astype(np.float64)

    _, blocks = ggml.round(x, weight)
    expected = [ggml.dot(weight, row, blocks, n) for row in raw]
    # What is left is the order of ggml's float32 sums: up to 2.2e-7 of the sum of magnitudes, and 3.9e-7 with
    # minima. Without the offsets it is 8.5e-5.
    np.testing.assert_array_less(np.abs(product - expected) / (np.abs(rounded[0]) @ np.abs(values).T), 5e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_nan_or_infinity_rounds_to_no_number(name: str, bad: float) -> None:
    x = np.ones((2, 512), np.float32)
    x[1, 300] = bad

    rounded, _ = round_activations(x, BY_NAME[name])

    assert not np.isfinite(rounded[1, 300])
    assert np.isfinite(rounded[0]).all()
    assert np.isfinite(rounded[1, :256]).all()
    if name not in ("F32", "F16", "BF16"):
        assert np.isnan(rounded[1, 288:320]).all()
