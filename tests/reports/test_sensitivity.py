"""What a pass says of the faults it would have shown: what was changed, where, by how much, and what is not known."""

from __future__ import annotations

import pytest

from builders.verdicts import SENSITIVITY, at, verdict
from firstdiff.reports.html import render as page
from firstdiff.reports.sentences import sentences
from firstdiff.reports.terminal import render
from firstdiff.verdict import Fault, Sensitivity, Verdict

SHOWN = (
    "A fault at a single place would have shown from this size on: "
    "a norm's epsilon 19 % too large (at attn_norm-0; at ffn_norm-1 only if 220 times as large); "
    "the rope base 0.00049 % too large (at Qcur_rope-0); "
    "all weights of one matrix 2.8 % too large (at Qcur-0, seen at l_out-0); "
    "one weight of a matrix off by 17 % of its row's root mean square "
    "(at Qcur-1; at ffn_out-1 only if off by 15 times that)."
)
HIDDEN = "However wrong all rows of the embedding were, it would not have shown in this dump."
UNKNOWN = (
    "Nothing can be said of the softmax scale: no such operation was recorded near enough to what it is computed from."
)


def told(*of: Sensitivity) -> Verdict:
    return verdict(sensitivity=of)


def test_a_pass_says_what_it_would_have_shown_where_and_from_which_size_on() -> None:
    head, *rest = sentences(told(*SENSITIVITY))
    assert head.startswith("Every one of the 82 recorded sites agrees")
    assert rest[:3] == [SHOWN, HIDDEN, UNKNOWN]


def test_every_report_has_the_sentence() -> None:
    record = told(*SENSITIVITY)
    assert SHOWN in " ".join(render(record, width=60).split())
    assert "the rope base 0.00049 % too large (at Qcur_rope-0)" in page(record)


def test_nothing_is_said_where_something_diverges_or_nothing_is_known() -> None:
    assert not [s for s in sentences(verdict(bug=1)) if "would have shown" in s]
    assert not [s for s in sentences(verdict()) if "would have shown" in s]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (9.01e-7, "0.000091 % too large"),  # rounded up: what is claimed shows
        (1.0e-6, "0.0001 % too large"),
        (0.1, "10 % too large"),
        (0.999, "100 % too large"),
        (9.9, "990 % too large"),
        (10.0, "11 times as large"),
        (1610.0, "1,700 times as large"),
    ],
)
def test_shares_are_told_in_two_digits_rounded_up(share: float, words: str) -> None:
    only = sentences(told(Sensitivity(Fault.ROPE_BASE, at("Qcur_rope-0", share), None, 1)))[1]
    assert only.endswith(f": the rope base {words} (at Qcur_rope-0).")


def test_a_place_where_no_change_would_show_is_named() -> None:
    places = at("attn_norm-0", 0.5), at("ffn_norm-1", float("inf"))
    said = sentences(told(Sensitivity(Fault.NORM_EPSILON, *places, 2)))[1]
    assert said.endswith("a norm's epsilon 50 % too large (at attn_norm-0; at ffn_norm-1 not at any size).")
