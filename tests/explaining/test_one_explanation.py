"""One explanation for the run: what fits with one parameter everywhere comes before what needs another at each site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import Changed, judge
from builders.models import stored, synthetic
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.explaining.attempt import Attempt, Fault, Means, explaining
from firstdiff.explaining.collecting import at_hand
from firstdiff.explaining.covering import Covering, Known
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Scene
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import F32, F64
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import rope
from firstdiff.model.probe import Call
from firstdiff.model.synthetic import Llama, llama_tensors
from firstdiff.model.weights import Weight
from firstdiff.reports.terminal import render
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import SiteVerdict, Status

Array = np.ndarray[Any, Any]

JUMP = 88
PROMPT = 12


def jumping(call: Call) -> Call:
    """The call of an engine whose positions go on from 100 after a prompt of 12 tokens."""
    if call.op is not rope or call.step == 0:
        return call
    return call.with_arguments(positions=[p + JUMP for p in call.argument("positions")])


def any_offset(call: Call, _scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """The offset that fits one token: that there is one says little by itself."""
    if observed is None or len(observed) > 1:
        return
    left = {}
    for offset in range(-PROMPT, 200):
        moved = call.with_arguments(positions=[p + offset for p in call.argument("positions")])
        left[offset] = float(np.abs(moved.compute(F32) - observed).max())
    yield {"offset": min(left, key=left.__getitem__)}


ANY_OFFSET = {"rope-offset": replace(TABLE["rope-offset"], ways=any_offset)}


def run_of(model: Model, decoded: int) -> Trace:
    probe, writer = Changed(F32, model, [], before=jumping), MemoryWriter()
    steps = [Step((1, *range(70, 69 + PROMPT)), tuple(range(PROMPT)))]
    steps += [Step((5 + n,), (PROMPT + n,)) for n in range(decoded)]
    for step, _ in zip(steps, model.forward(steps, probe), strict=True):
        writer.step(step, probe.finish())
    return writer.trace()


@pytest.mark.slow
def test_positions_that_jump_in_the_middle_are_one_fault(small: Model) -> None:
    verdict = judge(small, run_of(small, 2), table=TABLE | ANY_OFFSET)
    (explanation,) = verdict.explanations
    assert (explanation.hypothesis, explanation.attributes) == ("rope-offset", {"offset": JUMP})
    assert len(explanation.sites) == 2 * 2 * 6
    assert {site.step for site in explanation.sites} == {1, 2}
    assert explanation.equals == ()
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


@pytest.mark.slow
def test_of_readings_that_fit_alike_the_one_without_a_fitted_number_comes_first(small: Model) -> None:
    (explanation,) = judge(small, run_of(small, 1), table=TABLE | ANY_OFFSET).explanations
    assert (explanation.hypothesis, explanation.attributes) == ("rope-offset", {"offset": JUMP})
    (other,) = explanation.equals
    assert other.hypothesis == "rope-scale"
    assert f"As well explained by rope-scale ({other.says})" in " ".join(
        render(judge(small, run_of(small, 1), table=TABLE | ANY_OFFSET), width=200).split()
    )


# Which faults are named, by the sites that each of them explains


def a_case(site: Site) -> Case:
    x = np.zeros((1, 1), np.float32)
    return Case(site, Call(site.step, site.layer, site.point, rope, (), {}), x, x, 1.0, 1e-6, 1e-7, None, ())


def covered(*known: tuple[Sequence[str], dict[str, object], Sequence[Site]]) -> Covering:
    """What is known after a search: ids of each fault, its parameters, and the sites that it explains."""
    made = Covering(Means(Scene(None, F32, lambda _: None), TABLE, Failures()))  # type: ignore[arg-type] - not looked at
    for ids, values, sites in known:
        fault = Fault(tuple((TABLE[id_], values) for id_ in ids))
        made.known.append(Known(fault, a_case(sites[0]), [], {s: Attempt(fault, 1e-7, 1e-6) for s in sites}))
    return made


A, B, C, D = (Site(0, layer, "Qcur_rope") for layer in range(4))
ORDER = {site: number for number, site in enumerate((A, B, C, D))}


def told(covering: Covering, lengths: Sequence[int] = (8,)) -> list[tuple[str, list[Site], list[str]]]:
    groups = covering.groups(ORDER, lengths)
    return [(g.faults[0].fault.id, list(g.at), [a.fault.id for a in g.faults[1:]]) for g in groups]


def test_a_fault_that_explains_all_sites_is_named_before_one_that_explains_the_first_only() -> None:
    made = covered((["rope-base"], {}, [A]), (["rope-scale"], {}, [A, B, C, D]))
    assert told(made) == [("rope-scale", [A, B, C, D], [])]


def test_the_same_fault_with_another_value_at_each_site_comes_last() -> None:
    made = covered(
        (["rope-scale"], {"factor": 2.0}, [A, B]),
        (["rope-scale"], {"factor": 3.0}, [C, D]),
        (["rope-offset"], {"offset": 8}, [A, B, C, D]),
    )
    assert told(made) == [("rope-offset", [A, B, C, D], [])]


def test_sites_that_no_one_fault_explains_have_the_fewest_faults() -> None:
    made = covered((["rope-base"], {}, [A, B]), (["rope-sign"], {}, [B, C]), (["rope-none"], {}, [A, C, D]))
    assert told(made) == [("rope-none", [A, C, D], []), ("rope-base", [B], ["rope-sign"])]


def test_one_fault_comes_before_two_that_explain_as_many_sites() -> None:
    made = covered((["rope-sign", "rope-base"], {}, [A, B]), (["rope-none"], {}, [A, B]))
    assert told(made) == [("rope-none", [A, B], [])]


def test_a_number_read_off_one_token_is_not_believed_beside_a_prompt_that_it_does_not_explain() -> None:
    """Any angle of a single token is that of some position."""
    decoded = Site(1, 0, "Qcur_rope")
    known = ["rope-offset"], {"offset": 8}, [decoded]
    assert covered(known).groups({A: 0, decoded: 1}, [8, 1]) == []
    (group,) = covered(known).groups({B: 0, decoded: 1}, [8, 1])
    assert list(group.at) == [decoded]


def test_what_leaves_as_little_is_told_in_the_order_of_the_table_but_for_fitted_numbers() -> None:
    scale, offset = (
        Fault(((TABLE[i], v),)) for i, v in (("rope-scale", {"factor": 8.3333333}), ("rope-offset", {"offset": 88}))
    )
    first, second = explaining(a_case(A), [Attempt(scale, 1e-7, 1e-6), Attempt(offset, 1.5e-7, 1e-6)])
    assert (first.fault, second.fault) == (offset, scale)


# Memory


def test_the_cases_at_hand_together_are_spread_over_points_and_steps(small: Model) -> None:
    trace, _ = plant(small, [1, *range(70, 80)], decode=1)
    sites = [SiteVerdict(s, "op", Status.DIVERGES) for s in trace.sites() if s.point in ("Qcur", "Kcur")]
    first = {(s.point, s.step): s.site for s in reversed(sites)}
    some = at_hand(sites, trace, most=16 * sum(trace[site].size for site in first.values()))
    assert some == set(first.values())
    assert at_hand(sites, trace, most=1) == {sites[0].site}
    assert at_hand(sites, trace) == {s.site for s in sites}


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_explained_as_it_comes_by(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, _ = plant(small, [1, *range(70, 90)], ("rope-base", None), decode=1)
    whole = judge(small, trace)
    monkeypatch.setattr("firstdiff.explaining.explanations.at_hand", lambda sites, trace: at_hand(sites, trace, 1))
    assert judge(small, trace).explanations == whole.explanations


# Where the same fault could not show


def test_where_rounding_hides_the_same_fault_that_is_said(tmp_path: Path) -> None:
    """An epsilon shows where activations are small: here those of the embedding only."""
    shape = Llama(n_layer=3)
    sizes = {"token_embd.weight": 0.3, "blk.0.attn_output.weight": 100}
    scaled = {name: stored(x * np.float32(sizes[name])) for name, x in llama_tensors(shape) if name in sizes}
    model = open_model(synthetic(tmp_path, shape, tensors=scaled))
    writer, fault = MemoryWriter(), Planted(TABLE["norm-eps"], None, {"eps": 1e-6})
    record_planted(model, [1, *range(70, 90)], writer, arithmetic=F64, planted=[fault])
    (explanation,) = judge(model, writer.trace(arithmetic="f32")).explanations
    assert (explanation.hypothesis, explanation.extent) == ("norm-eps", "attn_norm at layer 0")
    said = "it could not show at attn_norm at layers 1 and up, where it changes less than rounding does"
    assert explanation.note == said


def test_where_the_same_fault_would_show_nothing_is_said_of_it(small: Model) -> None:
    trace, _ = plant(small, [1, *range(70, 90)], ("rope-base", 2), decode=0)
    (explanation,) = judge(small, trace).explanations
    assert explanation.note is None


# Passes


@pytest.mark.slow
def test_explaining_reads_every_weight_once_and_that_for_the_counter_check(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, _ = plant(small, [1, *range(70, 90)], ("rope-base", None), decode=0)
    done, read, rows = replayed(small, trace), Counter[tuple[str, int]](), Weight.rows

    def counted(weight: Weight, start: int, stop: int, buffer: Array | None = None) -> Array:
        read[weight.name, start] += 1
        return rows(weight, start, stop, buffer)

    monkeypatch.setattr(Weight, "rows", counted)
    made, _ = explain(small, trace, done.found, done.alignment, done.sites, failures=Failures())
    assert [e.hypothesis for e in made] == ["rope-base"]
    assert {name for name, _ in read} >= {"blk.0.attn_q.weight", "blk.5.ffn_down.weight"}
    assert set(read.values()) == {1}
