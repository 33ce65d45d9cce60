"""Logs, held against the reference: the layer of a bug is named, and a right engine's log accuses nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.logs import Read, ggml_block
from builders.models import SMOLLM2, synthetic
from firstdiff.commands.log import observe
from firstdiff.dumps import Trace
from firstdiff.logs.compare import judge_log
from firstdiff.logs.record import LogVerdict, text
from firstdiff.logs.statistics import statistics
from firstdiff.model.arithmetic import F32, GGML_CPU, Arithmetic
from firstdiff.model.engine import Model, open_model

PROMPT = [1, *range(300, 309)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("log"), n_layer=4))


SPELLED = {
    "Qcur_rope": "Q after RoPE",
    "Kcur_rope": "K after RoPE",
    "Vcur": "v_proj",
    "kq": "attn scores",
    "l_out": "hidden state",
}


def rows_of(point: str, x: np.ndarray[Any, Any], row: int | None) -> np.ndarray[Any, Any]:
    return x if row is None else x[:, row] if point in ("kq", "kq_soft_max") else x[row]


def emoji(name: str, layer: int | None, s: dict[str, float], x: list[float]) -> str:
    where = "" if layer is None else f"[Layer {layer}] "
    listed = ", ".join(f"{v:.6f}" for v in x[:10])
    numbers = f"rms={s['rms']:.6f}, min={s['min']:.4f}, max={s['max']:.4f}, mean={s['mean']:.6f}"
    return f"🔍 {where}{name}: {numbers}, first 10: [{listed}, ...]"


def terse(name: str, layer: int | None, s: dict[str, float], _: list[float]) -> str:
    return (
        f"DEBUG {name}{'' if layer is None else f'-{layer}'} rms {s['rms']:.3g} min {s['min']:.3g} max {s['max']:.3g}"
    )


def fields(name: str, layer: int | None, s: dict[str, float], x: list[float]) -> str:
    where = "" if layer is None else f"layer={layer} "
    numbers = f"mean={s['mean']:.5e} std={s['std']:.5e} first_5={[round(v, 5) for v in x[:5]]}"
    return f"{where}op={name.replace(' ', '_')} stats: {numbers}"


def printed(trace: Trace, form: Callable[..., str] = emoji, *, row: int | None = None, first: int = 0) -> Iterator[str]:
    for site in trace.sites():
        if site.point.endswith("_cache"):
            continue
        x = rows_of(site.point, np.asarray(trace[site], np.float64), row).reshape(-1)
        layer = None if site.layer is None else site.layer + first
        yield form(SPELLED.get(site.point, site.point), layer, statistics(x), x.tolist())


def judged(model: Model, lines: Iterator[str] | Sequence[str], read: Read, **options: Any) -> LogVerdict:
    return judge_log(model, read("\n".join([*lines, ""])), PROMPT, **options)


FORMS = [emoji, terse, fields]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [None, -1])
@pytest.mark.parametrize("arithmetic", [F32, GGML_CPU], ids=lambda a: str(a.name))
def test_a_clean_log_agrees_whatever_its_form(
    model: Model, read: Read, form: Callable[..., str], row: int | None, arithmetic: Arithmetic
) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=arithmetic, decode=0)
    verdict = judged(model, printed(trace, form, row=row), read)
    assert verdict.first is None, text(verdict)
    assert (verdict.verdict, verdict.exit_code) == ("agrees", 0)
    assert verdict.count == {"agrees": 1 + 4 * 17 + 2}
    assert ("all tokens" if row is None else "the last token") in verdict.reading


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("bug", "layer"),
    [
        ("norm-weight-missing", 2),
        ("scale-missing", 1),
        ("weight-reinterpreted", 1),
        ("gqa-map", 2),
        ("residual-clipped", 3),
    ],
)
def test_the_layer_of_a_bug_is_named(model: Model, read: Read, form: Callable[..., str], bug: str, layer: int) -> None:
    trace, touched = plant(model, PROMPT, (bug, layer), arithmetic=GGML_CPU, decode=0)
    verdict = judged(model, printed(trace, form, row=-1), read)
    assert verdict.first is not None
    assert (str(verdict.first.site), verdict.first.site.layer) == (touched[0], layer)
    assert (verdict.verdict, verdict.exit_code) == ("diverges", 1)
    assert verdict.count["agrees"] >= layer * 17
    assert f"{touched[0]} (layer {layer}, line {verdict.first.line} of engine.log) is the first" in text(verdict)


def test_a_rotation_that_keeps_the_rms_shows_in_the_scores(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, ("rope-base", 1), arithmetic=GGML_CPU, decode=0)

    def only_rms(name: str, layer: int | None, s: dict[str, float], _: list[float]) -> str:
        return f"{name} layer {layer}: rms={s['rms']:.6f}" if layer is not None else ""

    verdict = judged(model, printed(trace, only_rms, row=-1), read)
    assert verdict.first is not None
    assert str(verdict.first.site) == "kq-1"
    assert verdict.before is not None
    assert str(verdict.before.site) == "Kcur_rope-1"


def test_what_is_not_printed_between_is_named(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, ("weight-reinterpreted", 2), arithmetic=GGML_CPU, decode=0)
    lines = [line for line in printed(trace) if "hidden state" in line or "logits" in line]
    verdict = judged(model, lines, read)
    assert verdict.first is not None
    assert verdict.before is not None
    assert (str(verdict.first.site), str(verdict.before.site)) == ("l_out-2", "l_out-1")
    assert str(verdict.unprinted[0]) == "attn_norm-2"
    assert "Between them nothing is printed of attn_norm-2, Qcur-2" in text(verdict)
    assert "How little this proves" in text(verdict)
    assert "permuted" in text(verdict)


def test_noise_changes_nothing(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, ("scale-missing", 2), arithmetic=GGML_CPU, decode=0)
    lines = list(printed(trace))
    plain = judged(model, lines, read)
    noisy = [b"\xe9\xff loading model ... 100%", b"loaded 4 layers in 3.5 s", b"blk.0.attn_q.weight rms=0.5"]
    for i, line in enumerate(lines):
        noisy += [f"\x1b[3{i % 8}m{line}\x1b[0m".encode()] * (1 + i % 2) + [
            b"",
            "⏱️ took 3.2 ms, mean 1.5 ms".encode(),
        ]
    noisy.append(b"[layer 3] Q rms=0.0")  # torn
    verdict = judge_log(model, read(b"\n".join(noisy)), PROMPT)
    assert verdict.first is not None
    assert plain.first is not None
    assert str(verdict.first.site) == str(plain.first.site) == "kq_soft_max-2"
    assert verdict.first.differences == plain.first.differences
    assert verdict.count["agrees"] == plain.count["agrees"]
    assert len(verdict.unknown) >= 1


def test_several_prompts_in_one_log(model: Model, read: Read) -> None:
    other, _ = plant(model, [1, 77, 78], arithmetic=GGML_CPU, decode=0)
    mine, _ = plant(model, PROMPT, ("norm-weight-missing", 3), arithmetic=GGML_CPU, decode=0)
    verdict = judged(model, [*printed(other), *printed(mine)], read)
    assert verdict.first is not None
    assert str(verdict.first.site) == "attn_norm-3"
    assert "the first pass of the log left out" in verdict.reading
    assert judged(model, [*printed(mine), *printed(other)], read).first == judged(model, printed(mine), read).first


@pytest.mark.slow
def test_a_prompt_fed_token_by_token(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, ("weight-reinterpreted", 3), arithmetic=GGML_CPU, decode=0)
    drop = [s for s in trace.sites() if s.point in ("kq", "kq_soft_max")]
    trace = trace.without(lambda s: s in drop)
    verdict = judged(model, [line for row in range(len(PROMPT)) for line in printed(trace, row=row)], read)
    assert verdict.reading.startswith("one pass for each token of the prompt")
    assert verdict.first is not None
    assert str(verdict.first.site) == "Qcur-3"


@pytest.mark.slow
def test_decoded_steps_are_followed(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=GGML_CPU, decode=2)
    verdict = judged(model, printed(trace, row=-1), read, decode=2)
    assert verdict.first is None, text(verdict)
    assert verdict.count == {"agrees": 3 * (1 + 4 * 17 + 2)}
    decoded = [step.tokens[0] for step in trace.steps[1:]]
    assert [list(t) for t in verdict.tokens] == [PROMPT, [decoded[0]], [decoded[1]]]
    short = judged(model, printed(trace, row=-1), read)
    assert short.count["not compared"] == 2 * (1 + 4 * 17 + 2)
    forced = judged(model, printed(trace, row=-1), read, decoded=[5, 6])
    assert forced.first is not None
    assert str(forced.first.site) == "embd@1"
    assert any("may have decoded another token" in note for note in forced.notes)


def test_layers_counted_from_1(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, ("norm-weight-missing", 2), arithmetic=GGML_CPU, decode=0)
    verdict = judged(model, printed(trace, first=1), read)
    assert verdict.first is not None
    assert str(verdict.first.site) == "attn_norm-2"
    assert "counts its layers from 1 to 4" in verdict.notes[0]


def test_scores_after_scaling_and_with_a_mask_of_minus_infinity(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=GGML_CPU, decode=0)
    lines = []
    for layer in range(4):
        x = np.asarray(trace[next(s for s in trace.sites() if s.key == f"kq-{layer}")], np.float64) * 32**-0.5
        hidden = np.triu(np.ones(x.shape[1:], bool), 1)
        lines.append(f"layer {layer} scores rms=inf min=-inf max={x[:, ~hidden].max():.5f}")
    verdict = judged(model, lines, read)
    assert verdict.count == {"agrees": 4}
    assert "after scaling" in verdict.reading


def test_activations_in_bf16_accuse_nobody(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    rounded = {
        s: (np.array(trace[s], np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)
        for s in trace.sites()
    }
    bf16 = Trace.from_arrays(trace.steps, rounded, engine={}, model={})
    verdict = judged(model, printed(bf16), read)
    assert verdict.first is None, text(verdict)
    assert "rounded like bf16" in verdict.reading


def test_other_tokens_are_suspected_before_a_layer_is(model: Model, read: Read) -> None:
    trace, _ = plant(model, [1, *range(200, 209)], arithmetic=GGML_CPU, decode=0)
    verdict = judged(model, printed(trace), read)
    assert verdict.first is not None
    assert str(verdict.first.site) == "embd"
    assert "compare the token ids" in text(verdict)
    assert any("other tokens, or another model" in note for note in verdict.notes)


def test_nan_disagrees(model: Model, read: Read) -> None:
    verdict = judged(model, ["[layer 1] Q rms=nan"], read)
    assert verdict.first is not None
    assert verdict.first.differences[0].what == "rms"
    record = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert record["first"]["differences"][0]["printed"] == "nan"


def test_nothing_to_compare_is_no_pass(model: Model, read: Read) -> None:
    for lines in ([], ["nothing here"], ["[layer 77] Q rms=0.5"], ["[layer 1] ffn_geglu rms=0.5"]):
        verdict = judged(model, lines, read)
        assert (verdict.verdict, verdict.exit_code) == ("incomparable", 4)
        assert "Nothing in engine.log could be compared" in text(verdict)


def test_llama_cpps_output_agrees_with_the_reference(model: Model, read: Read) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=GGML_CPU, decode=0)
    blocks = []
    for site in trace.sites():
        x = np.asarray(trace[site], np.float64)
        if site.point in ("embd", "attn_norm", "attn_out", "ffn_inp", "l_out", "result_norm", "result_output"):
            x = x[-1:] if site.point.startswith("result") else x  # the last layer is cut to the last row
            blocks.append(ggml_block(site.key, "MUL", x))
    verdict = judge_log(model, read("".join(blocks)), PROMPT)
    assert verdict.first is None, text(verdict)
    assert verdict.count == {"agrees": 3 + 4 * 4}


@pytest.mark.smollm2
@pytest.mark.parametrize("bug", [None, ("weight-reinterpreted", 11)])
def test_a_real_quantised_model(tmp_path: Path, bug: tuple[str, int] | None) -> None:
    real = open_model(SMOLLM2)
    tokens = [504, 3575, 282, 4649, 314]
    unlike = Arithmetic("unlike", np.float32, products="ggml-cpu")
    trace, touched = plant(real, tokens, *([bug] if bug else []), arithmetic=unlike, decode=0)
    path = tmp_path / "engine.log"
    path.write_text("\n".join([*printed(trace, row=-1), ""]))
    report, record, code = observe(log=path, model=SMOLLM2, tokens=tokens, decode=1)
    assert code == (1 if bug else 0), report
    assert (record["first"] or {"site": None})["site"] == (touched[0] if bug else None)
    assert json.loads(json.dumps(record))["format"] == "firstdiff-log-verdict"


def test_the_command_names_the_layer_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = synthetic(tmp_path, n_layer=3)
    trace, _ = plant(open_model(model), [1, 5, 9, 20], ("norm-weight-missing", 1), decode=0)
    lines = [
        f"[layer {site.layer}] {site.point} rms={np.sqrt(np.mean(np.square(trace[site], dtype=np.float64))):.6g}"
        for site in trace.sites()
        if site.layer is not None and site.point in ("attn_norm", "ffn_norm", "l_out")
    ]
    log = tmp_path / "engine.log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    from firstdiff.cli import main

    assert main(["log", str(log), "--model", str(model), "--tokens", "1,5,9,20", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first"]["layer"] == 1
