"""The user's engine, run as a process: fine, crashing, hanging, silent, noisy, missing."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from firstdiff.engines.process import EngineRun, run_engine
from firstdiff.errors import UsageError

DUMPS = "import os, pathlib, signal, subprocess, sys, time; d = pathlib.Path(sys.argv[1]); d.mkdir(); "
WRITES = DUMPS + "(d / 'step-000.safetensors').write_bytes(b'x'); "


class Engine:
    """Runs small programs as engines, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dump, self.echo = folder, folder / "runs" / "dump", io.StringIO()

    def __call__(self, command: str, **options: Any) -> EngineRun:
        settings: dict[str, Any] = {"model": Path("m.gguf"), "tokens": [1, 2], "decode": 0, "dump": self.dump}
        return run_engine(command, **(settings | {"echo": self.echo} | options))

    def python(self, code: str, **options: Any) -> EngineRun:
        return self(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{dump}}", **options)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_a_run_that_ends_well_has_no_problem(engine: Engine) -> None:
    run = engine.python(WRITES + "print('hello'); print('err', file=sys.stderr)")
    assert (run.problem, run.exit_code, run.signal, run.timed_out, run.dumped) == (None, 0, None, False, True)
    assert sorted(run.tail) == ["err", "hello"]
    assert sorted(engine.echo.getvalue().splitlines()) == ["err", "hello"]
    assert 0 < run.seconds < 30


def test_placeholders_are_replaced_within_words_and_no_shell_sees_them(engine: Engine) -> None:
    hostile = engine.folder / "a b; touch pwned $(touch pwned) '{tokens}' \"x\".gguf"
    out = engine.folder / "out put {model}"
    code = "import os, sys; open(sys.argv[2][2:], 'w').write(repr((sys.argv[1:], os.environ['FIRSTDIFF_DUMP'])))"
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    run = engine(
        program + " --m={model} d={dump} {tokens} {decode} '{{x}}'",
        model=hostile, dump=out, tokens=[1, 22, 333], decode=4,
    )  # fmt: skip
    assert run.problem is None
    assert out.read_text() == repr(([f"--m={hostile}", f"d={out}", "1,22,333", "4", "{x}"], str(out)))
    assert not list(engine.folder.glob("pwned"))


def test_paths_are_absolute_whatever_folder_the_engine_goes_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.folder)
    run = engine("echo {model} {dump}", model=Path("-rf.gguf"), dump=Path("sub/../d"))
    assert run.tail == (f"{engine.folder}/-rf.gguf {engine.folder}/d",)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("engine {dump} {weights}", ("{weights} is not known", "{model}, {tokens}, {decode}, {dump}")),
        ("engine {model}", ("has no {dump}",)),
        ("engine '{dump}", ("cannot be split into words", "check its quotes")),
        ("", ("is no command",)),
        ("   ", ("is no command",)),
        ("a\0b {dump}", ("is no command",)),
    ],
)
def test_a_command_that_cannot_be_is_wrong_usage(engine: Engine, command: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        engine(command)
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_old_dump_is_never_taken_for_a_new_one(engine: Engine) -> None:
    engine.dump.mkdir(parents=True)
    assert engine("true {dump}").problem == f"the engine printed nothing and wrote nothing to {engine.dump}"
    (engine.dump / "step-000.safetensors").write_bytes(b"old")
    with pytest.raises(UsageError, match="is there already"):
        engine("true {dump}")


def test_a_timeout_must_be_some_time(engine: Engine) -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="timeout"):
            engine("true {dump}", timeout=timeout)


def test_a_crash_is_named_by_its_signal_and_the_dump_is_kept(engine: Engine) -> None:
    run = engine.python(WRITES + "print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)")
    assert (run.exit_code, run.signal, run.dumped) == (None, "SIGSEGV", True)
    assert run.problem == f"the engine crashed (SIGSEGV) after {run.seconds:.1f} s"
    assert run.tail == ("so far",)


def test_a_c_engine_that_aborts(engine: Engine, compiler: str) -> None:
    source, program = engine.folder / "e.c", engine.folder / "my engine"
    source.write_text(
        '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { fputs("assert!", stderr); abort(); }\n'
    )
    subprocess.run([compiler, str(source), "-o", str(program)], check=True)
    run = engine(f"{shlex.quote(str(program))} {{dump}}")
    assert run.problem == f"the engine crashed (SIGABRT) after {run.seconds:.1f} s, and wrote no dump to {engine.dump}"
    assert run.tail == ("assert!",)


def test_a_crash_below_a_shell_is_named_too(engine: Engine) -> None:
    run = engine("sh -c 'sh -c \"kill -SEGV \\$\\$\"; exit $?' {dump}")
    assert run.exit_code == 139
    assert "exit code 139 (a shell says: SIGSEGV)" in str(run.problem)


def test_an_exit_code_is_said(engine: Engine) -> None:
    run = engine.python(WRITES + "sys.exit(3)")
    assert (run.exit_code, run.problem) == (3, "the engine ended with exit code 3")


def test_a_hang_is_ended_and_what_was_dumped_stays(engine: Engine) -> None:
    run = engine.python(WRITES + "print('going', flush=True); time.sleep(60)", timeout=0.6)
    assert (run.timed_out, run.dumped, run.tail) == (True, True, ("going",))
    assert run.problem == "the engine did not end within 0.6 s"
    assert run.seconds < 10


@pytest.mark.slow
def test_a_hang_that_ignores_the_request_to_end_is_killed_with_its_children(engine: Engine) -> None:
    code = (
        DUMPS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "(d / 'pid').write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    run = engine.python(code, timeout=0.6)
    assert run.timed_out
    assert gone(int((engine.dump / "pid").read_text()))


def test_a_child_that_outlives_the_engine_holds_nothing_up(engine: Engine) -> None:
    run = engine('sh -c \'mkdir "$0"; sleep 60 & echo $! > "$0/pid"; echo done\' {dump}')
    assert (run.problem, run.tail) == (None, ("done",))
    assert run.seconds < 10
    assert gone(int((engine.dump / "pid").read_text()))


def test_an_engine_that_closes_its_output_is_waited_for(engine: Engine) -> None:
    run = engine.python(DUMPS + "os.close(1); os.close(2); time.sleep(0.3); (d / 'x').write_bytes(b'x')")
    assert (run.problem, run.dumped) == (None, True)
    run = engine.python(
        "import os, time; os.close(1); os.close(2); time.sleep(60)", timeout=0.5, dump=engine.folder / "o"
    )
    assert run.timed_out


def test_a_missing_dump_is_said(engine: Engine) -> None:
    run = engine("echo all fine {dump}")
    assert run.problem == f"the engine wrote no dump to {engine.dump}"


def test_garbage_is_shown_without_harm(engine: Engine) -> None:
    code = (
        WRITES
        + r"sys.stdout.buffer.write(b'\xff\x00\x1b]0;title\x07 \x1b[31mred\x1b[0m 10%\r20%\r\nend without newline')"
    )
    run = engine.python(code)
    assert run.tail == ("\N{REPLACEMENT CHARACTER}\\x00\\x1b]0;title\\x07 red 10%", "20%", "end without newline")
    assert engine.echo.getvalue().endswith("end without newline\n")


def test_huge_output_takes_little_memory_and_the_last_lines_are_kept(engine: Engine) -> None:
    class Counting(io.StringIO):
        written = 0

        def write(self, text: str) -> int:
            Counting.written += len(text)
            return len(text)

    code = WRITES + (
        "w = sys.stdout.write\n"
        "for i in range(32): w('y' * 1_000_000)\n"
        "w('\\n')\n"
        "for i in range(30_000): w('line %d\\n' % i)"
    )
    run = engine.python(code, echo=Counting())
    assert run.tail == tuple(f"line {i}" for i in range(29_980, 30_000))
    assert 300_000 < Counting.written < 400_000


@pytest.mark.parametrize("name", ["no-such-engine-at-all", "./no/such/engine"])
def test_an_engine_that_is_not_there(engine: Engine, name: str) -> None:
    run = engine(f"{name} {{dump}}")
    assert (run.problem, run.exit_code) == (f"not found: {name}", None)


def test_an_engine_that_cannot_be_executed(engine: Engine) -> None:
    script = engine.folder / "engine.sh"
    script.write_text("echo hi\n")
    assert "not executable" in str(engine(f"{script} {{dump}}").problem)
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "the interpreter in its first line is not" in str(engine(f"{script} {{dump}}").problem)


def test_an_interruption_ends_the_engine_too(engine: Engine) -> None:
    code = DUMPS + "(d / 'pid').write_text(str(os.getpid())); print('up', flush=True); time.sleep(60)"

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("up"):
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            return len(text)

    with pytest.raises(KeyboardInterrupt):
        engine.python(code, echo=Interrupting())
    assert gone(int((engine.dump / "pid").read_text()))
