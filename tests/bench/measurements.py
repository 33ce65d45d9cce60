"""The measurements: each gives the figures of one group."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import gguf
import quants
from figures import Aim, Figure
from models import Subject
from timing import HERE, ONE_THREAD, Child, in_turn, run, run_in_turn

from firstdiff.model.engine import open_model

COMMAND = Path(sys.executable).with_name("firstdiff")
PROMPT = "What is the capital of France?"
DECODE = 4

OPEN = "import sys; from firstdiff.model.engine import open_model; open_model(sys.argv[1])"


def opening(subject: Subject, rounds: int) -> list[Figure]:
    """Opening a model: ours checks every tensor's name, shape and type as well."""
    calls = {"ours": lambda: open_model(subject.path), "theirs": lambda: gguf.GGUFReader(subject.path)}
    calls["ours"]()
    seconds = in_turn(calls, rounds)
    aim = Aim("≤ 50 ms", 0.05, of_ratio=False)
    return [Figure("opening", seconds["ours"], "s", "gguf.GGUFReader", seconds["theirs"], aim, faster=True)]


def dequantising(rounds: int) -> list[Figure]:
    """Dequantising each type on one thread, as the engine does, beside gguf's whole tensors and the same parts."""
    lines, aim = [], Aim("≥ 5×", 5, at_least=True)
    for rates in quants.measure_all(rounds=rounds):
        lines.append(Figure(f"dequantising {rates.name}", rates.ours, "GB/s", "gguf, whole", rates.whole, aim))
        lines.append(Figure("", rates.ours, "GB/s", "gguf, in parts as ours", rates.runs))
    return lines


def recording_and_replay(subject: Subject, rounds: int) -> list[Figure]:
    """A prompt of 20 tokens on one core: recorded from llama.cpp, and replayed, beside its plain decode."""
    child = run([sys.executable, HERE / "one_core.py", subject.path, rounds], env=ONE_THREAD)
    seconds = json.loads(child.out)
    lines = (
        ("recording 20 tokens", "recorded", Aim("≤ 1.5×", 1.5)),
        ("recording and writing them", "written", None),
        ("replaying them (ggml-cpu)", "replayed", Aim("≤ 5×", 5)),
        ("the reference alone (ggml-cpu)", "reference", None),
    )
    return [Figure(name, seconds[key], "s", "llama.cpp's decode", seconds["plain"], aim) for name, key, aim in lines]


def whole_run(subject: Subject, rounds: int, folder: Path, *, beside: bool) -> list[Figure]:
    """Measure a warm ``firstdiff run`` as a process: time beside hooked transformers, and memory beside the file."""
    ours = firstdiff_run(subject, folder / "run")
    tokens = json.loads(ours().out)["tokens"][0]  # warm: compiled, and the file in memory
    commands = {"ours": ours}
    missing = not beside or find_spec("torch") is None or find_spec("transformers") is None
    if not missing:
        commands["theirs"] = lambda: run(
            [sys.executable, HERE / "hooked_transformers.py", subject.path, DECODE, *map(str, tokens)]
        )
        commands["theirs"]()
    commands["one"] = firstdiff_run(subject, folder / "run", one_thread=True)
    commands["open"] = lambda: run([sys.executable, "-c", OPEN, subject.path])
    children = run_in_turn(commands, rounds)
    time, peak = {}, {}
    for name, of in children.items():
        time[name], peak[name] = [c.seconds for c in of], [float(c.peak) for c in of]
    size = [float(subject.size)] * rounds
    name = f"firstdiff run, {len(tokens)} tokens + {DECODE} steps"
    said = ("hooked transformers: not installed" if missing else "hooked transformers") if beside else ""
    lines = [
        Figure(name, time["ours"], "s", said, time.get("theirs", ()), Aim("≤ 0.2×", 0.2) if beside else None),
        Figure("the same on one thread", time["one"], "s", "firstdiff run", time["ours"]),
        Figure("peak memory of opening", peak["open"], "B", "the file", size),
        Figure("peak memory of firstdiff run", peak["ours"], "B", "the file", size),
        Figure("  less the file", [p - subject.size for p in peak["ours"]], "B", "largest weight as f32",
               [float(subject.largest)] * rounds),
    ]  # fmt: skip
    if "theirs" in peak:
        lines.append(Figure("peak memory of firstdiff run", peak["ours"], "B", "hooked transformers", peak["theirs"]))
    return lines


def firstdiff_run(subject: Subject, out: Path, *, one_thread: bool = False) -> Callable[[], Child]:
    """Return the command as a call; a divergence (exit code 1) is a verdict too, a traceback is none."""
    source = ["--prompt", PROMPT] if subject.tokeniser else ["--tokens", ",".join(map(str, range(300, 307)))]
    command = [COMMAND, "run", subject.path, *source, "--decode", str(DECODE), "--json", "--out", out]
    command += ["--threads", "1"] if one_thread else []

    def call() -> Child:
        child = run(command, codes=(0, 1), env=ONE_THREAD if one_thread else None)
        if not child.out:
            raise RuntimeError(f"{' '.join(map(str, command))}: no verdict\n{child.err}")
        return child

    return call


def starting(rounds: int) -> list[Figure]:
    """Measure ``firstdiff --help`` as a process."""
    commands = {
        "ours": lambda: run([COMMAND, "--help"]),
        "theirs": lambda: run([sys.executable, "-c", "pass"]),
    }
    children = run_in_turn(commands, rounds)
    seconds = {name: [c.seconds for c in of] for name, of in children.items()}
    aim = Aim("≤ 0.15 s", 0.15, of_ratio=False)
    return [Figure("firstdiff --help", seconds["ours"], "s", "python -c pass", seconds["theirs"], aim)]
