"""The smallest change that is still seen, by arithmetic: ``python tests/bench/sensitivity.py [--quick]``.

An engine in each arithmetic has one number of one layer changed: the epsilon of a norm, the base of the rotation, the
scale of the softmax, one element of a weight. The change is made larger until the site diverges, and then bisected.
The engine is the reference in that arithmetic, so that nothing but the change is there to be seen: an engine with
rounding of its own, below the floor, may hide a change up to twice as large. The table is kept in
tests/data/sensitivity.txt.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np

from builders.models import FILE_TYPES, quantised
from firstdiff.dumps import Site, Step, Trace
from firstdiff.hypotheses.planting import Planting
from firstdiff.model.arithmetic import ARITHMETICS, Arithmetic
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.model.synthetic import Llama, write_llama
from firstdiff.model.value import Value
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import SiteVerdict, Status

SHAPE = Llama(n_layer=2, head_dim=64)
TOKENS = (1, *range(60, 99))
LAYER = 1
NAMES = ("f32", "ggml-cpu", "f16", "bf16", "tf32")
LEAST, MOST, GROWTH = 1e-8, 1e8, 4.0
"""The first share that is tried, by what it grows until it is seen, and where that ends."""

NEAR = 1.01
"""How near to the smallest change the bisection ends, as a factor."""


# Changes


@dataclass(frozen=True)
class Change:
    """A number that can be changed by a share of itself: where it acts, and the call with the change made."""

    name: str
    point: str
    make: Callable[[Call, float], Call]


def _attribute(name: str, key: str, point: str) -> Change:
    def make(call: Call, share: float) -> Call:
        return replace(call, attributes=call.attributes | {key: call.attributes[key] * (1 + share)})

    return Change(name, point, make)


def _element(call: Call, share: float) -> Call:
    """The call with the element in the middle of its weight changed by a share of the weight's rms."""
    x, weight, *rest = call.inputs
    dense = np.array(weight.values())
    dense[tuple(n // 2 for n in dense.shape)] += share * math.sqrt(np.square(dense, dtype=np.float64).mean())
    return replace(call, inputs=(x, replace(weight, dense=dense), *rest))


CHANGES = (
    _attribute("norm eps", "eps", "attn_norm"),
    _attribute("rope base", "base", "Qcur_rope"),
    _attribute("softmax scale", "scale", "kq_soft_max"),
    Change("one element", "Qcur", _element),
)


@dataclass(kw_only=True)
class Changed(Planting):
    """Records with one number changed."""

    change: Change
    share: float

    def value(self, call: Call) -> Value:
        """Record the changed call in place of the right one."""
        here = (call.layer, call.point) == (LAYER, self.change.point)
        return super().value(self.change.make(call, self.share) if here else call)


# How small it can be


def judged(model: Model, arithmetic: Arithmetic, change: Change, share: float) -> SiteVerdict:
    """The verdict on the site of a change; no other site diverges."""
    probe = Changed(arithmetic, model, change=change, share=share)
    steps = [Step(TOKENS, tuple(range(len(TOKENS))))]
    for _ in model.forward(steps, probe):
        pass
    tensors = {Site.of_key(key, 0): x for key, x in probe.finish().items()}
    engine = {"name": "changed", "arithmetic": arithmetic.name}
    done = replayed(model, Trace.from_arrays(steps, tensors, engine=engine, model={}))
    found, sites = done.found, done.sites
    site = Site(0, LAYER, change.point)
    diverging = {str(s.site) for s in sites if s.status is Status.DIVERGES}
    if found.arithmetic != arithmetic or diverging - {str(site)}:
        raise AssertionError(f"{change.name} by {share}: judged in {found.arithmetic.name}, {diverging} diverge")
    return next(s for s in sites if s.site == site)


def smallest(model: Model, arithmetic: Arithmetic, change: Change) -> tuple[float, float]:
    """The smallest share by which a change is seen, and the floor of its site; infinite where none is."""

    def seen(share: float) -> bool:
        return judged(model, arithmetic, change, share).status is Status.DIVERGES

    floor = judged(model, arithmetic, change, 0.0).floor or 0.0
    above = LEAST
    while not seen(above):
        above *= GROWTH
        if above > MOST:
            return math.inf, floor
    below = above / GROWTH
    while above > NEAR * below:
        middle = math.sqrt(above * below)
        below, above = (below, middle) if seen(middle) else (middle, above)
    return above, floor


def report(names: Sequence[str]) -> Iterator[str]:
    """The lines of the table."""
    yield f"smallest change seen (floor of its site); {len(TOKENS)} tokens, synthetic model in Q8_0"
    yield ""
    yield f"{'arithmetic':10}" + "".join(f"  {c.name + ' of ' + c.point:27}" for c in CHANGES).rstrip()
    with tempfile.TemporaryDirectory() as name:
        plain = write_llama(Path(name) / "plain.gguf", SHAPE)
        model = open_model(quantised(plain, FILE_TYPES["Q8_0"], Path(name) / "model.gguf"))
        for arithmetic in (ARITHMETICS[n] for n in names):
            cells = (smallest(model, arithmetic, change) for change in CHANGES)
            line = "".join(f"  {share:7.1e} (floor {floor:7.1e})    " for share, floor in cells)
            yield f"{arithmetic.name:10}{line}".rstrip()
    yield ""
    yield "eps (1e-5, of inputs whose mean square is near 1), base and scale: as a share of themselves"
    yield "one element, in the middle of attn_q.weight: as a share of the weight's rms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser("sensitivity", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="float32 alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    lines = []
    for line in report(NAMES[:1] if options.quick else NAMES):
        print(line, flush=True)  # noqa: T201 - as soon as it is there: all of them take a while
        lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
