"""Steps whose tensors stand under each other's numbers: told by the embedding, whose rows name their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from firstdiff.dumps import Site, Trace
from firstdiff.model.engine import Model
from firstdiff.preflight.other_tokens import Lookup, lookups
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import enumerated


def exchanged_steps(model: Model, trace: Trace) -> tuple[DumpFinding, Trace] | None:
    """Find steps whose tensors are each other's.

    The same is seen where the tokens of these steps are stated in the wrong order: only what depends on the positions
    tells one from the other.

    Returns
    -------
    The finding, and the trace with every tensor under the step that it is of; None where no steps are exchanged.
    """
    held = {x.value.call.step: x for x in lookups(model, trace)}
    of = _exchanged(held)
    if not of:
        return None
    moved = {replace(site, step=of.get(site.step, site.step)): tensor for site, tensor in trace.tensors.items()}
    tensors = dict(sorted(moved.items(), key=lambda item: item[0].step))
    return _finding(of, moved), replace(trace, tensors=tensors)


def _exchanged(held: Mapping[int, Lookup]) -> dict[int, int]:
    """For each step that is exchanged the step whose tensors stand there; empty where there are none."""
    for off in dict.fromkeys([0, *(by for x in held.values() for by in x.moved if len(x.moved) == 1)]):
        # An engine may look up ids that are off by one at every step, besides.
        stated = {step: tuple(token + off for token in x.stated) for step, x in held.items()}
        wrong = [step for step, x in held.items() if x.held != stated[step]]
        of = {step: [other for other in wrong if stated[other] == held[step].held] for step in wrong}
        if wrong and all(len(others) == 1 for others in of.values()):
            found = {step: others[0] for step, others in of.items()}
            if len(set(found.values())) == len(found):
                return found
    return {}


def _finding(of: Mapping[int, int], sites: Mapping[Site, object]) -> DumpFinding:
    if all(of[own] == step for step, own in of.items()):
        pairs = [f"steps {step} and {own}" for step, own in sorted(of.items()) if step < own]
        says = f"the tensors of {enumerated(pairs)} were written under each other's number"
    else:
        under = [f"those of step {own} under step {step}" for step, own in sorted(of.items())]
        says = f"the tensors of steps were written under each other's numbers: {enumerated(under)}"
    return DumpFinding(
        "steps-exchanged",
        f"{says}, as the rows of embd and the positions show; each tensor is judged as one of its true step",
        "number the steps in the order in which the engine ran them",
        tuple(site for site in sorted(sites, key=lambda site: site.step) if site.step in of),
        judged=True,
    )
