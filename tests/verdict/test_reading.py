"""``verdict.json`` is read again as it was written; what was cut short, edited or is none is refused in one line."""

from __future__ import annotations

import json
import tempfile
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.command_line import Command, assert_refused
from builders.verdicts import EVERY_KIND, SENSITIVITY, verdict
from firstdiff.dumps import TraceError
from firstdiff.reports.html import render as page
from firstdiff.reports.terminal import render
from firstdiff.verdict.reading import read_verdict
from firstdiff.verdict.side_by_side import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG = verdict(bug=1, details=True).to_json()
UNREADABLE = 3


def written(folder: Path, text: str) -> Path:
    path = folder / "verdict.json"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(TraceError) as raised:
        read_verdict(path)
    said = str(raised.value)
    assert said.startswith((f"{path}: ", f"{path} "))
    assert said.isprintable()
    assert len(said) < 500
    return said


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    record = json.loads(WRONG)
    change(record)
    return json.dumps(record)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_was_written_is_read_again(kind: str, tmp_path: Path) -> None:
    text = EVERY_KIND[kind].to_json()
    again = read_verdict(written(tmp_path, text))
    assert again.to_json() == text
    assert repr(again) == repr(EVERY_KIND[kind])
    assert render(again, width=80) == render(EVERY_KIND[kind], width=80)
    assert page(again) == page(EVERY_KIND[kind])


def test_a_verdict_that_was_written_otherwise_is_the_same(tmp_path: Path) -> None:
    text = json.dumps(json.loads(WRONG), sort_keys=True)
    assert read_verdict(written(tmp_path, text)) == verdict(bug=1, details=True)


def test_a_verdict_whose_counter_check_has_no_number_of_sites_claims_none(tmp_path: Path) -> None:
    text = edited(remove("counter_check", "judged"))
    again = read_verdict(written(tmp_path, text))
    assert json.loads(again.to_json()) == json.loads(text)
    assert "in the reference, no site that diverged does so any more." in render(again, width=200)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, len(WRONG.encode()) - 3))
def test_a_verdict_that_is_cut_short_is_refused(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdict.json"
        path.write_bytes(WRONG.encode()[:length])
        with pytest.raises(TraceError, match=r"is not valid JSON"):
            read_verdict(path)


def place(record: dict[str, Any], name: str) -> int:
    return next(i for i, s in enumerate(record["sites"]) if s["site"] == name)


def set_at(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *way, last = path
        reduce(lambda inside, key: inside[key], way, record)[last] = to

    return change


def remove(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *way, last = path
        del reduce(lambda inside, key: inside[key], way, record)[last]

    return change


def acquit(record: dict[str, Any]) -> None:
    """What a forger would try first: the site that diverges is said to agree, everywhere."""
    record["sites"][place(record, "Qcur_rope-1")]["status"] = "agrees"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "the verdict": (set_at("verdict", to="agrees"), ("verdict is 'agrees'", "'diverges'")),
    "a status": (acquit, ("'Qcur_rope-1'", "agrees with local error 0.83 and floor 1e-06")),
    "a status that is none": (set_at("sites", 3, "status", to="fine"), ("sites[3].status", "'fine'", "agrees, ")),
    "an error": (set_at("sites", 3, "local_error", to=1.0), ("sites[3]", "agrees with local error 1")),
    "an error that is a text": (set_at("sites", 3, "local_error", to="small"), ("sites[3].local_error", "'small'")),
    "an error of too many digits": (set_at("sites", 3, "local_error", to=10**400), ("sites[3].local_error",)),
    "no error": (remove("sites", 3, "local_error"), ("sites[3]", "agrees without a local error")),
    "a floor": (set_at("sites", 3, "floor", to=True), ("sites[3].floor must be a number, and is True",)),
    "a site removed": (remove("sites", 3), ("details.Kcur-0 is of a site",)),
    "a site twice": (lambda r: r["sites"].append(r["sites"][3]), ("sites holds", "twice")),
    "a site renamed": (set_at("sites", 3, "site", to="Qcur-9"), ("sites[3].point is 'Kcur'", "'Qcur-9'")),
    "a layer": (set_at("sites", 3, "layer", to=-1), ("sites[3].layer is -1, and its site is 'Kcur-0'",)),
    "no layer": (remove("sites", 3, "layer"), ("sites[3] lacks 'layer'",)),
    "a layer with a point": (set_at("sites", 3, "layer", to=1.0), ("sites[3].layer is 1.0, and its site is 'Kcur-0'",)),
    "the coverage": (set_at("coverage", "agrees", to=7), ("coverage.agrees is 7",)),
    "the first divergence": (set_at("first", to=None), ("first is None",)),
    "the diverging sites": (set_at("diverging", to=[]), ("diverging is []",)),
    "the logits": (set_at("logits", "top1", to=9), ("logits.top1 is 9",)),
    "logits without steps": (remove("logits", "steps"), ("logits must hold 'steps'",)),
    "the counter-check": (set_at("counter_check", "agrees", to=False), ("counter_check.agrees is False",)),
    "sites that the counter-check judged": (
        set_at("counter_check", "judged", to=83),
        ("counter_check.judged is 83, with 0 sites left of 82 that were recorded",),
    ),
    "tokens": (set_at("tokens", 0, 2, to="7"), ("tokens[0][2] must be a whole number, and is '7'",)),
    "tokens that are none": (set_at("tokens", to=None), ("tokens must be a list, and is None",)),
    "a key more": (set_at("sites", 3, "score", to=1), ("sites[3] has a key 'score'",)),
    "a key more at the top": (set_at("colour", to="red"), ("the record has a key 'colour'",)),
    "a key less": (remove("candidate"), ("the record lacks 'candidate'",)),
    "no notes": (remove("notes"), ("the record lacks 'notes'",)),
    "a worst element of three": (set_at("diverging", 0, "worst", "index", to=[1]), ("diverging[0].worst.index",)),
    "details of no site": (lambda r: r["details"].update(x=r["details"]["embd"]), ("details.x is of a site",)),
    "a profile": (set_at("details", "embd", "profiles", 0, "step", to=0), ("details.embd.profiles[0] has another",)),
    "bars": (set_at("details", "embd", "histogram", "candidate", to=[]), ("details.embd.histogram",)),
    "a pair": (set_at("details", "embd", "scatter", 0, to=[1.0]), ("details.embd.scatter[0] must hold 2 values",)),
    "an index": (set_at("details", "embd", "worst", 0, "index", to=[1]), ("details.embd has axes and indices",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", EDITS)
def test_an_edited_verdict_is_refused(what: str, tmp_path: Path) -> None:
    change, words = EDITS[what]
    said = refusal(tmp_path, edited(change))
    assert not [word for word in words if word not in said], said
    assert said.endswith("the file was edited or damaged: make it again with firstdiff run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_at("dump", 0, "sites", 0, to="l_out-9"), "dump[0] is of a site that is not there: 'l_out-9'"),
        (set_at("dump", 0, "sites", 0, to="embd"), "dump[0] covers 'embd', which agrees"),
        (set_at("dump", 0, "blame", to="engine"), "dump[0] has a key 'blame'"),
        (remove("dump", 0, "says"), "dump[0] lacks 'says'"),
        (set_at("dump", to=[]), "has a key 'dump'"),
    ],
)
def test_an_edited_finding_of_the_dump_is_refused(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    record = json.loads(EVERY_KIND["wrong dump"].to_json())
    change(record)
    assert words in refusal(tmp_path, json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_at("sensitivity", 0, "fault", to="tokens"), "sensitivity[0].fault is 'tokens', and is one of"),
        (set_at("sensitivity", 1, "fault", to="norm epsilon"), "sensitivity holds a fault twice"),
        (set_at("sensitivity", 0, "least", "share", to=0.0), "shares that are not above 0"),
        (set_at("sensitivity", 0, "least", "share", to="nan"), "shares that are not above 0"),
        (set_at("sensitivity", 0, "most", "share", to=0.1), "the least first"),
        (set_at("sensitivity", 0, "most", to=None), "tells 1 places of 5 that were tried"),
        (set_at("sensitivity", 0, "least", "site", to="attn_norm-9"), "is of 'attn_norm-9', seen at 'attn_norm-0'"),
        (set_at("sensitivity", 0, "least", "seen", to="attn_norm-9"), "is of 'attn_norm-0', seen at 'attn_norm-9'"),
        (set_at("sensitivity", 4, "least", "element", to=None), "has the element None, and is of a weight"),
        (set_at("sensitivity", 0, "least", "element", to=[1, 2]), "has the element (1, 2), and is of a norm epsilon"),
        (set_at("sensitivity", 0, "sure", to=True), "sensitivity[0] has a key 'sure'"),
        (remove("sensitivity", 0, "tried"), "sensitivity[0] lacks 'tried'"),
        (set_at("sensitivity", to=[]), "has a key 'sensitivity'"),
    ],
)
def test_an_edited_claim_of_a_pass_is_refused(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    record = json.loads(EVERY_KIND["clean, with what would have shown"].to_json())
    change(record)
    assert words in refusal(tmp_path, json.dumps(record))


def test_a_verdict_that_diverges_claims_nothing_of_what_it_would_have_shown(tmp_path: Path) -> None:
    text = verdict(bug=1, sensitivity=SENSITIVITY).to_json()
    assert "sensitivity is told of a verdict that diverges" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "has no 'format', where a verdict says 'firstdiff-verdict'"),
        ('{"format": "firstdiff-trace", "version": 1}', "'format' is 'firstdiff-trace'"),
        ('{"format": "firstdiff-verdict"}', "is version None of the format, and this firstdiff reads 1"),
        ('{"format": "firstdiff-verdict", "version": 2}', "is version 2 of the format, and this firstdiff reads 1"),
        ('{"format": "firstdiff-verdict", "version": true}', "is version True"),
        ('{"format": "firstdiff-verdict", "version": 1}', "lacks 'candidate'"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ('{"format": "firstdiff-verdict", "version": 1, "version": 1}', "comes twice"),
    ],
)
def test_what_is_no_verdict_is_refused(text: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, text)


def test_several_candidates_verdicts_are_refused_as_what_they_are(tmp_path: Path) -> None:
    both = [verdict(bug=1), verdict()]
    assert "firstdiff-verdicts" in refusal(tmp_path, to_json(both, ["a", "b"]))


def paths(value: Any, way: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, inner in items for p in ((*way, key), *paths(inner, (*way, key)))]


SMALL = EVERY_KIND["unexplained"].to_json()
PLACES = paths(json.loads(SMALL))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["nan", "inf", "-inf", "agrees", "diverges", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(PLACES), JSON, st.booleans())
def test_whatever_is_edited_it_is_refused_or_told_as_it_stands(way: tuple[Any, ...], value: Any, gone: bool) -> None:  # noqa: FBT001
    record = json.loads(SMALL)
    (remove(*way) if gone else set_at(*way, to=value))(record)
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), json.dumps(record))
        try:
            verdict = read_verdict(path)
        except TraceError as e:
            assert str(e).isprintable()  # noqa: PT017 - most edits are refused, and none must end otherwise
            return
    assert json.loads(verdict.to_json()) == record
    assert page(verdict)
    assert render(verdict, width=80)


# The command


def test_report_prints_what_the_run_printed(firstdiff: Command, tmp_path: Path) -> None:
    written(tmp_path, WRONG)
    ran = firstdiff("report", "verdict.json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out == render(verdict(bug=1), width=80, where="verdict.json")


def test_report_writes_the_page(firstdiff: Command, tmp_path: Path) -> None:
    written(tmp_path, WRONG)
    ran = firstdiff("report", "verdict.json", "--html", "report.html")
    assert (ran.code, ran.out, ran.err) == (1, "Page: report.html\n", "")
    assert (tmp_path / "report.html").read_text("utf-8") == page(verdict(bug=1, details=True))


@pytest.mark.parametrize(("kind", "code"), [("clean", 0), ("wrong", 1), ("incomparable", 4)])
def test_report_exits_as_the_run_did(firstdiff: Command, tmp_path: Path, kind: str, code: int) -> None:
    written(tmp_path, EVERY_KIND[kind].to_json())
    assert firstdiff("report", "verdict.json").code == code


def test_a_verdict_that_cannot_be_read_is_one_line(firstdiff: Command, tmp_path: Path) -> None:
    assert_refused(firstdiff("report", "none.json"), UNREADABLE, "none.json: cannot be read (No such file")
    assert_refused(firstdiff("report", tmp_path), UNREADABLE, "cannot be read (Is a directory)")
    assert_refused(firstdiff("report", "a\0b"), UNREADABLE, "cannot be read (embedded null byte)")
    written(tmp_path, WRONG[:5000])
    assert_refused(firstdiff("report", "verdict.json"), UNREADABLE, "verdict.json is not valid JSON")
    written(tmp_path, edited(acquit))
    assert_refused(firstdiff("report", "verdict.json", "--html", "x.html"), UNREADABLE, "was edited or damaged")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [(".", "it is a folder"), ("none/x.html", "there is no folder none"), ("f/x.html", "there is no folder f")],
)
def test_a_page_that_cannot_be_written_is_one_line(firstdiff: Command, tmp_path: Path, path: str, words: str) -> None:
    written(tmp_path, WRONG)
    (tmp_path / "f").touch()
    said = f"{path}: the page cannot be written ({words}): give another file with --html"
    assert_refused(firstdiff("report", "verdict.json", "--html", path), UNREADABLE, said)
    # before any work: the model is not even looked for
    assert_refused(firstdiff("run", "no.gguf", "--html", path), UNREADABLE, said)
    assert_refused(firstdiff("demo", "--html", path), UNREADABLE, said)


def test_a_page_that_fills_the_disk_is_one_line(firstdiff: Command, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    written(tmp_path, WRONG)
    ran = firstdiff("report", "verdict.json", "--html", "/dev/full")
    assert_refused(ran, UNREADABLE, "/dev/full: the page cannot be written (No space left on device)")


def test_a_page_shows_one_candidate(firstdiff: Command) -> None:
    ran = firstdiff("run", "no.gguf", "--candidate", "a", "--candidate", "b", "--html", "x.html")
    assert_refused(ran, 2, "--html: a page shows one candidate")
