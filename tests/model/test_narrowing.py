"""Rounding to narrower floats: against numpy's f16, and against what the number of bits after the point says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from firstdiff.model.narrowing import narrowed

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def numbers() -> Floats:
    """Float32 numbers of every exponent and sign, the ends of every type's range, halves between two of its numbers."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint64).astype(np.uint32)
    exponents = np.arange(256, dtype=np.uint32) << 23
    halves = [(exponents | np.uint32(odd << at)).reshape(-1) for at in (12, 13, 15, 16) for odd in (0, 1, 2, 3, 5)]
    ends = [0.0, 65504, 65519.996, 65520, 2.0**-24, 2.0**-25, 2.0**-14, np.inf, np.nan]
    some = np.concatenate([bits, *halves, np.array(ends, np.float32).view(np.uint32)])
    return np.concatenate([some, some ^ np.uint32(1 << 31)]).view(np.float32)


def test_f16_is_numpys_to_the_bit(numbers: Floats) -> None:
    with np.errstate(all="ignore"):
        expected = numbers.astype(np.float16).astype(np.float32)

    assert_same(narrowed(numbers, "f16"), expected)


@pytest.mark.parametrize(
    ("kind", "bits", "nearest"),
    [
        ("bf16", 7, np.rint),
        ("tf32", 10, lambda x: np.trunc(x + np.copysign(0.5, x))),
        ("tf32-truncated", 10, np.trunc),
    ],
)
def test_the_others_keep_so_many_bits(numbers: Floats, kind: str, bits: int, nearest: np.ufunc) -> None:
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(numbers.astype(np.float64))
        exponent = np.maximum(exponent, -125)  # below it float32's own numbers have fewer bits
        units = np.ldexp(numbers.astype(np.float64), bits + 1 - exponent)
        expected = np.ldexp(nearest(units), exponent - bits - 1).astype(np.float32)
    expected = np.where(np.isfinite(numbers), expected, numbers)

    assert_same(narrowed(numbers, kind), expected)


def test_any_layout_and_shape_is_taken() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7

    assert np.array_equal(narrowed(x.transpose(2, 0, 1), "bf16"), narrowed(x, "bf16").transpose(2, 0, 1))
    assert narrowed(x[:0], "f16").shape == (0, 3, 4)
    assert narrowed(np.float32(1 / 3) * np.ones((), np.float32), "f16") == np.float32(np.float16(1 / 3))


def assert_same(found: Floats, expected: Floats) -> None:
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), (found[~same][:5], expected[~same][:5])
