"""Two runs of the reference: ``python wrong_at_every_layer.py MODEL OUT TOKEN...`` writes OUT/right and OUT/wrong.

In the wrong one the feed-forward network's result is bent at every layer, in a way that no hypothesis has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from firstdiff.dumps import Site, TraceWriter
from firstdiff.engines.identity import identity
from firstdiff.engines.reference import Recording, record_reference
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import open_model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value


class Bent(Recording):
    """Bends what leaves the feed-forward network."""

    def value(self, call: Call) -> Value:
        """Compute the value, bend it, and keep it."""
        x = call.compute(self.arithmetic)
        if call.point == "ffn_out":
            x = (x + np.float32(0.07) * np.abs(x) * np.sin(3 * x)).astype(np.float32)
        self.tensors[Site(call.step, call.layer, call.point).key] = x
        return Value(x)


def main(path: str, out: str, *tokens: str) -> None:
    """Record both."""
    model = open_model(path)
    for name, probe in (("right", Recording(F32)), ("wrong", Bent(F32))):
        with TraceWriter(Path(out) / name, engine={"name": "mine"}, model=identity(model).stated) as writer:
            record_reference(model, [*map(int, tokens)], writer, probe=probe, decode=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
