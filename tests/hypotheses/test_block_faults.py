"""Ways of decoding blocks wrongly, on weights of llama.cpp's own quantiser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from builders.models import KINDS, Bytes
from firstdiff.hypotheses.blocks.faults import BLOCK_FAULTS, BlockWay
from firstdiff.model.quants import BY_NAME, dequantize

WAYS = {
    f"{fault.id}/{kind}/{way.name}": (kind, way)
    for fault in BLOCK_FAULTS.values()
    for way in fault.ways
    for kind in way.kinds
}


@pytest.fixture(scope="module")
def quantised_blocks(quantised_raw: dict[str, Bytes]) -> dict[str, Bytes]:
    return {kind: raw.reshape(-1, BY_NAME[kind].nbytes) for kind, raw in quantised_raw.items()}


def decoded(way: BlockWay, kind: str, raw: Bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return way.decode(raw, BY_NAME[kind])


@pytest.mark.parametrize("which", WAYS)
def test_each_way_changes_values(which: str, quantised_blocks: dict[str, Bytes]) -> None:
    kind, way = WAYS[which]
    raw = quantised_blocks[kind]
    right = dequantize(raw.reshape(-1), BY_NAME[kind]).reshape(len(raw), -1)

    wrong = decoded(way, kind, raw)

    assert wrong.dtype == np.float32
    assert wrong.shape == right.shape
    assert np.mean(wrong != right) > 0.005


@pytest.mark.parametrize("which", WAYS)
def test_each_way_takes_each_block_by_itself(which: str, quantised_blocks: dict[str, Bytes]) -> None:
    kind, way = WAYS[which]
    raw = quantised_blocks[kind][:64]
    np.testing.assert_array_equal(decoded(way, kind, raw[5:37]), decoded(way, kind, raw)[5:37])
    assert decoded(way, kind, raw[:0]).shape == (0, BY_NAME[kind].block)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_ways_give_the_same_values(kind: str, quantised_blocks: dict[str, Bytes]) -> None:
    raw = quantised_blocks[kind][:512]
    values = {which: decoded(way, name, raw) for which, (name, way) in WAYS.items() if name == kind}
    same = [
        (one, other)
        for one, other in combinations(values, 2)
        if np.array_equal(values[one], values[other], equal_nan=True)
    ]
    assert not same


@pytest.mark.parametrize("which", WAYS)
def test_any_bytes_decode_without_a_warning(which: str) -> None:
    kind, way = WAYS[which]
    raw = np.random.default_rng(5).integers(0, 256, (256, BY_NAME[kind].nbytes), np.uint8)
    assert decoded(way, kind, raw).shape == (256, BY_NAME[kind].block)


def test_every_way_of_a_fault_has_its_own_name() -> None:
    assert len(WAYS) == sum(len(way.kinds) for fault in BLOCK_FAULTS.values() for way in fault.ways)


# Some ways once more, as engines wrote them: one block, one element at a time.


def number(raw: Bytes, start: int) -> float:
    return float(raw[start : start + 2].view(np.float16)[0])


def scale_min(packed: list[int], g: int) -> tuple[int, int]:
    if g < 4:
        return packed[g] & 63, packed[g + 4] & 63
    return packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4


def q5_0_in_pairs(raw: Bytes) -> list[float]:
    """paiml/aprender#1656"""
    d, qh = number(raw, 0), int.from_bytes(raw[2:6].tobytes(), "little")
    y = []
    for i, byte in enumerate(raw[6:].tolist()):
        y += [
            d * ((byte & 15 | (qh >> 2 * i & 1) << 4) - 16),
            d * ((byte >> 4 | (qh >> (2 * i + 1) & 1) << 4) - 16),
        ]
    return y


def q5_0_high_bit_moved_twice(raw: Bytes) -> list[float]:
    d, qh, qs = number(raw, 0), int.from_bytes(raw[2:6].tobytes(), "little"), raw[6:].tolist()
    first = [d * ((qs[j] & 15 | (qh >> j) << 4 & 16) - 16) for j in range(16)]
    return first + [d * ((qs[j] >> 4 | (qh >> (j + 12)) << 4 & 16) - 16) for j in range(16)]


def q4_1_short_header(raw: Bytes) -> list[float]:
    """ml-explore/mlx#3664"""
    d, m, qs = number(raw, 0), number(raw, 2), raw[2:18].tolist()
    return [d * (q & 15) + m for q in qs] + [d * (q >> 4) + m for q in qs]


def q2_k_in_sequence(raw: Bytes) -> list[float]:
    """paiml/aprender#1924"""
    d, dmin, scales, qs = number(raw, 80), number(raw, 82), raw[:16].tolist(), raw[16:80].tolist()
    return [
        d * (scales[j] & 15) * (qs[4 * j + i // 4] >> 2 * (i % 4) & 3) - dmin * (scales[j] >> 4)
        for j in range(16)
        for i in range(16)
    ]


def q3_k_inverted(raw: Bytes) -> list[float]:
    d, hmask, qs, packed = number(raw, 108), raw[:32].tolist(), raw[32:96].tolist(), raw[96:108].tolist()
    y = []
    for e in range(256):
        g, lane, half, j = e // 16, e % 32, e // 128, e % 128 // 32
        scale = packed[g % 8] >> 4 * (g // 8) & 15 | (packed[8 + g % 4] >> 2 * (g // 4) & 3) << 4
        code = (qs[32 * half + lane] >> 2 * j & 3) - (4 if hmask[lane] & 1 << (4 * half + j) else 0)
        y.append(d * (scale - 32) * code)
    return y


def q4_k(raw: Bytes, unpack: Callable[[list[int], int], tuple[int, int]]) -> list[float]:
    d, dmin, packed, qs = number(raw, 0), number(raw, 2), raw[4:16].tolist(), raw[16:].tolist()
    y = []
    for g in range(8):
        scale, minimum = unpack(packed, g)
        y += [d * scale * (qs[32 * (g // 2) + i] >> 4 * (g % 2) & 15) - dmin * minimum for i in range(32)]
    return y


def q4_k_without_branch(raw: Bytes) -> list[float]:
    return q4_k(raw, lambda packed, g: (packed[g] & 63, packed[g + 4] & 63))


def q4_k_entries_of_12_bits(raw: Bytes) -> list[float]:
    """paiml/trueno#182"""

    def entry(packed: list[int], g: int) -> tuple[int, int]:
        bits = int.from_bytes(bytes(packed), "little") >> 12 * g
        return bits & 63, bits >> 6 & 63

    return q4_k(raw, entry)


def q5_k_in_sequence(raw: Bytes) -> list[float]:
    """paiml/aprender#2127"""
    d, dmin, packed = number(raw, 0), number(raw, 2), raw[4:16].tolist()
    qh, qs = raw[16:48].tolist(), raw[48:].tolist()
    y = []
    for e in range(256):
        scale, minimum = scale_min(packed, e // 32)
        code = qs[e // 2] >> 4 * (e % 2) & 15 | (qh[e // 8] >> e % 8 & 1) << 4
        y.append(d * scale * code - dmin * minimum)
    return y


def q6_k_scales_one_by_one(raw: Bytes) -> list[float]:
    d, ql, qh = number(raw, 208), raw[:128].tolist(), raw[128:192].tolist()
    scales = raw[192:208].view(np.int8).tolist()
    y = []
    for e in range(256):
        half, part, i = e // 128, e % 128 // 32, e % 32
        low = ql[64 * half + 32 * (part % 2) + i] >> 4 * (part // 2) & 15
        code = low | (qh[32 * half + i] >> 2 * part & 3) << 4
        y.append(d * scales[8 * half + i // 16 + part] * (code - 32))  # + part where + 2 * part is right
    return y


@pytest.mark.parametrize(
    ("kind", "fault", "name", "written"),
    [
        ("Q5_0", "nibble-order", "pairs (2i, 2i + 1)", q5_0_in_pairs),
        ("Q5_0", "high-bits", "qh >> (j + 12) moved up by 4 once more", q5_0_high_bit_moved_twice),
        ("Q4_1", "header-size", "2 bytes in place of 4", q4_1_short_header),
        ("Q2_K", "lanes", "four codes of a byte in sequence", q2_k_in_sequence),
        ("Q3_K", "high-bits", "of the other meaning", q3_k_inverted),
        ("Q4_K", "scale-packing", "indices from 4 on as those below", q4_k_without_branch),
        ("Q4_K", "scale-packing", "6 bits in sequence, in pairs", q4_k_entries_of_12_bits),
        ("Q5_K", "high-nibble-stride", "nibbles and high bits in sequence", q5_k_in_sequence),
        ("Q6_K", "scale-index", "moved on by 1 in place of 2", q6_k_scales_one_by_one),
    ],
)
def test_a_way_is_what_an_engine_wrote(
    kind: str, fault: str, name: str, written: Callable[[Bytes], list[float]], quantised_blocks: dict[str, Bytes]
) -> None:
    raw = quantised_blocks[kind][-8:]
    _, way = WAYS[f"{fault}/{kind}/{name}"]
    np.testing.assert_allclose(decoded(way, kind, raw), [written(block) for block in raw], rtol=1e-6, atol=1e-7)
