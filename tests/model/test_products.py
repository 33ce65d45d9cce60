"""Products of one weight with rows of several: each gets what it would get alone, whoever goes along."""

from __future__ import annotations

import numpy as np
import pytest

from builders.models import in_blocks_of_ggml
from firstdiff.model.arithmetic import BF16, F32, F64, GGML_CPU, arithmetic_named
from firstdiff.model.engine import open_model
from firstdiff.model.products import MANY, Rows, products
from firstdiff.model.weights import Weight
from firstdiff.model.workers import workers

ARITHMETICS = (
    F32,
    GGML_CPU,
    F64,
    BF16,
    arithmetic_named("f32+products=f16-sums"),
    arithmetic_named("f32+products=f16"),
)


@pytest.fixture(scope="module", params=["Q4_1", "Q4_K", "F16", "F32"])
def weight(llama: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weight:
    folder = tmp_path_factory.mktemp(request.param)
    path = in_blocks_of_ggml(request.param, folder, n_layer=1, n_embd=256, n_ff=1024)
    return open_model(path).weights.layer(0)["ffn_gate.weight"]


def rows(count: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 256), np.float32)


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda a: a.name)
def test_each_owner_gets_what_it_gets_alone(weight: Weight, arithmetic: object) -> None:
    assert isinstance(arithmetic, type(F32))
    mine = Rows(rows(7, 1), arithmetic, owner="mine")
    (alone,) = products(weight, [mine])
    others = [Rows(rows(n, n), a, owner=n) for n, a in enumerate(ARITHMETICS, 1)]
    together = products(weight, [*others[:3], mine, *others[3:]])
    assert np.array_equal(together[3], alone)
    assert [len(y) for y in together] == [1, 2, 3, 7, 4, 5, 6]


@pytest.mark.parametrize("count", [1, 2, MANY - 1, MANY])
def test_the_number_of_workers_changes_no_bit(weight: Weight, count: int) -> None:
    x = Rows(rows(count, 0), GGML_CPU)
    results = []
    for number in (1, 2, 3):
        with workers(number):
            results += products(weight, [x])
    assert all(np.array_equal(results[0], y) for y in results)


@pytest.mark.parametrize("count", [1, 5, MANY])
def test_a_product_is_a_product(weight: Weight, count: int) -> None:
    x = rows(count, 0)
    (y,) = products(weight, [Rows(x, F32)])
    wanted = x.astype(np.float64) @ weight.values().astype(np.float64).T
    assert np.abs(y - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_steps_of_one_owner_are_one_product(weight: Weight) -> None:
    both = [Rows(rows(n, n), F32, owner="mine") for n in (5, 1)]
    prompt, step = products(weight, both)
    (whole,) = products(weight, [Rows(np.concatenate([each.x for each in both]), F32)])
    assert np.array_equal(np.concatenate([prompt, step]), whole)
