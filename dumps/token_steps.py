"""Which tokens went into each step, as a dump says it or as somebody gives them for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.listing import Listing
from firstdiff.dumps.manifest import MANIFEST
from firstdiff.dumps.site import Site, Step
from firstdiff.dumps.tensors import Tensor


def steps_of(
    root: Path, listing: Listing, tensors: Mapping[Site, Tensor], given: tuple[int, ...] | None
) -> tuple[Step, ...]:
    """Return each step's tokens and positions, from the trace or else from what was given.

    Raises
    ------
    TraceError
        If neither says them, they contradict each other, or those given cannot be shared out.
    """
    said = [step.tokens for step in listing.steps]
    if any(tokens is not None for tokens in said):
        if None in said:
            raise TraceError(f"{root}: step {said.index(None)} has no tokens: write them to {MANIFEST}")
        if given is not None:
            _check_same(root, [token for tokens in said if tokens is not None for token in tokens], given)
    elif given is None:
        raise TraceError(f"{root}: has no tokens: give them with --tokens")
    else:
        said = [*_shared_out(root, listing.planned, tensors, given)][: len(said)]
    steps: list[Step] = []
    start = 0
    for index, (step, tokens) in enumerate(zip(listing.steps, said, strict=True)):
        assert tokens is not None
        positions = step.positions
        try:
            steps.append(Step(tokens, tuple(range(start, start + len(tokens))) if positions is None else positions))
        except TraceError as error:
            raise TraceError(f"{root}: step {index}: {error}") from None
        start = steps[-1].positions[-1] + 1
    return tuple(steps)


def _check_same(root: Path, said: list[int], given: tuple[int, ...]) -> None:
    """Refuse tokens that contradict the trace. It may have gone on from those given."""
    for index, token in enumerate(given):
        recorded = said[index] if index < len(said) else "nothing"
        if token != recorded:
            raise TraceError(
                f"{root}: token {index} is {recorded} in the trace and {token} in those given: "
                "leave out --tokens, or record the trace again"
            )


def _shared_out(
    root: Path, planned: int, tensors: Mapping[Site, Tensor], given: tuple[int, ...]
) -> list[tuple[int, ...] | None]:
    """Give one token to each later step and the rest to step 0, if the tensors show that many rows there.

    The token axis is the one that shrinks to 1 from step 0 to step 1, whatever the layout.
    """
    rows = len(given) - (planned - 1)
    if rows < 1:
        raise TraceError(f"{root}: has {planned} steps and only {len(given)} tokens were given: give all of them")
    if planned > 1:
        later = {site.key: tensor.shape for site, tensor in tensors.items() if site.step == 1}
        both = [(tensors[site].shape, later[site.key]) for site in tensors if site.step == 0 and site.key in later]
        seen = {a for first, second in both for a, b in zip(first, second, strict=False) if a != b and b == 1}
        if (seen or {1}) != {rows}:
            raise TraceError(
                f"{root}: cannot tell which of {len(given)} tokens belong to step 0: one for each later step "
                f"leaves {rows}, and the tensors show {shown(sorted(seen or {1}))} rows: write each step's "
                f"tokens to {MANIFEST}"
            )
    return [given[:rows], *((token,) for token in given[rows:])]
