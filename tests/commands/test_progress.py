"""Progress: the layer being judged, on a terminal only; and what Ctrl-C leaves."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.command_line import TOKENS, drained
from builders.models import TINY, synthetic
from builders.traces import MemoryWriter
from firstdiff.commands.watching import left_in
from firstdiff.dumps import open_trace
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.llamacpp_capture import capture
from firstdiff.interruption import held_back
from firstdiff.model.arithmetic import F32
from firstdiff.model.dense import NODES
from firstdiff.model.engine import open_model
from firstdiff.model.probe import Probe
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record

EVERY = [(step, layer) for step in range(2) for layer in (None, 0, 1, None)]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# Who is told


def test_a_probe_tells_of_every_layer_once(model: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    probe = Probe(F32)
    probe.watch = lambda step, layer: seen.append((step, layer))
    opened = open_model(model)
    trace_steps = [step_of([1, 70, 71], 0), step_of([72], 3)]
    list(opened.forward(trace_steps, probe))
    assert seen == EVERY


def step_of(tokens: list[int], first: int) -> object:
    from firstdiff.dumps import Step

    return Step(tuple(tokens), tuple(range(first, first + len(tokens))))


@pytest.mark.llama
def test_llama_cpps_capture_tells_of_every_layer_once(model: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with LlamaCpp(model) as engine:
        capture(engine, [1, 70, 71], MemoryWriter(), nodes=NODES, decode=1, watch=lambda *at: seen.append(at))  # type: ignore[arg-type]
    inside = [(step, layer) for step, layer in seen if layer is not None]
    assert inside == [(step, layer) for step, layer in EVERY if layer is not None]


# The bar


def test_the_bar_says_what_is_done_and_at_which_layer() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.part("tiny (1 of 2)")
        progress.say("judging mine")
        watch = progress.layers(30, 3)
        watch(1, 17)
        time.sleep(0.25)  # the bar is drawn ten times a second
    shown = stream.getvalue()
    assert "tiny (1 of 2): judging mine, layer 17 of step 1" in plain(shown)
    assert shown.endswith("\x1b[2K")  # it is wiped


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split())


def test_hostile_names_cannot_write_on_the_terminal() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.say("judging \x1b]0;title\x07[bold]x[/]")
    assert "\x1b]0" not in stream.getvalue()
    assert "[bold]x[/]" in plain(stream.getvalue())


def test_nothing_is_written_where_nobody_watches() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.say("judging")
        progress.layers(2)(0, 1)
    assert stream.getvalue() == ""
    QUIET.say("judging")
    QUIET.layers(2)(0, 1)


def test_the_bar_goes_when_something_goes_wrong() -> None:
    stream = Terminal()

    def fail() -> None:
        with Progress(stream) as progress:
            progress.say("judging")
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert stream.getvalue().endswith("\x1b[2K")


def test_nothing_wipes_the_bar_and_the_next_thing_brings_it_back() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.say("first")
        progress.say("")
        assert stream.getvalue().endswith("\x1b[2K")
        progress.say("second")
    assert "second" in stream.getvalue()


@pytest.mark.llama
@pytest.mark.parametrize("command", ["gate", "record", "run"])
def test_a_terminal_shows_layers(command: str, tmp_path: Path) -> None:
    deep = synthetic(tmp_path, n_layer=40)
    (tmp_path / "firstdiff.toml").write_text(
        f"[models]\ndeep = '{deep}'\n[prompts]\np = [1, 70, 71]\n[engines]\nllama = 'llama.cpp:cpu'\n"
    )
    arguments = {
        "gate": ["firstdiff.toml"],
        "record": [str(deep), "--engine", "reference:f32", "--tokens", TOKENS, "--decode", "40", "--out", "t"],
        "run": [str(deep), "--tokens", TOKENS],
    }[command]
    near, far = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "firstdiff", command, *arguments],
        cwd=tmp_path, stdin=far, stdout=subprocess.DEVNULL, stderr=far, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    os.close(far)
    shown = plain(drained(near, child))
    os.close(near)
    assert child.returncode == (1 if command == "gate" else 0)  # it has no baseline
    doing = {
        "gate": "deep/p/llama: judging llama.cpp:cpu",
        "record": "recording reference:f32",
        "run": "judging llama.cpp:cpu",
    }
    assert re.search(re.escape(doing[command]) + r", layer [0-9]+ of step [0-9]", shown), shown[-2000:]


# Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference:f32", pytest.param("llama.cpp:cpu", marks=pytest.mark.llama)])
def test_an_interrupted_recording_can_be_read_and_is_named(engine: str, tmp_path: Path) -> None:
    model = synthetic(tmp_path, n_layer=8, n_ctx=4096)
    child = subprocess.Popen(
        [sys.executable, "-m", "firstdiff", "record", str(model), "--engine", engine, "--tokens", TOKENS,
         "--decode", "4000", "--out", "run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "run" / "step-003.safetensors", child)
    child.send_signal(signal.SIGINT)
    out, err = ended(child)
    assert (child.returncode, out) == (130, "")
    said = re.fullmatch(r"firstdiff: interrupted: what was recorded can be read: run \(([0-9]+) steps\)\n", err)
    assert said, err
    trace = open_trace(tmp_path / "run")
    assert len(trace.steps) == int(said.group(1)) >= 4
    assert not trace.complete
    assert all(trace[site].size for site in trace.sites())


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if path.exists() or child.poll() is not None:
            break
        time.sleep(0.1)
    assert path.exists(), child.communicate()


@pytest.mark.llama
def test_an_interruption_is_not_lost_in_a_callback_of_c_code(model: Path) -> None:
    """Python drops an exception that leaves a callback: in llama.cpp's log, or on the way into the hook."""
    stopped = []

    def decode() -> None:
        with held_back(lambda: stopped.append(True)):
            os.kill(os.getpid(), signal.SIGINT)
            stopped.append(False)

    with pytest.raises(KeyboardInterrupt):
        decode()
    assert stopped == [True, False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    seen = []

    def interrupt(*at: object) -> None:
        seen.append(at)
        os.kill(os.getpid(), signal.SIGINT)

    with LlamaCpp(model) as engine, pytest.raises(KeyboardInterrupt):
        capture(engine, [1, 70], MemoryWriter(), nodes=NODES, watch=interrupt)  # type: ignore[arg-type]
    assert len(seen) == 1  # nothing is copied any more


def ended(child: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed; one that does not end is ended, and fails the test."""
    try:
        return child.communicate(timeout=60)
    finally:
        child.kill()


def test_an_interrupted_gate_says_which_traces_there_are(tmp_path: Path) -> None:
    """The engine dumps one step, and hangs in the next."""
    model = synthetic(tmp_path / "tiny.gguf", TINY)
    record(model, Input(tokens=(1, 70)), tmp_path / "kept", engine="reference:f32", decode=0, threads=1)
    (tmp_path / "engine.py").write_text(
        "import pathlib, shutil, sys, time\nshutil.copytree('kept', sys.argv[1])\n"
        "pathlib.Path('up').touch()\ntime.sleep(60)\n"
    )
    command = f"{sys.executable} engine.py {{dump}}"
    (tmp_path / "firstdiff.toml").write_text(
        f"[models]\ntiny = 'tiny.gguf'\n[prompts]\np = [1, 70]\n[engines]\nslow = '{command}'\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "firstdiff", "gate", "--out", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "up", child)
    child.send_signal(signal.SIGINT)
    _, err = ended(child)
    assert child.returncode == 130
    assert err == "firstdiff: interrupted: what was recorded can be read: out/tiny/p/slow/engine (1 step)\n"


def test_an_interruption_before_any_step_says_so(tmp_path: Path) -> None:
    assert left_in(tmp_path) == ""
    (tmp_path / "trace.json").write_text('{"steps": []}')
    assert left_in(tmp_path) == ""
