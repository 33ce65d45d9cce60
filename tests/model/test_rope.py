"""Rotary position embedding: the numbers of the case study, the laws of rotation, and ggml's own function.

The printed numbers are those of TinyLlama (64 dimensions a head, base 10000) and of a derivation with 128.
They are float32, so they are compared to 1e-7.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from builders.models import synthetic
from firstdiff.model.arithmetic import F32, F64, GGML_CPU, Arithmetic, Array
from firstdiff.model.attention import scores
from firstdiff.model.engine import open_model
from firstdiff.model.operations import linear, rope
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rope import angles, frequencies
from firstdiff.model.synthetic import Llama
from firstdiff.model.weights import Weight

PAIRINGS = ["interleaved", "half"]
PRINTED = 1e-7


def heads(tokens: int, count: int, dim: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((tokens, count, dim))


def turned(
    x: Array,
    positions: Sequence[int],
    factors: Weight | None = None,
    *,
    pairing: str = "interleaved",
    base: float = 10000.0,
    scale: float = 1.0,
    arithmetic: Arithmetic = F64,
) -> Array:
    return rope(x, positions, factors, pairing=pairing, base=base, scale=scale, arithmetic=arithmetic)


# The numbers of the case study.


def test_inverse_frequencies_of_64_and_128_dimensions_are_the_printed_ones() -> None:
    np.testing.assert_allclose(frequencies(64, base=10000.0)[:3], [1, 0.7498942, 0.5623413], atol=PRINTED)
    np.testing.assert_allclose(
        frequencies(128, base=10000.0)[:5], [1, 0.865964, 0.749894, 0.649382, 0.562341], atol=1e-6
    )


@pytest.mark.parametrize(
    ("position", "cos", "sin"),
    [
        (1, [0.5403023, 0.731761, 0.84600914], [0.84147096, 0.6815613, 0.53316844]),
        (2, [-0.41614684, 0.07094827, 0.43146282], None),
    ],
)
def test_the_rope_table_is_the_printed_one(position: int, cos: list[float], sin: list[float] | None) -> None:
    theta = angles([position], 64, base=10000.0)[0, :3]
    np.testing.assert_allclose(np.cos(theta), cos, atol=PRINTED)
    if sin is not None:
        np.testing.assert_allclose(np.sin(theta), sin, atol=PRINTED)


def test_the_numbers_that_were_waved_through_are_another_frequency_law() -> None:
    # 2 ** (-i / 5) where 10000 ** (-i / 32) belongs: with 64 dimensions that is base 84.4, and with base 10000
    # 132.9 dimensions. No head has them, so no wrong size explains it: the base or the power was off.
    printed = np.array([1, 0.870550573, 0.757858276])
    np.testing.assert_allclose(printed, 2.0 ** (-np.arange(3) / 5), atol=3e-8)
    np.testing.assert_allclose(printed, frequencies(64, base=2**6.4)[:3], atol=3e-8)

    nearest = min(range(4, 513, 2), key=lambda dim: abs(frequencies(dim, base=10000.0)[1] - printed[1]))
    assert nearest == 132
    assert abs(frequencies(nearest, base=10000.0)[1] - printed[1]) > 5e-4


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_rotated_pair_of_the_case_study_is_pair_0_at_position_1(pairing: str) -> None:
    before, after = (0.009036371, -0.193953320), (0.168088451, -0.097189575)
    first, second = (0, 1) if pairing == "interleaved" else (0, 32)
    x = np.zeros((1, 1, 64))
    x[0, 0, [first, second]] = before

    y = turned(x, [1], pairing=pairing)[0, 0]

    np.testing.assert_allclose(y[[first, second]], after, atol=PRINTED)
    angle = np.angle(complex(*after) / complex(*before))
    assert abs(angle - 1) < 1e-8  # pair 0 turns by its position, whatever the base and the size of a head


def test_interleaved_angles_with_a_half_split_rotation_do_not_rotate() -> None:
    # In the derivation's own test a norm went from 10.4785 to 10.4008, and the worst was off by 0.487. Its data
    # are lost; on others of the same kind, 128 standard normal numbers, the damage is of that size.
    x, positions = heads(16, 8, 128), range(16)
    theta = np.repeat(angles(positions, 128, base=10000.0), 2, axis=-1)[:, None]  # pair i at 2i and 2i + 1
    rotated_half = np.concatenate([-x[..., 64:], x[..., :64]], -1)
    broken = x * np.cos(theta) + rotated_half * np.sin(theta)

    lost = np.abs(np.linalg.norm(broken, axis=-1) - np.linalg.norm(x, axis=-1))

    assert lost[0].max() < 1e-12  # position 0 hides it
    assert 0.1 < np.median(lost[1:]) < 0.6
    assert 0.5 < lost.max() < 2.5
    for pairing in PAIRINGS:
        assert np.linalg.norm(broken - turned(x, positions, pairing=pairing)) / np.linalg.norm(x) > 0.3


# The laws of rotation.


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("arithmetic", [F64, F32, GGML_CPU], ids=lambda a: a.name)
def test_norms_are_kept(pairing: str, arithmetic: Arithmetic) -> None:
    x, positions = heads(5, 3, 64), [0, 1, 17, 2047, 8191]
    y = turned(x, positions, pairing=pairing, arithmetic=arithmetic)
    limit = 1e-14 if arithmetic is F64 else 3e-7  # a few roundings of the norm in float32
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=limit)
    assert y.dtype == arithmetic.dtype


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("arithmetic", [F64, F32, GGML_CPU], ids=lambda a: a.name)
def test_position_0_is_the_identity_to_the_bit(pairing: str, arithmetic: Arithmetic) -> None:
    x = heads(2, 3, 64).astype(arithmetic.dtype)
    np.testing.assert_array_equal(turned(x, [0, 0], pairing=pairing, arithmetic=arithmetic), x)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_score_depends_on_the_distance_alone(pairing: str) -> None:
    q, k = heads(1, 1, 64, seed=1), heads(1, 1, 64, seed=2)

    def score(m: int, n: int) -> float:
        at = {"pairing": pairing, "base": 10000.0, "arithmetic": F64}
        return scores(rope(q, [m], **at), rope(k, [n], **at), group=1, arithmetic=F64).item()

    near = [score(m, m - 3) for m in (3, 4, 100, 2000)]
    np.testing.assert_allclose(near, near[0], rtol=1e-11)  # float64 angles of up to 2000 radians
    assert abs(score(100, 96) - near[0]) > 0.1
    assert abs(score(97, 100) - near[0]) > 0.1  # and on its sign


def test_turning_twice_is_turning_by_the_sum() -> None:
    x = heads(1, 2, 64)
    np.testing.assert_allclose(turned(turned(x, [5]), [12]), turned(x, [17]), atol=1e-13)


def test_the_two_pairings_differ_by_a_permutation_of_the_dimensions() -> None:
    x, positions = heads(9, 3, 64), range(9)
    by_halves = np.concatenate([np.arange(0, 64, 2), np.arange(1, 64, 2)])

    interleaved = turned(x, positions, pairing="interleaved")
    half = turned(x[..., by_halves], positions, pairing="half")

    np.testing.assert_array_equal(half, interleaved[..., by_halves])
    assert np.linalg.norm(turned(x, positions, pairing="half") - interleaved) / np.linalg.norm(x) > 0.3


def test_permuted_weights_with_interleaved_pairs_score_as_plain_weights_with_halves(tmp_path: Path) -> None:
    # Why llama.cpp's llama and transformers' show other numbers after rope and the same ones in kq.
    model = open_model(synthetic(tmp_path / "model.gguf", Llama(n_layer=1)))
    x = np.random.default_rng(3).standard_normal((6, model.hp.n_embd))
    kq = {}
    for pairing in PAIRINGS:
        q, k = (project(model.weights.layer(0)[f"attn_{which}.weight"], x, pairing) for which in "qk")
        at = {"pairing": pairing, "base": 10000.0, "arithmetic": F64}
        kq[pairing] = scores(rope(q, range(6), **at), rope(k, range(6), **at), group=2, arithmetic=F64)

    np.testing.assert_allclose(kq["half"], kq["interleaved"], atol=1e-12)


def project(weight: Weight, x: Array, pairing: str) -> Array:
    """Return heads [T, H, 32] by the weight as the file has it, or as it was before conversion."""
    y = linear(x, weight, heads=weight.shape[0] // 32, arithmetic=F64)
    return y if pairing == "interleaved" else np.concatenate([y[..., 0::2], y[..., 1::2]], -1)


# Scaling.


def test_linear_scaling_turns_position_8_as_far_as_position_2() -> None:
    x = heads(1, 2, 64)
    np.testing.assert_array_equal(turned(x, [8], scale=0.25), turned(x, [2]))


def test_a_factor_divides_the_angle_of_its_own_pair() -> None:
    factors = np.ones(32, np.float32)
    factors[5] = 8
    plain, slowed = angles([16], 64, base=10000.0)[0], angles([16], 64, base=10000.0, factors=factors)[0]
    assert slowed[5] == plain[5] / 8
    np.testing.assert_array_equal(np.delete(slowed, 5), np.delete(plain, 5))


# ggml itself.


class Turn(NamedTuple):
    dim: int
    base: float
    scale: float = 1.0
    scaled_by_pair: bool = False

    @property
    def factors(self) -> Any:
        """Llama 3's shape: 1 for short waves, 8 for long ones, a ramp between."""
        ramp = np.clip(np.geomspace(0.25, 32, self.dim // 2), 1, 8).astype(np.float32)
        return ramp if self.scaled_by_pair else None

    @property
    def weight(self) -> Weight | None:
        if self.factors is None:
            return None
        return Weight("rope_freqs.weight", BY_NAME["F32"], self.factors.shape, self.factors.view(np.uint8))


TURNS = {
    "Llama 1 and 2": Turn(128, 10000.0),
    "TinyLlama": Turn(64, 10000.0),
    "SmolLM2": Turn(64, 100000.0),
    "linear scaling": Turn(64, 10000.0, 0.25),
    "a scale that float32 rounds": Turn(64, 10000.0, 1 / 3),
    "Llama 3": Turn(128, 500000.0, scaled_by_pair=True),
    "factors and scaling": Turn(96, 1000000.0, 0.3, scaled_by_pair=True),
    "two dimensions": Turn(2, 10000.0),
}
POSITIONS = [0, 1, 2, 3, 17, 100, 499, 2047, 8191, 131071]
MODES = {"interleaved": 0, "half": 2}  # GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX
GGML_F32, GGML_I32 = 0, 26


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """``ggml_rope_ext`` of the installed llama.cpp, computed by its CPU backend."""

    def __init__(self, folder: Path) -> None:
        self.base, self.cpu = (ctypes.CDLL(str(next(iter(folder.glob(f"*ggml-{part}.*"))))) for part in ("base", "cpu"))
        pointer, i32, i64, f32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
        for lib, name, result, arguments in (
            (self.base, "ggml_init", pointer, [InitParams]),
            (self.base, "ggml_free", None, [pointer]),
            (self.base, "ggml_new_tensor_1d", pointer, [pointer, i32, i64]),
            (self.base, "ggml_new_tensor_3d", pointer, [pointer, i32, i64, i64, i64]),
            (self.base, "ggml_get_data", pointer, [pointer]),
            (self.base, "ggml_new_graph", pointer, [pointer]),
            (self.base, "ggml_build_forward_expand", None, [pointer, pointer]),
            (self.base, "ggml_rope_ext", pointer, [pointer] * 4 + [i32] * 3 + [f32] * 6),
            (self.cpu, "ggml_graph_compute_with_ctx", i32, [pointer, pointer, i32]),
            (self.cpu, "ggml_cpu_init", None, []),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_cpu_init()

    def rope(self, x: Array, turn: Turn, pairing: str) -> Array:
        """Rotate float32 [T, H, D] at POSITIONS."""
        context = self.base.ggml_init(InitParams(4 * x.nbytes + (1 << 20), None, no_alloc=False))
        try:
            given = self.filled(self.base.ggml_new_tensor_3d(context, GGML_F32, *x.shape[::-1]), x)
            at = self.filled(self.base.ggml_new_tensor_1d(context, GGML_I32, len(POSITIONS)), np.int32(POSITIONS))
            by = turn.factors
            if by is not None:
                by = self.filled(self.base.ggml_new_tensor_1d(context, GGML_F32, by.size), by)
            # No YaRN: extrapolation 0, attention factor 1; its two betas are then unread.
            yarn = (0.0, 1.0, 32.0, 1.0)
            out = self.base.ggml_rope_ext(
                context, given, at, by, turn.dim, MODES[pairing], 0, turn.base, turn.scale, *yarn
            )
            graph = self.base.ggml_new_graph(context)
            self.base.ggml_build_forward_expand(graph, out)
            assert self.cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
            result = np.empty_like(x)
            ctypes.memmove(result.ctypes.data, self.base.ggml_get_data(out), x.nbytes)
            return result
        finally:
            self.base.ggml_free(context)

    def filled(self, tensor: int, values: Any) -> int:
        ctypes.memmove(self.base.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        return tensor


@pytest.fixture(scope="module")
def ggml(llama: None) -> Ggml:
    found = importlib.util.find_spec("llama_cpp")
    assert found
    assert found.origin
    return Ggml(Path(found.origin).parent / "lib")


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_the_angles_like_ggmls_are_ggmls(ggml: Ggml, turn: Turn) -> None:
    x = np.zeros((len(POSITIONS), 1, turn.dim), np.float32)
    x[..., 0::2] = 1  # (1, 0) turns into (cos, sin)
    table = ggml.rope(x, turn, "interleaved")[:, 0]

    theta = angles(POSITIONS, turn.dim, base=turn.base, scale=turn.scale, factors=turn.factors, like_ggml=True)

    # cosf may be off by a unit in the last place of 1 (measured: half of one). An angle that is off by one of its
    # own units would show, at position 131071 as 8e-3.
    np.testing.assert_allclose(table[:, 0::2], np.cos(theta), atol=6e-8, rtol=0)
    np.testing.assert_allclose(table[:, 1::2], np.sin(theta), atol=6e-8, rtol=0)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_the_rotation_in_ggmls_arithmetic_is_ggmls(ggml: Ggml, turn: Turn, pairing: str) -> None:
    x = heads(len(POSITIONS), 3, turn.dim).astype(np.float32)

    y = turned(x, POSITIONS, turn.weight, pairing=pairing, base=turn.base, scale=turn.scale, arithmetic=GGML_CPU)

    expected = ggml.rope(x, turn, pairing)
    # Measured 3e-8: a compiler may fuse a * b + c.
    assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < 1e-7


def test_exact_angles_part_from_ggmls_as_positions_grow() -> None:
    exact = angles(POSITIONS, 64, base=100000.0)
    rounded = angles(POSITIONS, 64, base=100000.0, like_ggml=True)
    worst = np.abs(exact - rounded).max(-1)
    assert worst[0] == 0
    assert worst[1] < 2e-7
    assert 2e-5 < worst[POSITIONS.index(499)] < 2e-4
