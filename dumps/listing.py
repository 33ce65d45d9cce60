"""What a dump holds: its tensors under the engine's own names, step by step, before any name is understood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.manifest import Manifest, Recorded
from firstdiff.dumps.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded tensor: its step, the engine's own name for it, its handle and the file it is in."""

    step: int
    name: str
    tensor: Tensor
    file: Path


@dataclass(frozen=True, slots=True)
class Listing:
    """The readable steps of a dump.

    Parameters
    ----------
    entries
        The tensors of all readable steps, in execution order as far as anything says it.
    steps
        What is recorded about each readable step.
    planned
        How many steps there should be.
    notes
        What could not be read.
    complete
        False if a step, or a tensor of one, could not be read.
    """

    entries: tuple[Entry, ...]
    steps: tuple[Recorded, ...]
    planned: int
    notes: tuple[str, ...] = ()
    complete: bool = True


def by_step(
    root: Path, entries: Iterable[Entry], manifest: Manifest, *, notes: Sequence[str] = (), complete: bool = True
) -> Listing:
    """List tensors whose steps are said one by one, up to the first step of which there is none.

    Raises
    ------
    TraceError
        If there is none of step 0, or two of one name in a step.
    """
    steps: dict[int, dict[str, Entry]] = {}
    for entry in entries:
        once(steps.setdefault(entry.step, {}), entry)
    if not steps:
        raise TraceError(f"{root}: has no readable step: its files hold no tensor")
    planned = max(steps) + 1 if manifest.steps is None else len(manifest.steps)
    count = next((step for step in range(planned) if step not in steps), planned)
    if count == 0:
        raise TraceError(
            f"{root}: has no readable step: its tensors begin at step {min(steps)}, and steps count from 0"
            if manifest.steps is None or planned
            else f"{root}: has no readable step: its manifest lists none"
        )
    notes = list(notes)
    if count < planned:
        notes.append(f"step {count} is missing: there should be {planned} steps, read up to step {count - 1}")
    elif max(steps) >= planned:
        notes.append(f"step {max(steps)} is ignored: {planned} steps are listed, counted from 0")
    said = manifest.steps[:count] if manifest.steps else (Recorded(),) * count
    held = tuple(entry for step in range(count) for entry in ordered(steps[step], said[step].order))
    return Listing(held, said, planned, tuple(notes), complete and count == planned)


def once(step: dict[str, Entry], entry: Entry) -> None:
    """Add a tensor to those of its step, by name, refusing a second one of its name."""
    if (other := step.setdefault(entry.name, entry)) is not entry:
        raise TraceError(f"{entry.file}: tensor {shown(entry.name)} is in {shown(other.file.name)[1:-1]} too: keep one")


def ordered(step: dict[str, Entry], order: Sequence[str] | None) -> list[Entry]:
    """Return the tensors of a step in the order that is listed, and what is not listed after them."""
    first = [key for key in dict.fromkeys(order or ()) if key in step]
    return [step[key] for key in dict.fromkeys([*first, *step])]


def lost(listing: Listing) -> str | None:
    """Return a note on the first step that lacks tensors that its manifest lists."""
    held: dict[int, set[str]] = {}
    for entry in listing.entries:
        held.setdefault(entry.step, set()).add(entry.name)
    for step, said in enumerate(listing.steps):
        keys = [key for key in said.order or () if key not in held.get(step, set())]
        if keys:
            return f"step {step} lacks {len(keys)} of the tensors it lists, the first {shown(keys[0])}"
    return None
