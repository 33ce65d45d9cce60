"""Logs: what people print of their engines is read, held against the reference, and the layer is named."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.models import SMOLLM2, synthetic
from firstdiff.commands.log import observe
from firstdiff.dumps import Trace, TraceError
from firstdiff.dumps.log import Log, read_log
from firstdiff.dumps.log_lines import Printed
from firstdiff.dumps.observation import Observation
from firstdiff.dumps.patterns import load_patterns, parse_form
from firstdiff.logs.compare import judge_log
from firstdiff.logs.record import LogVerdict, text
from firstdiff.logs.statistics import statistics
from firstdiff.model.arithmetic import F32, GGML_CPU, Arithmetic
from firstdiff.model.engine import Model, open_model

PROMPT = [1, *range(300, 309)]
Read = Callable[..., Log]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: str | bytes, **options: Any) -> Log:
        path = tmp_path / "engine.log"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_log(path, **options)

    return read


def only(log: Log) -> Observation:
    assert len(log.observations) == 1, log
    return log.observations[0]


def values(printed: Sequence[Printed]) -> list[float]:
    return [p.value for p in printed]


# Reading lines


@pytest.mark.parametrize(
    ("line", "site", "numbers"),
    [
        (
            "🔍 [Layer 3] Q after RoPE: rms=0.008595, min=-0.0312, max=0.0287, mean=0.000012, first 10: [0.0012, ...]",
            "Qcur_rope-3",
            {"rms": 0.008595, "min": -0.0312, "max": 0.0287, "mean": 0.000012},
        ),
        ("DEBUG l_out-5 rms 0.0123 min -1.2 max 3.4", "l_out-5", {"rms": 0.0123, "min": -1.2, "max": 3.4}),
        ("layer=0 op=attn_norm stats: mean=1e-3 std=.5", "attn_norm-0", {"mean": 1e-3, "std": 0.5}),
        ("\x1b[1;32m[layer 3] Qcur\x1b[0m rms=0.01234 max=+3.4", "Qcur-3", {"rms": 0.01234, "max": 3.4}),
        (
            "2025-10-08T12:00:00.123Z INFO my::engine: model.layers.7.self_attn.k_proj Mean: 0.5, Std: 1.5",
            "Kcur-7",
            {"mean": 0.5, "std": 1.5},
        ),
        ("hidden state after layer 9: range=[-1.5, 2.5] seq_len=18", "l_out-9", {"min": -1.5, "max": 2.5}),
        ("Layer 21/22 FFN gate (device=metal): l2 norm = 12.5", "ffn_gate-21", {"norm": 12.5}),
        ("L4 attn scores | min/max: -1.5/2.5", "kq-4", {"min": -1.5, "max": 2.5}),
        ("logits: min=\u22125.5 max=NaN", "result_output", {"min": -5.5}),
        ("Qcur_rope-3@1 rms=0.5", "Qcur_rope-3@1", {"rms": 0.5}),
        ("[step 2] [blk.4] ffn_out sum=-inf", "ffn_out-4@2", {"sum": float("-inf")}),
        ("Token embeddings: avg 0.25", "embd", {"mean": 0.25}),
    ],
)
def test_a_line_as_people_write_it(read: Read, line: str, site: str, numbers: dict[str, float]) -> None:
    observation = only(read(line + "\n"))
    found = {k: p.value for k, p in observation.numbers.items() if not math.isnan(p.value)}
    assert (str(observation.site), found) == (site, numbers)


@pytest.mark.parametrize(
    ("line", "first", "last"),
    [
        ("[layer 1] Q rms=1.0 first 10: [1.5, -2.5, 3e-2, ...]", [1.5, -2.5, 0.03], []),
        ("layer 1 Q first_5=[1.5 2.5 3.5 4.5 5.5]", [1.5, 2.5, 3.5, 4.5, 5.5], []),
        ("l_out-3: [0.1, 0.2, 0.3]", [0.1, 0.2, 0.3], []),
        ("attn_out-3[:3] = tensor([1., 2., 3.]) attn_out-3[-2:] = [4.5, 5.5]", [1, 2, 3], [4.5, 5.5]),
        ("v_proj layer 2 first 3 values: 0.5 0.25 0.125 last 2: 1.5, 2.5", [0.5, 0.25, 0.125], [1.5, 2.5]),
    ],
)
def test_first_and_last_values(read: Read, line: str, first: list[float], last: list[float]) -> None:
    observation = only(read(line + "\n"))
    assert (values(observation.first), values(observation.last)) == (first, last)


@pytest.mark.parametrize(
    ("number", "resolution"),
    [("0.008595", 5e-7), ("-1.2", 0.05), ("3", 0.5), ("1.25e-05", 5e-8), ("2E3", 500), ("nan", 0)],
)
def test_the_digits_printed_are_the_resolution(number: str, resolution: float) -> None:
    assert Printed.of(number).resolution == pytest.approx(resolution)


def test_names_of_something_else_are_listed_and_never_guessed(read: Read) -> None:
    log = read(
        "loading blk.3.attn_norm.weight rms=0.046\n"
        "expected Q layer 3 rms=0.5\n"
        "layer 3 frobnicated rms=0.5\n"
        "layer 4 frobnicated rms=0.5\n"
        "Q rms=0.5\n"
        "rms=0.5\n"
        "max_error layer 2: 0.1\n"
        "l_out-3 shape: [8, 576]\n"
        "loaded 22 layers in 3.5 s\n"
    )
    assert log.observations == ()
    assert [(u.line, u.name, u.count) for u in log.unknown] == [
        (1, "loading attn norm weight", 1),
        (2, "expected q", 1),
        (3, "frobnicated", 2),
        (5, "q", 1),
        (6, "(no name)", 1),
    ]
    assert log.lines == 9


def test_headings_give_later_lines_their_layer_and_name(read: Read) -> None:
    log = read(
        "=== Layer 4 ===\nQ: rms=0.1, K: rms=0.2, V: rms=0.3\nunrelated line\nK after RoPE:\n  rms: 0.5\n"
        "  min: -1.0\n--- layer 5 ---\n  FFN up min=0.25\n"
    )
    found = [(str(o.site), {k: p.value for k, p in o.numbers.items()}) for o in log.observations]
    assert found == [
        ("Qcur-4", {"rms": 0.1}),
        ("Kcur-4", {"rms": 0.2}),
        ("Vcur-4", {"rms": 0.3}),
        ("Kcur_rope-4", {"rms": 0.5, "min": -1.0}),
        ("ffn_up-5", {"min": 0.25}),
    ]


def test_top_logits(read: Read) -> None:
    (one, two) = read("top logits: [(5, 4.25), (7, 3.5)]\nTop 3 tokens: 450 (12.5) 29871 (11.25)\n").observations
    assert [(i, p.value) for i, p in one.top] == [(5, 4.25), (7, 3.5)]
    assert [(i, p.value) for i, p in two.top] == [(450, 12.5), (29871, 11.25)]
    assert str(one.site) == "result_output"


def ggml_block(name: str, op: str, x: np.ndarray[Any, Any], *, views: str = "") -> str:
    """A tensor [rows, columns] as llama.cpp's common_debug_cb_eval prints it."""
    rows = [*range(3), None, *range(len(x) - 3, len(x))] if len(x) > 6 else list(range(len(x)))
    shape = f"{x.shape[1]}, {x.shape[0]}, 1, 1"
    head = (
        f"common_debug_cb_eval: {name + views:>24} = (f32) {op:>10}(w{{1, 1, 1, 1}}, x{{1, 1, 1, 1}}}}) = {{{shape}}}"
    )
    lines = [head, "    [", "        ["]
    for row in rows:
        if row is None:
            lines.append("            ..., ")
            continue
        left, right = (", ".join(f"{v:12.4f}" for v in part) for part in (x[row][:3], x[row][-3:]))
        lines.append(f"            [{left},    ..., {right}  ],")
    return "\n".join([*lines, "        ],", "    ]", f"    sum = {x.sum():f}", ""])


def test_llama_cpps_own_output(read: Read) -> None:
    x = np.arange(80.0).reshape(8, 10) / 8
    log = read(
        ggml_block("Qcur-0", "MUL_MAT", x)
        + ggml_block("Qcur-0", "ADD", x + 1)  # the bias
        + ggml_block("Qcur-0", "RESHAPE", x, views=" (reshaped)")
        + ggml_block("Qcur-0", "ROPE", x + 2)
        + ggml_block("node_31", "MUL_MAT", x)
        + "something in between\n"
        + ggml_block("result_output", "MUL_MAT", x)[:-30]  # cut short
    )
    found = [(str(o.site), values(o.first), values(o.last), o.sum and o.sum.value, o.size) for o in log.observations]
    assert found == [
        ("Qcur-0", [1, 1.125, 1.25], [10.625, 10.75, 10.875], (x + 1).sum(), 80),
        ("Qcur_rope-0", [2, 2.125, 2.25], [11.625, 11.75, 11.875], (x + 2).sum(), 80),
        ("result_output", [0, 0.125, 0.25], [9.625, 9.75, 9.875], None, 80),
    ]
    assert [u.name for u in log.unknown] == ["node_31"]


def test_broken_text_is_read_around(read: Read) -> None:
    log = read(
        b"\xff\xfe\xe9 [layer 1] Q rms=0.5 \x00\n"[2:]
        + b"\x80\x81 layer 2 K rms=0.25\r\n"
        + b"[layer 3] V rms=0.1, max=0.12"
    )
    assert [(str(o.site), o.numbers["rms"].value) for o in log.observations] == [
        ("Qcur-1", 0.5),
        ("Kcur-2", 0.25),
        ("Vcur-3", 0.1),
    ]
    assert "max" not in log.observations[2].numbers  # 0.12 may be 0.125 torn
    assert only(read("[layer 1] Q rms=0.5\n".encode("utf-16"))).rms == Printed.of("0.5")


def test_a_line_printed_twice_is_one_observation_and_a_second_prompt_is_another(read: Read) -> None:
    log = read("[layer 1] Q rms=0.5\n" * 2 + "[layer 2] Q rms=0.5\n[layer 1] Q rms=0.5\n")
    assert [str(o.site) for o in log.observations] == ["Qcur-1", "Qcur-2", "Qcur-1"]


@pytest.mark.parametrize(
    "line",
    [
        "rms=" * 2500,
        "rms 1 " * 1600,
        "1" * 10_000,
        "layer " * 1600 + "rms=1",
        "first 1 " * 1200,
        "[layer 3] Q first 5: [" + "1.5, " * 1990,
        "-" * 9_990 + "rms=1",
        "a=" * 5000 + " rms=1",
        "top: " + "(1,1" * 2000,
        "\x1b[" * 5000,
        "min/max " * 1200,
        "x = (f32) A(" * 800 + " = {1, 1, 1, 1}",
        "[layer 1] Q rms=0.5" + "x" * 3_000_000,
    ],
)
def test_no_line_takes_long(read: Read, line: str) -> None:
    began = time.process_time()
    read((line + "\n") * 3)
    assert time.process_time() - began < 2


SHREDS = [
    "layer", "3", "[", "]", "rms", "=", "1.5", "first 5: [", "Q", "after RoPE", ": ", "\x1b[1m", "range=",
    "nan", "1e9999", "top logits: [", "(5, 1.5)", "x-0 = (f32) ROPE(a{1, 1, 1, 1}) = {4, 2, 1, 1}\n",
    "   [ 1.0, ..., 3.0 ],\n", "\n", "\r", "sum = 3.5\n", "@1", "step", "blk.2.", " ", "\u0663", "l_out-5",
    "op=", "K:", "min/max", "[:3]", "[-2:]", "999999",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_shreds_of_logs_never_fail(read: Read, seed: int) -> None:
    draw = random.Random(seed)
    for i in range(60):
        log = read(("", " ")[i % 2].join(draw.choices(SHREDS, k=draw.randint(1, 80))))
        assert all(o.line <= log.lines for o in log.observations)


def test_a_file_that_is_no_log_is_refused(read: Read, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="GGUF model and no log"):
        read(b"GGUF\x03\x00")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(TraceError, match="cannot be read"):
            read_log(path)
    assert read(b"").observations == ()


# Patterns


def test_a_file_of_patterns_adds_spellings_and_forms(read: Read, tmp_path: Path) -> None:
    patterns = tmp_path / "mine.toml"
    patterns.write_text(
        '[points]\nffn_gate = ["brücke"]\n[statistics]\nrms = ["quadmittel"]\n[words]\nlayer = ["schicht"]\n'
        '[[lines]]\nform = "<{name}#{layer}> {min} .. {max} ~ {_} ; {first}"\n'
    )
    log = read("Schicht 3 Brücke: quadmittel=0.5\n<l_out#4>  -1.5 ..   2.5 ~ junk ; [1.5, 2.5]\n", patterns=patterns)
    one, two = log.observations
    assert (str(one.site), one.rms) == ("ffn_gate-3", Printed.of("0.5"))
    assert (str(two.site), two.min, two.max) == ("l_out-4", Printed.of("-1.5"), Printed.of("2.5"))
    assert values(two.first) == [1.5, 2.5]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[nonsense]\na = 1\n", "there is no table 'nonsense'"),
        ("[points]\nQcur = 3\n", "points.Qcur must be a list of texts"),
        ('[points]\nQcur = ["x"]\nKcur = ["x"]\n', "is a spelling of Qcur and of Kcur"),
        ("points = 3\n", "points must be a table"),
        ('[statistics]\nmedian = ["med"]\n', "statistics.median is not known"),
        ('[words]\ncolour = ["red"]\n', "words.colour is not known"),
        ('[pairs]\nx = ["min"]\n', "must name two"),
        ("[ggml]\nrenamed = [1]\n", "ggml.renamed"),
        ('[[lines]]\nform = "{name} {rms}"\n', "need some text between"),
        ('[[lines]]\nform = "{name}: {what}"\n', "{what} is not known"),
        ('[[lines]]\nform = "{name}: {rms} {rms}"\n', "comes twice"),
        ('[[lines]]\nform = "rms: {rms}"\n', "needs {name}"),
        ('[[lines]]\nregex = "(a+)+$"\n', "a line form is written"),
        ("lines = 3\n", "a line form is written"),
        ("= nothing", "is no TOML"),
        ("[points]\nQcur = ['" + "x" * 300 + "']\n", "up to 200 characters"),
        ("#" * 2_000_000, "larger than"),
    ],
)
def test_wrong_patterns_are_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(TraceError) as caught:
        load_patterns(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_form_is_matched_without_going_back() -> None:
    form = parse_form("{_}a{_}a{_}a{_}a{_}a{name}: {rms} !")
    began = time.process_time()
    assert form.match("a" * 10_000) is None
    assert time.process_time() - began < 0.1


# Judging


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


def test_a_list_whose_first_number_is_broken_has_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("[layer 3] Qcur rms=1.25 first 10: [13.6next token: 198\n", encoding="utf-8")
    (observation,) = read_log(path).observations
    assert observation.rms is not None
    assert observation.first == ()


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
