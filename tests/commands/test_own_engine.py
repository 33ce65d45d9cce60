"""Somebody's own engine, run by firstdiff: right, wrong, noisy, crashing, hanging, and not there."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from builders.command_line import Command, Ran, assert_refused, strict
from builders.dump_formats import as_npy, held
from builders.engines import compile_engine
from builders.models import SMOLLM2, in_blocks
from builders.own_engine import IDS, PROMPT, QUICK, SHAPE, by_engine, first, judged, narrow, script, unwrapped
from firstdiff.dumps import Step, Trace, open_trace
from firstdiff.engines.user_engine import tokens_ran


@pytest.fixture(scope="module")
def model(own_model: Path) -> Path:
    return own_model


@pytest.fixture(scope="module")
def q4_1(bench: Path) -> Path:
    return in_blocks("Q4_1", bench, **SHAPE)


# An engine that firstdiff runs


@pytest.mark.compiler
def test_a_clean_engine_agrees(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = compile_engine(bench, flags=QUICK)
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", by_engine(engine), "--out", "run")
    assert ran.code == 0
    assert ran.out.startswith("Every one of the 123 recorded sites agrees")
    assert "preflight tokens agrees, positions agrees" in unwrapped(ran.out)
    assert "14 tokens in 3 steps" in ran.out
    narrow(ran)
    assert Path("run/engine/trace.json").exists()
    assert strict(Path("run/verdict.json").read_text())["verdict"] == "agrees"


BUGS = (
    ("token-of-before", "F32", "embd"),
    ("rope-position", "F32", "Qcur_rope-0@1"),
    ("weight-reinterpreted", "F32", "Qcur-0"),
    ("weight-of-other-layer", "F32", "ffn_out-0"),
    ("bias-missing", "F32", "Qcur-0"),
    ("nibble-order", "Q4_1", "embd"),
    ("min-missing", "Q4_1", "embd"),
    ("norm-eps", "F32", "attn_norm-0"),
    ("final-norm-missing", "F32", "result_norm"),
    ("rope-base", "F32", "Qcur_rope-0"),
    ("gqa-map", "F32", "kq-0"),
    ("mask-missing", "F32", "kq_soft_max-0"),
    ("cache-stale", "F32", "k_cache-0@1"),
    ("gelu-for-silu", "F32", "ffn_swiglu-0"),
    ("residual-missing", "F32", "ffn_inp-0"),
    ("logits-of-wrong-row", "F32", "result_output"),
)


@pytest.mark.compiler
@pytest.mark.parametrize(("bug", "kind", "site"), BUGS)
def test_an_engine_with_a_bug_diverges_where_it_is(
    firstdiff: Command, bench: Path, model: Path, q4_1: Path, bug: str, kind: str, site: str
) -> None:
    engine = by_engine(compile_engine(bench, bug, flags=QUICK))
    ran = firstdiff(
        "run", {"F32": model, "Q4_1": q4_1}[kind], "--tokens", IDS, "--decode", 1, "--engine", engine, "--out", "run"
    )
    assert ran.code == 1
    assert ran.out.startswith(f"{site} is the first to go wrong")
    narrow(ran)
    assert first(strict(Path("run/verdict.json").read_text())) == site


@pytest.mark.compiler
@pytest.mark.llama
@pytest.mark.smollm2
def test_a_clean_engine_agrees_on_a_real_model(firstdiff: Command, bench: Path) -> None:
    engine = by_engine(compile_engine(bench))
    ran = firstdiff("run", SMOLLM2, "--prompt", "To be, or not", "--decode", 1, "--engine", engine, "--json")
    verdict = strict(ran.out)
    assert ran.code == 0, verdict["first"]
    assert verdict["preflight"]["tokens"] == "agrees"
    assert verdict["coverage"]["agrees"] == verdict["coverage"]["sites"] > 1000


@pytest.mark.compiler
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_an_engine_prints_appears_on_stderr_alone(
    firstdiff: Command, bench: Path, model: Path, options: tuple[str, ...]
) -> None:
    engine = by_engine(compile_engine(bench, flags=QUICK), "--print")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", engine, *options)
    assert ran.err.count(" rms=") == 123
    assert ran.err.count("next token: ") == 3
    assert "rms=" not in ran.out
    assert "next token" not in ran.out
    if options:
        assert strict(ran.out)["verdict"] == "agrees"


def test_what_an_engine_prints_is_live_and_on_lines_of_its_own(model: Path, clean: Path, tmp_path: Path) -> None:
    """The engine goes on only once its first line has come out at the other end."""
    go = tmp_path / "go"
    lines = ("echo loading", f"while [ ! -e {go} ]; do sleep 0.02; done", f'cp -r {clean} "$1"')
    engine = script(tmp_path / "engine.sh", *lines)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "firstdiff", "run", str(model), "--tokens", IDS]
    process = subprocess.Popen(
        [*command, "--engine", f"{engine} {{dump}}", "--timeout", "60", "--out", str(tmp_path / "run"), "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"loading\r\n" not in seen:
        seen += os.read(master, 4096)
    go.touch()
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    assert strict(out.decode())["verdict"] == "agrees"
    assert seen.endswith(b"\x1b[2Kloading\r\n"), seen  # the line of progress is wiped before it


@pytest.mark.compiler
def test_tokens_that_an_engine_did_not_get_are_named(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = script(bench / "doubles.sh", f'{compile_engine(bench, flags=QUICK)} --tokens 1,"$1" --model $2 --dump $3')
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", f"{engine} {{tokens}} {{model}} {{dump}}")
    assert ran.code == 1
    said = "Before any tensor, tokens: the engine ran 13 tokens where 12 were given: token 1 is 1 where 72 was given."
    assert unwrapped(ran.out).startswith(said)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([[5, 6, 7]], "agrees"),
        ([[5, 6, 7], [8], [9]], "agrees"),
        ([[5], [6], [7], [8]], "agrees"),
        ([[5, 6], [7], [8]], "agrees"),
        ([[5, 9, 7]], "token 1 is 9 where 6 was given"),
        ([[1, 5, 6, 7]], "the engine ran 4 tokens where 3 were given: token 0 is 1 where 5 was given"),
        ([[5, 6, 7, 2], [8]], "the engine ran 4 tokens where 3 were given: 2 follows the last one"),
        ([[5, 6]], "the engine ran 2 tokens where 3 were given: those from token 2 on are missing"),
    ],
)
def test_the_prompt_may_be_run_in_any_steps_and_no_other_tokens(steps: list[list[int]], said: str) -> None:
    ran = [Step(tuple(ids), tuple(range(len(ids)))) for ids in steps]
    assert tokens_ran(Trace.from_arrays(ran, {}, engine={}, model={}), [5, 6, 7]) == said


def test_an_engine_need_not_say_its_tokens(firstdiff: Command, model: Path, clean: Path, tmp_path: Path) -> None:
    trace = open_trace(clean)
    dump = as_npy("{name}", saying=False)(tmp_path / "npy", [one for one in held(trace) if one[0].step == 0], trace)
    engine = script(tmp_path / "engine.sh", f'cp -r {dump} "$1"')
    verdict = judged(firstdiff, model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--decode", 0, code=0)
    assert verdict["tokens"] == [PROMPT]
    assert verdict["preflight"]["tokens"] == "not recorded"


# Trouble with an engine


@pytest.mark.compiler
def test_what_an_engine_dumped_before_it_crashed_is_judged(firstdiff: Command, bench: Path, model: Path) -> None:
    for bug in (None, "gelu-for-silu"):
        engine = by_engine(compile_engine(bench, bug, flags=(*QUICK, "-DCRASH_AT=1")))
        ran = firstdiff("run", model, "--tokens", IDS, "--engine", engine, "--out", f"run-{bug}")
        assert ran.code == 1  # a crash is no pass
        told = unwrapped(ran.out)
        assert "12 tokens in 1 step." in told
        assert "41 of 41 sites recorded" in told
        assert told.startswith("The engine crashed (SIGABRT) after ")
        assert "its last words: next token: " in told
        assert "| engine: about to crash" in told
        narrow(ran)
        verdict = strict(Path(f"run-{bug}/verdict.json").read_text())
        assert first(verdict) == (None if bug is None else "ffn_swiglu-0")


@pytest.mark.compiler
def test_an_exit_code_does_not_hide_a_good_dump(firstdiff: Command, bench: Path, model: Path) -> None:
    engine = script(bench / "ends-with-3.sh", f'{compile_engine(bench, flags=QUICK)} "$@"', "exit 3")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", by_engine(engine))
    assert ran.code == 1
    assert "123 of 123 sites recorded" in ran.out
    assert unwrapped(ran.out).startswith("The engine ended with exit code 3; its last words: next token: ")


def test_what_a_hanging_engine_dumped_is_judged(firstdiff: Command, model: Path, clean: Path, tmp_path: Path) -> None:
    engine = script(tmp_path / "engine.sh", f'cp -r {clean} "$1"', "sleep 60")
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--timeout", 2)
    assert ran.code == 1
    assert unwrapped(ran.out).startswith("The engine did not end within 2 s")


TROUBLE = {
    "hangs": (("echo loading", "sleep 60"), ("the engine did not end within 1 s, and wrote no dump", "loading")),
    "writes nothing": (("echo done",), ("the engine wrote no dump", "its last words: done")),
    "is silent": (("exit 0",), ("the engine printed nothing and wrote nothing",)),
    "fails": (("echo no such quant >&2", "exit 7"), ("ended with exit code 7, and wrote no dump", "no such quant")),
    "crashes": (("kill -SEGV $$",), ("crashed (SIGSEGV)", "wrote no dump")),
    "writes rubbish": (
        ('mkdir "$1"', 'echo rubbish > "$1/step-000.safetensors"'),
        ("its dump cannot be read", "step-000.safetensors"),
    ),
    "crashes over rubbish": (
        ('mkdir "$1"', 'echo rubbish > "$1/step-000.safetensors"', "kill -SEGV $$"),
        ("crashed (SIGSEGV)", "and its dump cannot be read", "step-000.safetensors"),
    ),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_an_engine_that_leaves_nothing_is_told_in_one_line(
    firstdiff: Command, model: Path, tmp_path: Path, what: str
) -> None:
    lines, words = TROUBLE[what]
    engine = script(tmp_path / "engine.sh", *lines)
    timeout = 1 if what == "hangs" else 60
    ran = firstdiff(
        "run", model, "--tokens", IDS, "--engine", f"{engine} {{dump}}", "--timeout", timeout, "--out", "run"
    )
    own = ran.err[ran.err.index("firstdiff: ") :]  # the engine's output is before it
    assert_refused(Ran(ran.code, ran.out, own), 3, "--engine: ", *words)
    assert Path("run").exists() == ("rubbish" in what)  # no folder is left with nothing in it


def test_an_engine_that_is_not_there_is_told_in_one_line(firstdiff: Command, model: Path) -> None:
    ran = firstdiff("run", model, "--tokens", IDS, "--engine", "./no-such-engine {dump}", "--out", "run")
    assert_refused(ran, 3, "--engine: not found: ./no-such-engine")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "words"), [("engine", "has no {dump}"), ("engine {dump} {what}", "{what} is not known")]
)
def test_a_command_that_cannot_be_is_wrong_usage_and_leaves_no_folder(
    firstdiff: Command, model: Path, command: str, words: str
) -> None:
    assert_refused(firstdiff("run", model, "--tokens", IDS, "--engine", command, "--out", "run"), 2, words)
    assert not Path("run").exists()
