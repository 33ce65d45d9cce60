"""Logs, line by line: what people print of their engines is read, by patterns that a user may add to."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from builders.logs import Read, ggml_block
from firstdiff.dumps import TraceError
from firstdiff.dumps.log import Log, read_log
from firstdiff.dumps.log_lines import Printed
from firstdiff.dumps.observation import Observation
from firstdiff.dumps.patterns import load_patterns, parse_form


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


def test_a_list_whose_first_number_is_broken_has_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("[layer 3] Qcur rms=1.25 first 10: [13.6next token: 198\n", encoding="utf-8")
    (observation,) = read_log(path).observations
    assert observation.rms is not None
    assert observation.first == ()


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
