"""The Python API: what a notebook or a script records, opens, compares and asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstdiff as fd
from firstdiff.dumps import Site, Step, Trace, TraceError
from firstdiff.dumps.named_array import NamedArray
from firstdiff.errors import UsageError
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.verdict import Explanation, SiteVerdict, Status, Verdict

TOKENS = (1, 70, 71, 72, 73)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorded(model: Path, *bugs: str | Planted, **more: Any) -> Trace:
    return fd.record(model, tokens=TOKENS, engine="reference:f32", bugs=bugs, **more)


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The package


def test_the_package_lists_what_it_offers() -> None:
    assert {"record", "open", "compare", "explain", "plot"} <= set(dir(fd))
    with pytest.raises(AttributeError, match="no attribute 'recrod'"):
        fd.recrod  # noqa: B018


def test_a_verb_stays_a_verb_whatever_modules_are_loaded() -> None:
    script = (
        "import firstdiff.api, firstdiff.commands.explain, firstdiff.commands.record, firstdiff.plot\n"
        "import firstdiff as fd\n"
        "print(callable(fd.explain), callable(fd.record), fd.plot is firstdiff.plot, firstdiff.record is fd.record)"
    )
    assert run(script) == "True True True True"


def test_comparing_needs_neither_pandas_nor_matplotlib(model: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['pandas'] = sys.modules['matplotlib'] = None\n"
        "import firstdiff as fd\n"
        f"trace = fd.record({str(model)!r}, tokens=[1, 70], engine='reference:f32')\n"
        f"verdict = fd.compare(trace, {str(model)!r})\n"
        "print(verdict.verdict, '<p>' in verdict._repr_html_())\n"
        "for ask in (verdict.frame, lambda: fd.plot.heatmap(verdict)):\n"
        "    try:\n"
        "        ask()\n"
        "    except ImportError as e:\n"
        "        print(e)\n"
    )
    assert run(script).splitlines() == [
        "agrees True",
        "verdict.frame() needs pandas: pip install 'firstdiff[notebook]'",
        "firstdiff.plot needs matplotlib: pip install 'firstdiff[notebook]'",
    ]


# Recording and opening


def test_a_run_is_kept_in_a_folder_of_its_own(model: Path) -> None:
    first, second = recorded(model), recorded(model)
    assert first.path is not None
    assert second.path is not None
    assert first.path != second.path
    assert first.path.parent.parent == Path("firstdiff-runs")
    assert fd.open(first.path).sites() == first.sites()


def test_the_tokens_of_each_step_of_another_trace_are_run_again(model: Path) -> None:
    candidate = recorded(model, "rope-base@1", decode=2)
    again = fd.record(model, tokens=candidate, engine="reference:f64")
    assert again.steps == candidate.steps
    assert fd.compare(candidate, model, against=again).against == "reference:f64"


def test_a_plant_may_have_its_own_parameters(model: Path) -> None:
    trace = recorded(model, Planted(TABLE["residual-clipped"], 1, {"bound": 1.5}))
    (why,) = fd.explain(trace, "ffn_inp-1", model=model)
    assert why.hypothesis == "residual-clipped"
    assert why.attributes["bound"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": "x", "tokens": [1]}, "a prompt or tokens, not both"),
        ({"tokens": [1], "chat": True}, "chat is for a text"),
        ({"tokens": [1], "engine": "rustorch"}, "no such engine"),
        ({"tokens": [1], "engine": "reference", "bugs": ["rope-bsae"]}, "no such bug"),
        ({"tokens": [1], "engine": "reference", "bugs": ["rope-base@x"]}, "after '@' comes a layer"),
    ],
)
def test_what_cannot_be_recorded_is_refused(model: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fd.record(model, **arguments)
    assert not Path("firstdiff-runs").exists()


def test_a_trace_says_in_a_line_what_it_is(model: Path) -> None:
    assert repr(recorded(model, decode=1)) == "<Trace of reference:f32: 158 sites, tokens of each step 5, 1>"


# Arrays with named axes


def test_a_site_is_asked_for_by_point_layer_and_step(model: Path) -> None:
    trace = recorded(model, decode=1)
    k = trace["Kcur_rope", 3]
    assert (k.axes, k.shape) == (("token", "head", "head_dim"), (5, 4, 32))
    assert trace["kq", 0].axes == ("head", "query", "key")
    assert trace["result_output"].axes == ("token", "feature")
    assert trace["k_cache", 0, 1].axes == ("token", "head", "head_dim")
    assert np.array_equal(trace["Kcur_rope", 3, 1], trace[Site(1, 3, "Kcur_rope")])
    assert np.array_equal(trace["Kcur_rope-3@1"], trace["Kcur_rope", 3, 1])
    assert "Kcur_rope-3@1" in trace
    assert ("Kcur_rope", 9) not in trace
    with pytest.raises(KeyError, match="Kcur_rope-9"):
        trace["Kcur_rope", 9]
    with pytest.raises(TraceError, match="is no site"):
        trace[3, "Kcur_rope"]  # type: ignore[call-overload]


def test_what_is_cut_out_keeps_its_names_and_what_is_computed_has_none() -> None:
    x = NamedArray(np.zeros((5, 3, 64)), ("token", "head", "head_dim"))
    assert x[0].axes == ("head", "head_dim")
    assert x[:, 1].axes == ("token", "head_dim")
    assert x[..., 0].axes == ("token", "head")
    assert x[1:3].axes == ("token", "head", "head_dim")
    assert x[np.int64(2), :, np.array(1)[()]].axes == ("head",)
    assert x[x[:, 0, 0] == 0].axes == ()
    assert x[[0, 1]].axes == ()
    assert x[None].axes == ()
    assert x[True].axes == ()
    for computed in (x + 1, x.T, x.sum(0), x.reshape(3, 5, 64), np.asarray(x).view(NamedArray)):
        assert computed.axes == ()
    assert x.axis("head_dim") == 2
    assert "[token 5, head 3, head_dim 64]" in repr(x)


def test_axes_are_named_as_the_manifest_says_and_numbered_where_the_shape_does_not_fit() -> None:
    x = np.zeros((3, 2, 4), np.float32)
    sites = {Site(0, 0, "Qcur"): x, Site(0, 0, "Kcur"): x, Site(0, None, "mine"): np.zeros((2, 7, 1, 1), np.float32)}
    trace = Trace.from_arrays(
        [Step((1, 2), (0, 1))], sites, engine={}, model={}, layouts={"Qcur": ("head", "token", "head_dim")}
    )
    assert trace["Qcur", 0].axes == ("head", "token", "head_dim")
    assert trace["Kcur", 0].axes == ("axis 0", "axis 1", "axis 2")  # 3 are not the step's 2 tokens
    assert trace["mine"].axes == ("axis 0", "axis 1", "axis 2", "axis 3")


# Comparing


def test_a_wrong_base_is_found_and_explained(model: Path) -> None:
    verdict = fd.compare(recorded(model, "rope-base@2"), model)
    assert verdict.first is not None
    assert str(verdict.first.site) == "Qcur_rope-2"
    (why,) = fd.explain(verdict)
    assert fd.explain(verdict, ("Kcur_rope", 2)) == (why,)
    assert fd.explain(verdict, "Kcur_rope-1") == ()
    assert why.hypothesis == "rope-base"
    assert "(rope-base)" in repr(fd.explain(verdict))
    assert "<ol>" in fd.explain(verdict)._repr_html_()


@pytest.mark.llama
def test_a_prompt_is_compared_with_the_tokens(model: Path) -> None:
    right = fd.record(model, prompt="a\nb", engine="reference:f32")
    assert fd.compare(right, model, prompt="a\nb").preflight["tokens"] == "agrees"
    ids = right.steps[0].tokens
    wrong = fd.record(model, tokens=[*ids, 2], engine="reference:f32")
    verdict = fd.compare(wrong, model, prompt="a\nb")
    assert "token-appended-eos" in verdict.preflight["tokens"]
    assert len(verdict.pieces) == len(ids) + 1


def test_what_cannot_be_compared_is_refused(model: Path) -> None:
    trace = recorded(model)
    other = fd.record(model, tokens=[1, 70, 71, 72, 74], engine="reference:f32")
    with pytest.raises(TraceError, match="tokens differ"):
        fd.compare(trace, model, against=other)
    with pytest.raises(UsageError, match="give model="):
        fd.explain(trace)
    with pytest.raises(UsageError, match="no such site"):
        fd.explain(fd.compare(trace, model), "Qcur-99")


# A verdict shows itself


@pytest.mark.notebook
def test_a_frame_has_a_row_a_site(model: Path) -> None:
    verdict = fd.compare(recorded(model, "rope-base@2"), model)
    frame = verdict.frame()
    assert list(frame.site) == [str(s.site) for s in verdict.sites]
    wrong = frame[frame.status == "diverges"]
    assert list(wrong.hypothesis) == ["rope-base", "rope-base"]
    assert wrong.local_error.min() > 1e-3
    assert list(frame.status.cat.categories) == [s.value for s in Status]
    assert frame.layer.isna().sum() == 3
    assert frame.hypothesis.iloc[0] is None
    assert fd.compare(recorded(model), model).frame().status.eq("agrees").all()
    assert frame.groupby("layer").size().loc[2] == 19


def test_a_verdict_shows_its_sentences_its_explanations_and_its_map(model: Path) -> None:
    verdict = fd.compare(recorded(model, "rope-base@2"), model)
    page = verdict._repr_html_()
    assert "<strong>Qcur_rope-2 is the first to go wrong" in page
    assert "(rope-base)" in page
    assert f"Checked: with this one change in the reference, all {len(verdict.sites)} recorded sites agree." in page
    assert ">X</span>" in page
    assert "<script" not in page
    assert repr(verdict).startswith("<Verdict diverges: Qcur_rope-2 is the first to go wrong")
    assert len(repr(verdict)) < 200


def test_hostile_names_stay_text() -> None:
    name = "<script>alert(1)</script>\x1b[31m"
    where = Site(0, None, "<script>alert(1)<script>")  # no site holds a path separator or an escape
    site = SiteVerdict(where, name, Status.DIVERGES, local_error=1.0, floor=1e-6)
    why = Explanation(where, (where,), name, name, name, name, {name: name}, 1.0, 0.0, 1e-6, note=name)
    verdict = Verdict(name, name, {"file": name}, ((1,),), {}, (site,), notes=(name,), explanations=(why,))
    page = verdict._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page
    assert (
        "&lt;script&gt;alert(1)&lt;script&gt; is the first to go wrong: &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m"
        in page
    )
