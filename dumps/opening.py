"""Opening a trace that somebody else wrote: whole, partial, crashed or hostile."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.manifest import MANIFEST, Manifest, Recorded, read_manifest
from firstdiff.dumps.site import Site, Step, whole_numbers
from firstdiff.dumps.tensors import Stored, Tensor, read_header
from firstdiff.dumps.trace import Trace

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

STEP_FILE = re.compile(r"step-([0-9]{1,9})(\..+)?\.safetensors", re.DOTALL)

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_WHY_NO_PICKLE = (
    "is a pickle, and reading one runs whatever code is in it, so firstdiff never does: "
    "save the tensors with safetensors.torch.save_file"
)


@dataclass(frozen=True, slots=True)
class _StepRead:
    """One step: its tensors in execution order, what is said of it, and listed keys that no file holds."""

    tensors: Mapping[str, Stored]
    said: Recorded
    lost: tuple[str, ...]


def open_trace(path: str | os.PathLike[str], *, tokens: Sequence[int] | None = None) -> Trace:
    """Open a trace: a folder of ``step-NNN.safetensors`` files, or one such file as a trace of one step.

    Values stay in their files until they are asked for. A step that cannot be read ends the trace at the step
    before it, with a note.

    Parameters
    ----------
    path
        The folder, its trace.json, or a safetensors file.
    tokens
        The tokens of all steps in a row, for a trace that does not say them. Step 0 gets all but one for each
        later step; that step 0 has so many rows is checked on the tensors.

    Raises
    ------
    TraceError
        If there is no readable step, the tokens of one are unknown, or the manifest is broken.
    """
    root = Path(path)
    given = None if tokens is None else whole_numbers(tokens, "token")
    try:
        mode = root.stat().st_mode
        if stat.S_ISREG(mode) and root.name == MANIFEST:
            root, mode = root.parent, root.parent.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(root, given)
        _refuse_other_formats(root, mode)
    except FileNotFoundError:
        raise TraceError(f"{root}: there is no such file or folder") from None
    except (OSError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{root}: cannot be read: {why}") from None
    return _open_steps(root, Manifest(), {0: [root]}, given)


def _open_folder(root: Path, given: tuple[int, ...] | None) -> Trace:
    inside = sorted(root.iterdir(), key=_natural)
    files: dict[int, list[Path]] = {}
    for file in inside:
        if found := STEP_FILE.fullmatch(file.name):
            if not file.name.isprintable():
                raise TraceError(f"{root}: the file name {shown(file.name)} is not printable: rename it")
            files.setdefault(int(found[1]), []).append(file)
    manifest_path = root / MANIFEST
    if manifest_path.exists() and not manifest_path.is_file():
        raise TraceError(f"{manifest_path}: is not a regular file")
    manifest = read_manifest(manifest_path) if manifest_path.exists() else Manifest()
    if files:
        return _open_steps(root, manifest, files, given)
    if not inside:
        raise TraceError(f"{root}: is an empty folder: a trace holds step-000.safetensors")
    pickles = [file for file in inside if file.suffix in _PICKLES]
    if pickles:
        raise TraceError(f"{pickles[0]}: {_WHY_NO_PICKLE}")
    others = [file.name for file in inside if file.suffix == ".safetensors"]
    advice = f": {shown(others[0])} is there; open that file itself, or rename it" if others else ""
    raise TraceError(f"{root}: has no readable step: it holds no step-000.safetensors{advice}")


def _natural(file: Path) -> tuple[tuple[bool, int, str], ...]:
    """Sort layer-10 after layer-9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", file.name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def _refuse_other_formats(path: Path, mode: int) -> None:
    """Say what a file is, if it is no safetensors file."""
    if not stat.S_ISREG(mode):
        raise TraceError(f"{path}: is neither a folder nor a regular file")
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix == ".safetensors":
        return
    pickled = magic[:1] == b"\x80" and magic[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix in _PICKLES or pickled or (path.suffix == ".bin" and magic == b"PK\x03\x04"):
        raise TraceError(f"{path}: {_WHY_NO_PICKLE}")
    if magic == b"GGUF":
        raise TraceError(f"{path}: is a GGUF model and no trace: record one with 'firstdiff record'")
    raise TraceError(
        f"{path}: format {shown(path.suffix)} is not read: a trace is a folder of step-NNN.safetensors "
        "files, or one .safetensors file"
    )


def _open_steps(root: Path, manifest: Manifest, files: dict[int, list[Path]], given: tuple[int, ...] | None) -> Trace:
    planned = max(files) + 1 if manifest.steps is None else len(manifest.steps)
    if planned == 0:
        raise TraceError(f"{root}: has no readable step: {MANIFEST} lists none")
    read, notes = _read_steps(root, manifest, files, planned)
    complete = manifest.complete and not notes
    if not manifest.complete:
        notes.append("the run was cut short: the trace says that it is not complete")
    if max(files) >= planned:
        notes.append(f"step {max(files)} is ignored: {MANIFEST} lists {planned} steps, counted from 0")
    lost = [(i, step.lost) for i, step in enumerate(read) if step.lost]
    if lost:
        step, keys = lost[0]
        notes.append(f"step {step} lacks {len(keys)} of the tensors it lists, the first {shown(keys[0])}")
    tensors = _by_site(root, read)
    return Trace(
        path=root,
        engine=manifest.engine,
        model=manifest.model,
        steps=_tokens_of(root, read, planned, given),
        tensors=tensors,
        complete=complete,
        notes=tuple(notes),
        names=manifest.names,
        layouts=manifest.layouts,
    )


def _read_steps(
    root: Path, manifest: Manifest, files: dict[int, list[Path]], planned: int
) -> tuple[list[_StepRead], list[str]]:
    """Read the headers of all steps up to the first that is missing or broken, and note that one."""
    read: list[_StepRead] = []
    for index in range(planned):
        if index not in files:
            if not read:
                raise TraceError(f"{root}: has no readable step: step-000.safetensors is missing")
            missing = f"step {index} is missing: {planned} steps are listed, read up to step {index - 1}"
            return read, [missing]
        try:
            read.append(_read_step(files[index], manifest.steps[index] if manifest.steps else Recorded()))
        except TraceError as error:
            if not read:
                raise
            return read, [f"step {index} is unreadable: {error}; read up to step {index - 1}"]
    return read, []


def _read_step(files: list[Path], said: Recorded) -> _StepRead:
    found: dict[str, Stored] = {}
    for path in files:
        tensors, metadata = read_header(path)
        twice = found.keys() & tensors.keys()
        if twice:
            key = min(twice)
            raise TraceError(f"{path}: tensor {shown(key)} is in {found[key].file.path.name} too: keep one")
        found |= tensors
        said = Recorded(
            said.tokens if said.tokens is not None else _numbers(path, metadata, "tokens"),
            said.positions if said.positions is not None else _numbers(path, metadata, "positions"),
            said.order,
        )
    first = [key for key in dict.fromkeys(said.order or ()) if key in found]
    lost = tuple(key for key in said.order or () if key not in found)
    return _StepRead({key: found[key] for key in dict.fromkeys([*first, *found])}, said, lost)


def _numbers(path: Path, metadata: dict[str, str], what: str) -> tuple[int, ...] | None:
    """Read tokens or positions from a file's metadata: ``[1, 29896]`` or ``1 29896``."""
    if what not in metadata:
        return None
    words = re.findall(r"[^\s,\[\]]+", metadata[what])
    try:
        return whole_numbers([int(word) if re.fullmatch(r"[0-9]{1,10}", word) else word for word in words], what[:-1])
    except TraceError as error:
        raise TraceError(f"{path}: its metadata: {error}") from None


def _by_site(root: Path, read: list[_StepRead]) -> dict[Site, Tensor]:
    sites: dict[Site, Tensor] = {}
    for index, step in enumerate(read):
        for key, tensor in step.tensors.items():
            try:
                sites[Site.of_key(key, index)] = tensor
            except TraceError as error:
                raise TraceError(f"{tensor.file.path}: {error}") from None
    if not sites:
        raise TraceError(f"{root}: has no readable step: its files hold no tensor")
    return sites


def _tokens_of(root: Path, read: list[_StepRead], planned: int, given: tuple[int, ...] | None) -> tuple[Step, ...]:
    """Return each step's tokens and positions, from the trace or else from what was given."""
    said = [step.said.tokens for step in read]
    if any(tokens is not None for tokens in said):
        if None in said:
            raise TraceError(f"{root}: step {said.index(None)} has no tokens: write them to {MANIFEST}")
        if given is not None:
            _check_same(root, [token for tokens in said if tokens is not None for token in tokens], given)
    elif given is None:
        raise TraceError(f"{root}: has no tokens: give them with --tokens")
    else:
        said = [*_shared_out(root, read, planned, given)][: len(read)]
    steps: list[Step] = []
    start = 0
    for index, (step, tokens) in enumerate(zip(read, said, strict=True)):
        assert tokens is not None
        positions = step.said.positions
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
    root: Path, read: list[_StepRead], planned: int, given: tuple[int, ...]
) -> list[tuple[int, ...] | None]:
    """Give one token to each later step and the rest to step 0, if the tensors show that many rows there.

    The token axis is the one that shrinks to 1 from step 0 to step 1, whatever the layout.
    """
    rows = len(given) - (planned - 1)
    if rows < 1:
        raise TraceError(f"{root}: has {planned} steps and only {len(given)} tokens were given: give all of them")
    if planned > 1:
        later = read[1].tensors if len(read) > 1 else {}
        both = [(tensor.shape, later[key].shape) for key, tensor in read[0].tensors.items() if key in later]
        seen = {a for first, second in both for a, b in zip(first, second, strict=False) if a != b and b == 1}
        if (seen or {1}) != {rows}:
            raise TraceError(
                f"{root}: cannot tell which of {len(given)} tokens belong to step 0: one for each later step "
                f"leaves {rows}, and the tensors show {shown(sorted(seen or {1}))} rows: write each step's "
                f"tokens to {MANIFEST}"
            )
    return [given[:rows], *((token,) for token in given[rows:])]
