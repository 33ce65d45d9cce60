"""The engine in C, with each of its bugs at the first, middle and last layer, as an engine that only gives logits."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from black_box_outcome import Outcome, is_told
from conformance import bugs

from builders.engines import compile_engine
from builders.models import in_blocks, synthetic
from builders.own_engine import SHAPE
from firstdiff.model.engine import open_model
from firstdiff.probing.engine import CommandEngine, Floats
from firstdiff.probing.probing import most_runs, probe
from firstdiff.runs.run import Run

TOKENS = (300, 45, 301, 17, 260, 303, 99, 46)
RUN_BY = "--model {model} --tokens {tokens} --logits {logits} --parts {parts}"
LAYERS = 6
OUTSIDE = ("token-of-before", "head-transposed", "final-norm-missing", "logits-of-wrong-row")
"""Bugs outside the layers."""

CALLED = {
    "token-of-before": "token-shifted",
    "cache-overwritten": "cache-slot",
    "gelu-for-silu": "activation-wrong",
}
"""What the hypotheses call bugs of another name."""

IN_A_LINE = {
    "token-of-before": "are those of token",
    "logits-of-wrong-row": "are those of token",
    "residual-missing": "the input is not added to what the layer gives",
}
"""What an engine is told in one line of a bug that leaves nothing to go on with."""


@dataclass(eq=False)
class Counted:
    """An engine whose runs are counted."""

    engine: CommandEngine
    runs: int = 0
    name: str = "your engine"
    decodes: bool = True

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        self.runs += 1
        return self.engine.logits(model, tokens, width, parts)


def jobs(folder: Path) -> list[tuple[Path, str, int | None]]:
    """Each bug at each of three layers, with a model on which it shows."""
    shape = {**SHAPE, "n_layer": LAYERS, "n_embd": 128, "head_dim": 16}
    plain = synthetic(folder / "plain.gguf", **shape)
    blocks = in_blocks("Q4_1", folder, n_layer=LAYERS, biases=True)
    todo: list[tuple[Path, str, int | None]] = []
    for bug in bugs():
        model = blocks if bug in ("nibble-order", "min-missing") else plain
        if bug == "f16-subnormal":  # no block of these models has such a scale
            continue
        places = (None,) if bug in OUTSIDE else (0, (LAYERS - 1) // 2, LAYERS - 1)
        todo += [(model, bug, layer) for layer in places]
    return todo


def one(job: tuple[Path, str, int | None]) -> Outcome | None:
    """Compile the engine with a bug, probe it, and compare."""
    path, bug, layer = job
    model, wanted = open_model(path), CALLED.get(bug, bug)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        program = compile_engine(Path(name), bug, layer)
        engine = Counted(CommandEngine.of(f"{shlex.quote(str(program))} {RUN_BY}", name, 60.0))
        probes = Path(name) / "probes"
        probes.mkdir()
        most = most_runs(model.hp.n_layer)
        try:
            verdict = probe(Run(model), engine, TOKENS, probes)
        except Exception as e:  # noqa: BLE001 - whatever it is, it is told in the table
            told = f"{type(e).__name__}: {e}"
            right = bug in IN_A_LINE and IN_A_LINE[bug] in told
            return Outcome(
                "C", bug, layer, True, right, right, right, told, engine.runs, most, time.perf_counter() - start
            )
    first = verdict.first
    cause = next((e for e in verdict.explanations if e.hypothesis), None)
    found = is_told(verdict, wanted)
    where = f"{cause.inside or ''} {cause.extent}".strip() if cause else ""
    return Outcome(
        "C",
        bug,
        layer,
        first is not None,
        first is not None and (layer is None or first.layer == layer),
        found,
        found,
        "" if first is None else f"{first.site}: {cause.hypothesis if cause else 'not explained'} ({where})",
        engine.runs,
        most,
        time.perf_counter() - start,
    )
