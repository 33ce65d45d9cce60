"""What paths, logs and names smuggle into a message or a report is shown as its escape, everywhere alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstdiff import errors
from firstdiff.reports import escaped as reports

BOTH = pytest.mark.parametrize("escaped", [errors.escaped, reports.escaped])
Escaped = Callable[..., str]


@BOTH
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 名 'quoted' \\n", "plain ü 名 'quoted' \\n"),
        ("\x1b[2K\r\n\t\0\x7f", "\\x1b[2K\\r\\n\\t\\x00\\x7f"),
        ("\u202eleft\u2028\u00ad\xa0", "\\u202eleft\\u2028\\xad\\xa0"),
        ("\udcff\U000e0001", "\\udcff\\U000e0001"),
    ],
)
def test_what_does_not_print_is_shown_as_its_escape(escaped: Escaped, text: str, shown: str) -> None:
    assert escaped(text) == shown


@BOTH
@given(st.text(st.characters(), max_size=40))
def test_what_is_shown_is_one_line_that_prints_but_for_what_is_kept(escaped: Escaped, text: str) -> None:
    assert escaped(text).isprintable()
    kept = escaped(text, keep="\n\t")
    assert kept.replace("\n", "").replace("\t", "").isprintable()
    assert (kept.count("\n"), kept.count("\t")) == (text.count("\n"), text.count("\t"))
