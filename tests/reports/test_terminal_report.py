"""The report on a terminal: its claims, its words, and that it stays readable in any width and without colour."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from firstdiff.dumps import Site
from firstdiff.reports.terminal import render, show
from firstdiff.verdict import Element, Logits, SiteVerdict, Status, Verdict, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QWEN = tuple(
    """attn_norm Qcur Kcur Vcur Qcur_normed Kcur_normed Qcur_rope Kcur_rope k_cache v_cache kq kq_soft_max
    kqv_out attn_out ffn_inp ffn_norm ffn_gate ffn_up ffn_swiglu ffn_out l_out""".split()  # noqa: SIM905 - a table
)
LLAMA = tuple(p for p in QWEN if not p.endswith("normed"))
WHERE = {"token": "all but 0", "head": "all", "head_dim": "all"}
AWKWARD = {"token": "0, 2, 4, 6, … (31 of 64)", "head": "all but 3", "head_dim": "0-7, 9, 11-15, 20, … (44 of 64)"}


def site(point: str, layer: int | None = None, step: int = 0, **rest: Any) -> SiteVerdict:
    measured: dict[str, Any] = {"status": Status.AGREES, "local_error": 2e-7, "floor": 1e-6}
    return SiteVerdict(Site(step, layer, point), "linear", **(measured | rest))


def sites(*, layers: int = 2, steps: int = 1, points: Sequence[str] = LLAMA) -> list[SiteVerdict]:
    return [
        s
        for step in range(steps)
        for s in (
            site("embd", step=step),
            *(site(p, layer, step) for layer in range(layers) for p in points),
            site("result_norm", step=step),
            site("result_output", step=step),
        )
    ]


def wrong(good: SiteVerdict, **rest: Any) -> SiteVerdict:
    error: dict[str, Any] = {
        "status": Status.DIVERGES,
        "local_error": 0.83,
        "worst": Element((1, 0, 2), 0.41, -0.42),
        "where": WHERE,
    }
    return replace(good, **(error | rest))


def planted(all_sites: Sequence[SiteVerdict], bug: Callable[[SiteVerdict], bool], **rest: Any) -> list[SiteVerdict]:
    """The sites that `bug` picks diverge, and what comes after the first of them inherits."""
    told: list[SiteVerdict] = []
    for s in all_sites:
        after = any(t.status is Status.DIVERGES for t in told)
        inherits = after and s.status is Status.AGREES
        drifted = replace(s, status=Status.INHERITS, inputs_right=False) if inherits else s
        told.append(wrong(drifted, **rest) if bug(s) else drifted)
    return told


def unrecorded(s: SiteVerdict) -> SiteVerdict:
    return replace(s, status=Status.NOT_RECORDED, local_error=None, floor=None)


def verdict(told: Sequence[SiteVerdict], **rest: Any) -> Verdict:
    record: dict[str, Any] = {
        "candidate": "rustorch 0.6.27 (metal)",
        "against": "llama.cpp:cpu",
        "model": {"file": "tiny.gguf"},
        "tokens": ((1, 2, 3), (4,)),
        "arithmetic": {"linear": "ggml-cpu"},
        "sites": tuple(told),
    }
    return Verdict(**(record | rest))


def named(name: str) -> Callable[[SiteVerdict], bool]:
    return lambda s: str(s.site) == name


def text(record: Verdict, *, width: int = 80) -> str:
    return render(record, width=width, where="verdict.json")


def words(record: Verdict, *, width: int = 80) -> str:
    """The report as one run of words, wherever its lines break."""
    return " ".join(text(record, width=width).split())


def row(report: str, start: str) -> str:
    """The first line that starts with a word, without its blanks."""
    return next("".join(line.split()) for line in report.splitlines() if line.split()[:1] == [start])


SEGMENT = tuple(Site(0, 1, p) for p in LLAMA[:11])
EVERY_KIND = {
    "clean": verdict(sites(layers=30, steps=3)),
    "one": verdict(planted(sites(), named("Kcur_rope-1"), drift=0.83)),
    "many": verdict(planted(sites(layers=30, steps=3), lambda s: s.point in {"Kcur_rope", "Qcur_rope"}, drift=0.1)),
    "later": verdict(planted(sites(steps=3), named("k_cache-1@1"), where=AWKWARD)),
    "nan": verdict(planted(sites(), named("ffn_out-1"), local_error=float("inf"), not_finite=12)),
    "segment": verdict(
        planted([unrecorded(s) if s.site in SEGMENT else s for s in sites()], named("attn_out-1"), segment=SEGMENT)
    ),
    "incomparable": verdict([unrecorded(s) for s in sites()]),
    "qwen": verdict(planted(sites(points=QWEN), named("Kcur_normed-1"))),
    "hostile": verdict(
        [site("embd"), wrong(site("[red]x[red]" * 20, 0), op="\x1b[31m\n"), site("名" * 50, 0)],
        candidate="[bold]" + "x" * 300,
        notes=("a\nb\x07\u202ec", "[/]", "w" * 500),
    ),
    "empty": verdict([], tokens=()),
}


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_page_and_none_is_cut(name: str, width: int) -> None:
    record = EVERY_KIND[name]
    report = text(record, width=width)
    for line in report.splitlines():
        assert cell_len(line) <= width, line
        assert line == line.rstrip()
    if name != "later":  # whose `where` is itself shortened
        assert "…" not in report.replace(" … ", "")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_black_and_white_has_no_ansi_codes_and_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain, colored = (render(EVERY_KIND[name], width=80, color=color) for color in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[" in colored
    assert [Text.from_ansi(x).plain for x in colored.splitlines()] == plain.splitlines()


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_file_is_named_only_where_there_is_one(name: str) -> None:
    assert "has all" not in render(EVERY_KIND[name], width=80)
    named, unnamed = (" ".join(render(EVERY_KIND[name], width=80, where=x).split()) for x in ("runs/7.json", None))
    assert named.replace(" (runs/7.json has all)", "") == unnamed


def test_a_divergence_opens_with_what_is_wrong_where_and_by_how_much() -> None:
    record = EVERY_KIND["one"]
    assert text(record, width=120).startswith(
        "Kcur_rope-1 is the first to go wrong: linear, local error 0.83 against a floor of 1e-06.\n"
        "Wrong at tokens all but 0, heads all, head_dims all. Its inputs are right.\n"
        "Worst element [1, 0, 2]: 0.41, expected -0.42.\n"
        "Judged: rustorch 0.6.27 (metal) against llama.cpp:cpu, on tiny.gguf, 4 tokens in 2 steps.\n\n"
    )


def test_an_error_just_above_its_floor_is_written_apart_from_it() -> None:
    record = verdict([wrong(site("embd"), local_error=1.004e-6, worst=Element((0, 1), 0.12345, 0.12346))])
    assert "local error 1.004e-06 against a floor of 1e-06" in words(record)
    assert "Worst element [0, 1]: 0.12345, expected 0.12346." in words(record)


def test_a_claim_covers_no_more_than_was_recorded() -> None:
    partly = [s if s.point in {"attn_out", "l_out"} else unrecorded(s) for s in sites()]
    clean, bad = verdict(partly), verdict(planted(partly, named("l_out-1")))
    assert words(clean).startswith(
        "Every one of the 4 recorded sites (of 41) agrees: largest local error 2e-07 (attn_out-0)"
    )
    assert words(bad).startswith("l_out-1 is the first to go wrong among the 4 sites recorded (of 41): ")
    lone = [replace(s, status=Status.NOT_COMPARABLE) if s.site == Site(0, 1, "l_out") else s for s in sites()]
    assert words(verdict(lone)).startswith("Every one of the 40 compared sites (of 41) agrees")
    few = [replace(s, status=Status.NOT_COMPARABLE) if s.site == Site(0, 1, "l_out") else s for s in partly]
    assert words(verdict(few)).startswith("This is no pass: 1 of 4 recorded sites could not be compared.")


def test_a_clean_run_says_how_close_and_against_whom() -> None:
    told = sites(layers=30, steps=5)
    told[100] = replace(told[100], local_error=9.914e-7)
    report = words(verdict(told))
    count = f"{len(told):,}"
    assert count == "2,865"
    assert report.startswith(
        f"Every one of the 2,865 recorded sites agrees: largest local error 9.9e-07 ({told[100].site}), floor 1e-06. "
        "Judged: rustorch 0.6.27 (metal) against llama.cpp:cpu"
    )
    assert "2,865 of 2,865 sites recorded: agrees 2,865" in report


def test_other_errors_are_named_while_they_are_few_and_grouped_when_many() -> None:
    few = verdict(planted(sites(), lambda s: s.point == "Kcur_rope"))
    assert "1 more site diverges on its own inputs: Kcur_rope-1." in words(few)
    many = words(EVERY_KIND["many"])
    assert "179 more sites diverge on their own inputs; in all: " in many
    assert "Qcur_rope in layers 0-29 of steps 0-2; Kcur_rope in layers 0-29 of steps 0-2." in many
    odd = verdict(planted(sites(layers=30), lambda s: s.point == "kq" and s.layer in {1, 2, 3, 7, 9, 10, 11, 29}))
    assert "in all: kq in layers 1-3, 7, 9-11, 29." in words(odd)


def test_a_segment_names_its_span_and_what_to_dump_next() -> None:
    report = words(EVERY_KIND["segment"])
    assert (
        "The error arises in attn_out-1 itself, or in one of the 11 tensors before it that were not recorded. "
        "Dump these next: attn_norm-1, Qcur-1, " in report
    )
    gap = [unrecorded(s) if str(s.site) == "Kcur-1" else s for s in sites()]
    one = words(verdict(planted(gap, named("Kcur_rope-1"), segment=(Site(0, 1, "Kcur"),))))
    assert "Its inputs are not judged: Kcur-1 was not recorded. Dump this next: Kcur-1." in one
    assert "not judged" in one.split("inputs")[-1]
    skipped = [unrecorded(s) if s.layer == 1 and s.point in {"Kcur", "Qcur"} else s for s in sites()]
    two = words(verdict(planted(skipped, named("Kcur_rope-1"), segment=(Site(0, 1, "Qcur"), Site(0, 1, "Kcur")))))
    assert "or in one of the 2 tensors before it that were not recorded. Dump these next: Qcur-1, Kcur-1." in two


def test_what_reads_rows_that_the_dump_lacks_is_not_accused_alone() -> None:
    report = words(verdict(planted(sites(), named("kq-1"), segment=(Site(0, 1, "k_cache"),), leans=True)))
    assert (
        "It reads rows of other tokens that your dump lacks: the error arises in kq-1 itself, or in those rows of a "
        "tensor before it. Dump the rows of all tokens of layers 0 to 1 next." in report
    )
    assert "not judged" in report.split("inputs")[-1]
    assert "Dump the rows of all tokens of layer 0 next." in words(verdict(planted(sites(), named("kq-0"), leans=True)))


def test_what_was_recorded_in_the_wrong_shape_is_not_asked_for_again() -> None:
    odd = [
        replace(s, status=Status.NOT_COMPARABLE, reason="shape") if s.site == Site(0, 1, "Kcur") else s for s in sites()
    ]
    report = words(verdict(planted(odd, named("Kcur_rope-1"), segment=(Site(0, 1, "Kcur"),))))
    assert "Its inputs are not judged: Kcur-1 was not comparable." in report
    assert "Dump" not in report
    gap = [unrecorded(s) if s.site == Site(0, 1, "Kcur_rope") else s for s in odd]
    both = verdict(planted(gap, named("kq-1"), segment=(Site(0, 1, "Kcur"), Site(0, 1, "Kcur_rope"))))
    assert "that were not comparable or not recorded. Dump this next: Kcur_rope-1." in words(both)


def logits_alone(layers: int) -> list[SiteVerdict]:
    return [s if s.point == "result_output" else unrecorded(s) for s in sites(layers=layers)]


def test_a_segment_of_many_layers_asks_for_their_outputs_and_these_name_the_layer() -> None:
    told = logits_alone(29)
    segment = tuple(s.site for s in told[:-1])
    record = verdict(planted(told, named("result_output"), segment=segment))
    assert record.dump_next == tuple(Site(0, n, "l_out") for n in range(29))
    assert "tensors before it that were not recorded. Dump l_out of layers 0-28 next." in words(record)
    spoiled = [replace(s, status=Status.NOT_COMPARABLE) if str(s.site) in {"l_out-3", "kq-3"} else s for s in told]
    gaps = verdict(planted(spoiled, named("result_output"), segment=segment))
    assert "Dump l_out of layers 0-2, 4-28 next." in words(gaps)
    two = verdict(
        planted(
            told, named("result_output"), segment=tuple(map(Site.parse, ("l_out-27", "attn_norm-28", "result_norm")))
        )
    )
    assert two.dump_next == (Site(0, 27, "l_out"),)
    assert "Dump this next: l_out-27." in words(two)


def test_a_segment_of_one_layer_asks_for_all_its_points_in_execution_order() -> None:
    segment = tuple(s.site for s in reversed(logits_alone(1)[:-1]))
    record = verdict(planted(logits_alone(1), named("result_output"), segment=segment))
    assert record.dump_next == tuple(s.site for s in logits_alone(1)[:-1])
    told = words(record)
    assert f"Dump embd and result_norm and these of layer 0 next: {', '.join(LLAMA)}." in told


def test_nan_is_counted_and_its_first_place_shown() -> None:
    worst = Element((1, 7), float("nan"), 0.31)
    told = planted(sites(), named("ffn_out-1"), local_error=float("inf"), not_finite=1200, worst=worst)
    report = words(verdict(told))
    assert "local error inf against a floor of 1e-06" in report
    assert "NaN or infinity in 1,200 elements; the first at [1, 7]: nan, expected 0.31." in report


def test_incomparable_is_no_pass_and_says_why() -> None:
    told = [unrecorded(s) for s in sites()]
    assert words(verdict(told)).startswith("Nothing could be compared: this is no pass. Of 41 sites, 41 not recorded.")
    odd = [
        replace(s, status=Status.NOT_COMPARABLE, local_error=None, reason=f"shape [{s.layer}]") for s in sites(layers=5)
    ]
    report = words(verdict(odd))
    assert "98 not comparable: shape [0] (attn_norm-0 and 18 more); shape [1]" in report
    assert "and 3 more reasons" in report
    assert "agrees" not in report
    assert words(verdict([], tokens=())).startswith(
        "Nothing could be compared: this is no pass. The verdict holds no sites."
    )


def test_the_witness_is_believed_over_the_reference_where_both_engines_differ_from_it() -> None:
    told = planted(sites(), lambda s: str(s.site) in {"Kcur_rope-0", "l_out-1"})
    beside = verdict(told, witness=Witness("llama.cpp:cpu", 2863, (Site(0, 0, "Kcur_rope"), Site(0, 0, "kq"))))
    report = words(beside)
    assert "llama.cpp:cpu diverges from the reference there too: the reference may be wrong there." in report
    assert "llama.cpp:cpu judged on the same tokens: 2,863 agree" in report
    assert "where the candidate does at Kcur_rope-0; " in report
    assert "where the candidate does not at kq-0" in report
    assert "may be wrong" not in words(replace(beside, witness=Witness("llama.cpp:cpu", 2865, ())))


def test_the_map_reads_without_colour_and_folds_layers_that_look_alike() -> None:
    report = text(verdict(planted(sites(layers=80), named("Kcur_rope-3"))))
    assert "· agrees  ~ inherits  X diverges\n" in report
    assert row(report, "0-2") == "0-2" + "·" * 19
    assert row(report, "3") == "3" + "·" * 5 + "X" + "~" * 13
    assert row(report, "4-79") == "4-79" + "~" * 19
    assert "embd ·\n" in report
    assert "result_norm ~  result_output ~\n" in report


def test_marks_stand_under_their_headings() -> None:
    lines = text(verdict(planted(sites(), named("v_cache-1")))).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    assert lines[at - 1][lines[at].index("k   v") :].startswith("cache")
    assert next(line for line in lines if line.startswith("1 ")).index("X") == lines[at].index("k   v") + 4


def test_a_layer_of_qwen_fits_eighty_columns_in_one_band() -> None:
    lines = text(EVERY_KIND["qwen"]).splitlines()
    assert sum(line.startswith("layer ") for line in lines) == 1
    assert row("\n".join(lines), "1").count("~") == 15
    narrow = text(EVERY_KIND["qwen"], width=60).splitlines()
    assert sum(line.startswith("layer ") for line in narrow) == 2


def test_layers_that_hold_other_points_leave_blanks() -> None:
    moe = [site("ffn_inp", 1), site("ffn_moe_logits", 1), site("ffn_out", 1)]
    report = text(verdict([site("ffn_inp", 0), site("ffn_up", 0), site("ffn_out", 0), *moe]))
    assert row(report, "layer") == "layerinplogitsupout"
    assert row(report, "0") == "0···"
    assert row(report, "1") == "1···"


def test_a_map_where_no_two_layers_look_alike_stays_on_a_screen() -> None:
    report = text(verdict([s if (s.layer or 0) % 2 else unrecorded(s) for s in sites(layers=80)]))
    assert "and 40 more rows (verdict.json has all)" in report


def test_steps_that_look_alike_are_drawn_once() -> None:
    assert "Steps 1-2: the same.\n" in text(EVERY_KIND["clean"])
    assert text(EVERY_KIND["clean"]).count("layer ") == 1


def test_a_divergence_in_a_later_step_says_that_the_earlier_are_right() -> None:
    report = text(EVERY_KIND["later"])
    assert report.startswith("k_cache-1@1 is the first to go wrong: ")
    assert "Step 0 agrees at every site judged.\n" in report
    assert report.count("layer ") == 2
    assert "\nStep 1\n" in report
    assert "Step 2: other statuses (verdict.json has all).\n" in report


def test_the_table_holds_twenty_rows_and_counts_the_rest() -> None:
    report = text(EVERY_KIND["many"])
    table = report[report.index("diverges ", report.index("result_output")) :]
    assert sum(line.startswith(("Qcur_rope-", "Kcur_rope-")) for line in table.splitlines()) == 20
    assert "and 160 more (verdict.json has all)" in table
    head, first, second, *_ = (line.split("  ") for line in table.splitlines())
    assert [x.strip() for x in head if x] == ["diverges", "op", "local error", "floor", "drift", "where", "inputs"]
    assert [x.strip() for x in first if x] == [
        "Qcur_rope-0",
        "linear",
        "0.83",
        "1e-06",
        "0.1",
        "tokens all but 0",
        "right",
    ]
    assert second[-1].strip() == "wrong"


def test_a_long_where_wraps_whole() -> None:
    record = EVERY_KIND["later"]
    lines = text(record).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("diverges "))
    cells = [line[lines[at].index("where") :].strip() for line in lines[at + 1 :]]
    cell = " ".join(cells[: cells.index("")]).replace("right ", "")
    assert " ".join(cell.split()) == ", ".join(f"{axis}s {span}" for axis, span in AWKWARD.items())


def logits(*told: Logits) -> str:
    return words(verdict(sites(), logits=told), width=120)


def test_a_flip_inside_the_noise_is_no_divergence() -> None:
    calm = [Logits(step, 5, 5, 1.0, 1e-4 * step, 0.1) for step in range(3)]
    assert "top-1 agrees at every step; KL at most 0.0002 nats (step 2)" in logits(*calm)
    within = Logits(2, 17, 42, 0.05, 0.003, 0.1)
    flip = "top-1 differs at step 2 (token 17 for 42), by a margin of 0.05, no more than what rounding changes "
    flip += "these logits by (0.1)"
    assert f"{flip}: no divergence" in logits(*calm[:2], within)
    assert "by a margin of 0.3, a few times what rounding changes these" in logits(replace(within, margin=0.3))
    outside = logits(replace(within, margin=3.0))
    assert "by a margin of 3, far more than what rounding changes these logits by (0.1)" in outside
    assert "no divergence" not in outside
    assert "and at 2 more steps" in logits(*[replace(within, step=i) for i in range(5)])
    assert "KL at most nan nats (step 1)" in logits(calm[0], replace(calm[1], kl=float("nan")), calm[2])


def test_a_flip_behind_a_fault_is_not_put_down_to_rounding() -> None:
    flip = Logits(0, 17, 42, 0.05, 8.0, None)
    assert not flip.within_noise
    said = logits(flip)
    assert "by a margin of 0.05; it may not be rounding, because tensors before it diverge or were not compared" in said
    assert "no divergence" not in said
    wrong_later = verdict(
        [wrong(s) if s.site.step == 1 else s for s in sites(steps=2)], logits=(replace(flip, noise=0.1),)
    )
    assert "no divergence" not in words(wrong_later, width=120)


def test_hostile_names_are_shown_and_not_obeyed() -> None:
    report = text(EVERY_KIND["hostile"])
    assert "[red]x[red]" in report
    assert "\\x1b[31m" in report
    assert "note        a\\nb\\x07\\u202ec\n" in report
    assert "note        [/]\n" in report
    assert all(c.isprintable() or c == "\n" for c in report)


def test_a_console_that_is_not_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    ascii_file = io.TextIOWrapper(raw, encoding="ascii")
    show(replace(EVERY_KIND["later"], notes=("naïve",)), Console(file=ascii_file, width=80))
    ascii_file.flush()
    report = raw.getvalue().decode("ascii")
    assert ". agrees  ~ inherits  X diverges" in report
    assert "tokens 0, 2, 4, 6, ... (31 of 64)" in report
    assert "na\\xefve" in report
    assert all(line == line.rstrip() for line in report.splitlines())
    assert max(map(len, report.splitlines())) <= 80


def test_preflight_arithmetic_and_notes_have_a_line_each() -> None:
    report = text(
        verdict(sites(), preflight={"tokens": "agrees", "weights": "not recorded"}, notes=("first", "second"))
    )
    assert "preflight   tokens agrees, weights not recorded\n" in report
    assert "arithmetic  linear ggml-cpu\n" in report
    assert report.endswith("note        first\nnote        second\n")
