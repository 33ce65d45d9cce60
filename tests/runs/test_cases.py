"""Thirteen kinds of small dumps, each of a second engine that is right, wrong, or wrongly recorded, read as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from builders.hugging_face import hold
from builders.judging import judge
from builders.relaid import last_row, padded_rows, relaid
from builders.second_engine import (
    activation_never_written_in_decode,
    dumped,
    heads_left_over,
    layers_cut,
    norm_weight_shifted,
    positions_doubled,
    ran,
)
from builders.tiny_models import tiny
from builders.wrong_dumps import BRANCH, another_layer, another_step, held_instead
from firstdiff.dumps import Site, Trace
from firstdiff.judging.layouts import HALF
from firstdiff.model.engine import ARCHITECTURES, open_model
from firstdiff.reports.terminal import render
from firstdiff.verdict import Status, Verdict

LAYERS = 4
TOKENS = [1, 259, 300, 17, 345, 379, 12, 280]
LONGER = [*TOKENS, 291, 333, 340, 5, 270, 310, 322, 301, 288, 266, 371, 360]
ORDERED = {"Qcur", "Kcur", "Qcur_rope", "Kcur_rope"}

Read = Callable[[Trace], Verdict]


@cache
def path_of(arch: str, folder: Path) -> Path:
    return tiny(arch, folder)


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(arch: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return path_of(arch, tmp_path_factory.getbasetemp())


@pytest.fixture
def read(arch: str, path: Path, tmp_path: Path) -> Read:
    """Read a trace of the engine as its dump has it; the order of its heads is the one that transformers has."""

    def reading(trace: Trace) -> Verdict:
        verdict = judge(open_model(path), dumped(trace, tmp_path / "dump"))
        assert {point for point, says in verdict.layouts.items() if says == HALF} == (
            ORDERED if arch == "llama" else set()
        )
        return verdict

    return reading


def told(verdict: Verdict) -> str:
    """What a reader sees, in one line."""
    return " ".join(render(verdict, width=100).split())


def assert_agrees(verdict: Verdict, *, recorded: int) -> None:
    """Nothing is accused, nothing explained, nothing found in the dump, and everything recorded was compared."""
    assert (verdict.verdict, verdict.exit_code) == ("agrees", 0)
    assert (verdict.diverging, verdict.explanations, verdict.dump) == ((), (), ())
    assert verdict.coverage["recorded"] == verdict.coverage["agrees"] == recorded


def assert_dump_is_wrong(verdict: Verdict, kind: str, *, exit_code: int) -> None:
    """One finding of the dump, and no tensor accused."""
    assert [finding.id for finding in verdict.dump] == [kind]
    assert (verdict.diverging, verdict.explanations) == ((), ())
    assert verdict.exit_code == exit_code
    unjudged = {s.site for s in verdict.sites if s.status is Status.NOT_COMPARABLE}
    assert unjudged == set(verdict.dump[0].sites)


def assert_one_fault(
    verdict: Verdict, id_: str, *, first: str, sites: set[str], equals: set[str] = frozenset()
) -> None:
    """One explanation of all sites that diverge, which are these; the counter-check leaves nothing."""
    assert (verdict.verdict, verdict.exit_code, verdict.dump) == ("diverges", 1, ())
    assert verdict.first is not None
    assert str(verdict.first.site) == first
    assert {str(s.site) for s in verdict.diverging} == sites
    (explanation,) = verdict.explanations
    assert explanation.hypothesis == id_
    assert {str(site) for site in explanation.sites} == sites
    assert {tried.hypothesis for tried in explanation.equals} == equals
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


def at(layers: range, *points: str, steps: int = 2) -> set[str]:
    return {str(Site(step, layer, point)) for step in range(steps) for layer in layers for point in points}


# A right engine, and an unusual dump


def test_the_last_row_of_every_tensor_is_judged_as_the_last_tokens(path: Path, read: Read) -> None:
    trace = ran(path, TOKENS)
    verdict = read(relaid(trace, last_row))
    assert_agrees(verdict, recorded=len(trace.sites()))
    assert "(embd: 1 row, 8 tokens): the row is taken for the last token's, and no other" in told(verdict)


def test_weights_rounded_to_f16_on_loading_are_an_arithmetic(path: Path, read: Read) -> None:
    trace = ran(path, TOKENS, partial(hold, kind="f16"))
    verdict = read(trace)
    assert_agrees(verdict, recorded=len(trace.sites()))
    assert verdict.arithmetic["held"] == "f16"
    assert "linear f32, norm f32, attention f32, cache f32, weights held in f16" in told(verdict)


@pytest.mark.parametrize("rest", [None, 0], ids=["zeros", "what was there before"])
def test_rows_behind_the_tokens_are_left_out_and_said_to_be(path: Path, read: Read, rest: int | None) -> None:
    trace = ran(path, TOKENS)

    def padded(site: Site, x: np.ndarray) -> np.ndarray:
        return padded_rows(40 if site.step == 0 else 4, None if rest is None else np.random.default_rng(rest))(site, x)

    verdict = read(relaid(trace, padded))
    assert_agrees(verdict, recorded=len(trace.sites()))
    assert "(embd: 40 rows, 8 tokens): only the first rows are judged, one for each token" in told(verdict)


def test_logits_behind_the_vocabulary_are_left_out_and_said_to_be(path: Path, read: Read) -> None:
    trace = ran(path, TOKENS)

    def padded(site: Site, x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 62))) if site.point == "result_output" else x

    verdict = read(relaid(trace, padded))
    assert_agrees(verdict, recorded=len(trace.sites()))
    assert (
        "result_output has 446 columns, and the vocabulary 384 tokens: the first 384 columns are judged, the 62 behind "
        "them are padding, and none of them is the largest at any step"
    ) in told(verdict)


# A right engine, and a dump that does not hold what it computed


def test_a_branch_as_a_layers_output_is_a_fault_of_the_dump(path: Path, read: Read) -> None:
    verdict = read(held_instead(ran(path, TOKENS), BRANCH))
    assert_dump_is_wrong(verdict, "branch-as-sum", exit_code=0)  # but for these eight sites all is compared, and right
    assert {str(site) for site in verdict.dump[0].sites} == at(range(LAYERS), "l_out")
    assert told(verdict).startswith(
        "Before any tensor, the dump: l_out at every layer: your dump holds the branch instead of its sum with the "
        "residual stream, and what follows was computed from the sum."
    )


def test_layers_that_all_hold_the_first_are_stale_buffers(path: Path, read: Read) -> None:
    verdict = read(held_instead(ran(path, TOKENS), another_layer({1: 0, 2: 0, 3: 0})))
    assert_dump_is_wrong(verdict, "stale-layers", exit_code=4)
    assert {site.layer for site in verdict.dump[0].sites} == {1, 2, 3}
    assert told(verdict).startswith(
        "Before any tensor, the dump: layers 1 to 3 hold layer 0's tensors to the bit, which different weights never "
        "give. To do: copy each tensor when it is computed"
    )
    assert "This is no pass: " in told(verdict)


def test_a_step_that_holds_the_step_before_is_a_stale_buffer(path: Path, read: Read) -> None:
    trace = ran(path, TOKENS, decode=2)
    verdict = read(held_instead(trace, another_step(2, 1)))
    assert_dump_is_wrong(verdict, "stale-step", exit_code=4)
    assert set(verdict.dump[0].sites) == {site for site in trace if site.step == 2}
    assert told(verdict).startswith(
        "Before any tensor, the dump: step 2 repeats step 1's tensors to the bit, though step 2 ran token "
    )


# A wrong engine


def test_layers_that_never_ran_are_named(path: Path, read: Read) -> None:
    verdict = read(ran(path, TOKENS, layers_cut(2)))
    sites = {"result_norm", "result_norm@1"}
    assert_one_fault(verdict, "layers-not-run", first="result_norm", sites=sites, equals={"branch-missing"})
    assert "result_norm: it took l_out of layer 1: layers 2 to 3 never ran (layers-not-run)." in told(verdict)


@pytest.mark.parametrize("layers", [range(2, 3), range(LAYERS)], ids=["one layer", "every layer"])
def test_doubled_positions_are_told_with_all_that_they_equal(path: Path, read: Read, layers: range) -> None:
    verdict = read(ran(path, TOKENS, positions_doubled(*layers)))
    sites = at(layers, "Qcur_rope", "Kcur_rope")
    first = f"Qcur_rope-{layers.start}"
    assert_one_fault(verdict, "rope-twice", first=first, sites=sites, equals={"rope-scale", "position-scale"})
    assert (
        "As well explained by rope-scale (all angles multiplied by 2) and position-scale (positions multiplied by 2). "
        "They give the same numbers here: look which of them your code does."
    ) in told(verdict)


def test_an_activation_that_is_never_written_in_decode_equals_nothing(path: Path, read: Read) -> None:
    verdict = read(ran(path, TOKENS, activation_never_written_in_decode))
    sites = {str(Site(1, layer, "ffn_swiglu")) for layer in range(LAYERS)}
    assert_one_fault(verdict, "output-zero", first="ffn_swiglu-0@1", sites=sites)
    assert (
        "ffn_swiglu at every layer of step 1, the only step of one token: the result never written: it is exactly 0 "
        "(output-zero)."
    ) in told(verdict)


def test_heads_that_a_loop_leaves_over_are_those_of_the_layer_before(path: Path, read: Read) -> None:
    verdict = read(ran(path, TOKENS, heads_left_over(2)))
    assert_one_fault(verdict, "heads-to-group", first="kqv_out-2", sites={"kqv_out-2", "kqv_out-2@1"})
    assert (
        "kqv_out at layer 2: the loop over heads ends at n_head / n_head_kv: heads 2 to 7 hold what the layer before "
        "had there (heads-to-group)."
    ) in told(verdict)


def test_a_norms_weight_that_shifts_at_a_token_is_said_to(path: Path, read: Read) -> None:
    verdict = read(ran(path, LONGER, norm_weight_shifted(2, token=16, by=64)))
    assert_one_fault(verdict, "weight-view-offset", first="attn_norm-2", sites={"attn_norm-2", "ffn_norm-2"})
    assert (
        "from token 16 on, the norm's weight read 64 elements further on, then from its start again "
        "(weight-view-offset)."
    ) in told(verdict)
