"""Which calls of a forward pass read each weight, found without computing any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.dumps import Step
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight


@dataclass(frozen=True, slots=True)
class Reader:
    """A call, and which of its inputs a weight is."""

    call: Call
    index: int


@dataclass
class _Listing(Probe):
    """Lists every call by the weights that it reads. No value has numbers."""

    readers: dict[str, list[Reader]] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        """Note the call, with one token of zeros for its input: as many as a row of its weight has."""
        if len(call.inputs) > 1 and isinstance(call.inputs[1], Weight):  # of x, weight and perhaps a bias
            x, weight, *rest = call.inputs
            if call.sources[0] is not None:
                x = np.zeros((1, weight.shape[-1]), np.float32)
            if call.op is linear and not rest:
                rest = [None]  # no bias, said as the operation takes it
            call = replace(call, inputs=(x, weight, *rest), sources=())
            for index, read in enumerate(call.inputs):
                if isinstance(read, Weight):
                    self.readers.setdefault(read.name, []).append(Reader(call, index))
        return Value(np.empty(0, np.float32))

    silent = value


def readers(model: Model) -> Mapping[str, list[Reader]]:
    """List the norms, products and embeddings that read each tensor of a model, as its architecture calls them."""
    probe = _Listing(F32)
    for _ in model.forward([Step((0,), (0,))], probe):
        pass
    return probe.readers
