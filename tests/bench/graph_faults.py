"""One wrong tensor in a run of any architecture, sought by llama.cpp's graph: ``python tests/bench/graph_faults.py``.

The reference runs a tiny model of each architecture by llama.cpp's graph, a prompt and two steps, and one tensor drawn
by chance is multiplied by 1.01. The dump is judged with every point in it, and with a few common ones. What diverges
must be the tensor itself, or the first recorded ones that are computed from it, and nothing else. The table is kept in
tests/data/graph-faults.txt. The exit code is 1 if a right tensor is accused or a visible fault is not found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pool
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np
from lines import printed

from builders.every_architecture import ARCHITECTURES, ENCODER_AND_DECODER, toy
from firstdiff.dumps import Site, Step, Trace
from firstdiff.engines.opening import open_reference
from firstdiff.judging.selections import selects
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import SiteVerdict, Status

COMMON = (
    "embd", "attn_norm", "Qcur", "Kcur", "Vcur", "Qcur_rope", "Kcur_rope", "kqv_out", "attn_out", "ffn_inp", "ffn_norm",
    "ffn_out", "l_out", "result_norm", "result_output",
)  # fmt: skip
"""Points that most engines dump."""

STEPS = (Step(tuple(range(3, 12)), tuple(range(9))), Step((7,), (9,)), Step((8,), (10,)))
FACTOR = np.float32(1.01)


@dataclass
class Running(Probe):
    """Runs freely and keeps every point; the value of one site is multiplied."""

    wrong: Site | None = None
    tensors: dict[Site, Array] = field(default_factory=dict)
    may: list[Site] = field(default_factory=list)

    def value(self, call: Call) -> Value:
        """Compute, and multiply where that is asked for."""
        site, x = Site(call.step, call.layer, call.point), call.compute(self.arithmetic)
        x = x * FACTOR if site == self.wrong else x
        self.tensors[site] = x
        if not selects(call) and x.any():
            self.may.append(site)
        return Value(x)


@dataclass(frozen=True)
class Outcome:
    """What was found of one fault: in a dump of all points, or of the common ones."""

    arch: str
    names: str
    site: str
    found: str
    accused: tuple[str, ...] = ()


def ran(model: Model, wrong: Site | None = None) -> Running:
    """A free run of the reference."""
    probe = Running(F32, wrong=wrong)
    with np.errstate(all="ignore"):
        for _ in model.forward(STEPS, probe):
            pass
    return probe


def judged(model: Model, tensors: dict[Site, Array], names: str) -> list[SiteVerdict]:
    """The sites of a dump, judged as any candidate's are."""
    kept = {s: x for s, x in tensors.items() if names == "all" or s.point in COMMON}
    trace = Trace.from_arrays(STEPS, kept, engine={"name": "bench", "arithmetic": "f32"}, model={})
    return replayed(model, trace).sites


def outcomes(arch: str, faults: int) -> list[Outcome]:
    """What is found of some faults in one architecture."""
    draw = random.Random(arch)
    found = []
    with tempfile.TemporaryDirectory() as name:
        model = open_reference(toy(arch, Path(name)), tier="graph")
        right = ran(model)
        for names in ("all", "common"):
            clean = [str(s.site) for s in judged(model, right.tensors, names) if s.status is Status.DIVERGES]
            found.append(Outcome(arch, names, "none", "clean", tuple(clean)))
        for wrong in draw.sample(right.may, min(faults, len(right.may))):
            run = ran(model, wrong)
            found += [_outcome(model, arch, names, wrong, run.tensors, right.tensors) for names in ("all", "common")]
    return found


def _outcome(
    model: Model, arch: str, names: str, wrong: Site, tensors: dict[Site, Array], right: dict[Site, Array]
) -> Outcome:
    sites = judged(model, tensors, names)
    diverging = [s for s in sites if s.status is Status.DIVERGES]
    made_of_it = [s for s in diverging if wrong in (s.site, *s.segment)]
    accused = tuple(str(s.site) for s in diverging if s not in made_of_it)
    if made_of_it:
        return Outcome(arch, names, str(wrong), "found", accused)
    held = [s for s in sites if wrong in (s.site, *s.segment) and s.local_error is not None]
    seen = any(not np.array_equal(tensors[s.site], right[s.site]) for s in held)
    return Outcome(arch, names, str(wrong), "below the floor" if seen else "changes nothing recorded", accused)


def report(architectures: Sequence[str], faults: int) -> Iterator[tuple[str, int]]:
    """The lines of the table, each with how much in it is wrong."""
    start = time.perf_counter()
    with Pool(2) as pool:
        done = [o for of in pool.starmap(outcomes, [(a, faults) for a in architectures]) for o in of]
    for names in ("all", "common"):
        of = [o for o in done if o.names == names]
        tried = [o for o in of if o.found != "clean"]
        counts = Counter(o.found for o in tried)
        alarms = sum(bool(o.accused) for o in of)
        yield f"{names} points: {len(tried):,} faults in {len(architectures)} architectures", 0
        yield f"  found where they are: {counts['found']:,}", 0
        for what in ("below the floor", "changes nothing recorded"):
            at = Counter(o.site.partition("-")[0].partition("@")[0] for o in tried if o.found == what)
            most = ", ".join(f"{point} {n}" for point, n in at.most_common(8))
            yield f"  {what}: {counts[what]:,}" + (f" ({most})" if most else ""), 0
        yield f"  right tensors accused: {alarms:,}", alarms
        for o in of:
            if o.accused:
                yield f"    {o.arch}, {o.site}: {', '.join(o.accused[:4])}", 0
    yield f"{time.perf_counter() - start:.0f} s", 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the table, and write it where asked."""
    parser = argparse.ArgumentParser("graph_faults", description=__doc__)
    whole = [a for a in ARCHITECTURES if a not in ENCODER_AND_DECODER]
    parser.add_argument("--architectures", default=",".join(whole))
    parser.add_argument("--faults", type=int, default=10, help="in each architecture (default: 10)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    return 1 if printed(report(options.architectures.split(","), options.faults), options.out) else 0


if __name__ == "__main__":
    sys.exit(main())
