"""Engines and what they record: llama.cpp, the reference with bugs, and the engine in C, with a bug or without."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from firstdiff.dumps import Trace, TraceWriter, open_trace
from firstdiff.engines.llamacpp import PLAIN, Attention, LlamaCpp
from firstdiff.engines.llamacpp_capture import capture
from firstdiff.hypotheses.planting import planted
from firstdiff.model.engine import open_model
from firstdiff.runs import recording
from firstdiff.runs.prompt import Input

SOURCE = Path(__file__).parents[1] / "engines" / "c" / "llama.c"
WRITERS = Path(__file__).parents[2] / "dumps" / "writers"
FLAGS = ("-std=c99", "-O2", "-march=native", "-Wall", "-Wextra", "-Werror")


def recorded_by_llama_cpp(
    path: Path, out: Path, tokens: Sequence[int], *, decode: int, threads: int = 1, attention: Attention = PLAIN
) -> tuple[Trace, float | None]:
    """llama.cpp's trace of a run, and how much recording changed its logits."""
    engine = {"name": "llama.cpp", "backend": "cpu", "arithmetic": attention.arithmetic(threads).name}
    with (
        LlamaCpp(path, threads=threads, attention=attention) as llama,
        TraceWriter(out, engine=engine, model={}) as writer,
    ):
        changed = capture(llama, tokens, writer, nodes=open_model(path).nodes, decode=decode)
    return open_trace(out), changed


def recorded_by_reference(
    model: Path, out: Path, *bugs: tuple[str, int | None], tokens: Sequence[int] = (1, 70, 71, 72, 73)
) -> Path:
    """The folder of a trace of the reference in f32 with bugs ``(id, layer)``: the prompt, and one more token."""
    plants = [planted(bug, layer) for bug, layer in bugs]
    source = Input(tokens=tuple(tokens))
    recording.record(model, source, out, engine="reference:f32", decode=1, threads=1, planted=plants)
    return out


def compile_engine(
    out_dir: Path, bug: str | None = None, layer: int | None = None, flags: tuple[str, ...] = ()
) -> Path:
    """Compile tests/engines/c/llama.c, once for each set of arguments.

    Parameters
    ----------
    out_dir
        Where to put the program.
    bug
        One of the table at the top of llama.c, such as ``rope-pairing``.
    layer
        The only layer that has the bug; None for all.
    flags
        Further ones for the compiler.
    """
    return _compiled(out_dir, bug, layer, flags)


@functools.cache
def _compiled(out_dir: Path, bug: str | None, layer: int | None, flags: tuple[str, ...]) -> Path:
    name = "-".join(["engine", bug or "clean", *([] if layer is None else [str(layer)]), *flags]).replace("/", "")
    planted = [] if bug is None else [f"-DBUG={bug.replace('-', '_')}"]
    planted += [] if layer is None else [f"-DONLY_LAYER={layer}"]
    cc, out = os.environ.get("CC", "gcc"), out_dir / name
    command = [*cc.split(), *FLAGS, *planted, *flags, f"-I{WRITERS}", str(SOURCE), "-o", str(out), "-lm"]
    subprocess.run(command, check=True)
    return out


def run_engine(engine: Path, model: Path, tokens: list[int], out: Path, *, decode: int = 2, more: str = "") -> str:
    """Run it, and return what it prints."""
    ids = ",".join(map(str, tokens))
    command = [str(engine), "--model", str(model), "--tokens", ids, "--decode", str(decode), "--dump", str(out)]
    return subprocess.run([*command, *more.split()], check=True, stdout=subprocess.PIPE, text=True).stdout
