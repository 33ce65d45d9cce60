"""Compiling the C engine, with a bug or without."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parents[1] / "engines" / "c"
WRITERS = Path(__file__).parents[2] / "dumps" / "writers"
FLAGS = ("-std=c99", "-O2", "-march=native", "-Wall", "-Wextra", "-Werror")


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
    command = [*cc.split(), *FLAGS, *planted, *flags, f"-I{WRITERS}", str(HERE / "llama.c"), "-o", str(out), "-lm"]
    subprocess.run(command, check=True)
    return out


def run_engine(engine: Path, model: Path, tokens: list[int], out: Path, *, decode: int = 2, more: str = "") -> str:
    """Run it, and return what it prints."""
    ids = ",".join(map(str, tokens))
    command = [str(engine), "--model", str(model), "--tokens", ids, "--decode", str(decode), "--dump", str(out)]
    return subprocess.run([*command, *more.split()], check=True, stdout=subprocess.PIPE, text=True).stdout
