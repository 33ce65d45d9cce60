"""Opening a trace that somebody else wrote: whole, partial, crashed or hostile."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firstdiff.dumps import single_files, step_files
from firstdiff.dumps.errors import PickleError, TraceError, shown
from firstdiff.dumps.listed_files import PICKLES, list_listed
from firstdiff.dumps.listing import Listing, by_step, lost
from firstdiff.dumps.manifest import MANIFEST, Manifest, read_manifest
from firstdiff.dumps.names import Convention, Names, choose, convention
from firstdiff.dumps.site import Site, whole_numbers
from firstdiff.dumps.spelling import spelled, step_of_file
from firstdiff.dumps.tensors import Tensor
from firstdiff.dumps.token_steps import steps_of
from firstdiff.dumps.trace import Trace
from firstdiff.dumps.understood import Named, NameRow, explain, restepped, understand, unknown

FOREIGN_MANIFEST = "manifest.json"
"""Read like trace.json, in a folder that has none."""

_MOST_FILES = 100_000  # 80 layers of 25 points for 50 steps
_DEEPEST = 6  # folders below the dump: step1/model/layers/3/self_attn/q_proj.npy


@dataclass(frozen=True, slots=True)
class _Dump:
    """What was found, and what it says of itself."""

    root: Path
    manifest: Manifest
    listing: Listing


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a folder that can hold tensors, and a pickle if there is one."""

    steps: dict[int, list[Path]] = field(default_factory=dict)
    singles: list[tuple[str, Path]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def open_trace(
    path: str | os.PathLike[str],
    *,
    tokens: Sequence[int] | None = None,
    otherwise: Sequence[int] | None = None,
    names: Names | None = None,
) -> Trace:
    """Open a trace, ours or anybody's.

    Read are a folder of ``step-NNN.safetensors`` or ``step-NNN.npz`` files, one such file, a folder of ``.npy`` files
    or texts of numbers (`firstdiff.dumps.spelling` says how their names are read), one such file, and whatever a
    manifest lists (`firstdiff.dumps.listed_files`). Values stay in their files until they are asked for, but those
    of texts. A step that cannot be read ends the trace at the step before it, with a note.

    Parameters
    ----------
    path
        The folder, its manifest, or a file.
    tokens
        The tokens of all steps in a row, for a trace that does not say them. Step 0 gets all but one for each
        later step; that step 0 has so many rows is checked on the tensors. Where the trace says its tokens, they must
        begin with these.
    otherwise
        The same, for a trace that does not say them; one that does may say others.
    names
        How the engine's names are to be understood: ``firstdiff``, ``llama.cpp``, ``hf``, a table
        ``{"their.{layer}.name": "point"}``, or the path of one in TOML or JSON. Without it the manifest says it, or
        else the convention is taken that understands most names, with a note.

    Raises
    ------
    TraceError
        If there is no readable step, the tokens of one are unknown, the manifest or table is broken, or two names
        mean one site.
    """
    given, spare = (None if x is None else whole_numbers(x, "token") for x in (tokens, otherwise))
    dump = _found(Path(path))
    root, manifest = dump.root, dump.manifest
    listing, tensors, named, known, notes = _understood(dump, names)
    says_tokens = any(step.tokens is not None for step in listing.steps)
    if given is None and not says_tokens:
        given = spare
    return Trace(
        path=root,
        engine=manifest.engine,
        model=manifest.model,
        steps=steps_of(root, listing, tensors, given),
        tensors=tensors,
        complete=manifest.complete and listing.complete,
        notes=notes,
        names=known,
        layouts=manifest.layouts,
        unknown=unknown(named),
        named=named,
        says_tokens=says_tokens,
    )


def names_in(path: str | os.PathLike[str], *, names: Names | None = None) -> tuple[NameRow, ...]:
    """Return how each name of a dump is read, as `explain_names` does, without asking for tokens.

    Raises
    ------
    TraceError
        As `open_trace`.
    """
    _, _, named, _, _ = _understood(_found(Path(path)), names)
    return explain(named)


def _understood(
    dump: _Dump, names: Names | None
) -> tuple[Listing, dict[Site, Tensor], tuple[Named, ...], str | dict[str, str] | None, tuple[str, ...]]:
    """Place the tensors at sites; also return what the trace says of its names, and its notes."""
    root, manifest, listing = dump.root, dump.manifest, dump.listing
    chosen = _convention(dump, names)
    said = names is not None or manifest.names is not None
    if (entries := restepped(listing.entries, chosen)) is not None:
        listing = by_step(root, entries, manifest, notes=listing.notes, complete=listing.complete)
    tensors, named = understand(listing.entries, chosen)
    if not tensors:
        raise TraceError(f"{root}: has no readable step: its files hold no tensor")
    notes = [*listing.notes]
    if not manifest.complete:
        notes.insert(0 if listing.complete else 1, "the run was cut short: the trace says that it is not complete")
    if (missing := lost(listing)) is not None:
        notes.append(missing)
    label = None if chosen is None or (not said and chosen.label == "firstdiff") else chosen.label
    if label is not None and not said:
        understood = sum(one.known for one in named)
        notes.append(f"names are read as {label}'s, which understands {understood} of {len(named)}")
    if (
        label is not None
        and chosen is not None
        and chosen.noted((s.point for s in tensors), (one.name for one in named))
    ):
        notes.append(chosen.note)
    return listing, tensors, named, label, tuple(notes)


def _convention(dump: _Dump, names: Names | None) -> Convention | None:
    if names is not None:
        return convention(names, str(dump.root), path_allowed=True)
    if dump.manifest.names is not None:
        return convention(dump.manifest.names, str(dump.root / MANIFEST), path_allowed=False)
    steps: dict[int, list[str]] = {}
    for entry in dump.listing.entries:
        steps.setdefault(entry.step, []).append(entry.name)
    return choose([*steps.values()])


def _found(root: Path) -> _Dump:
    """List what a path holds, whatever it is."""
    try:
        mode = root.stat().st_mode
        if stat.S_ISREG(mode) and root.name in (MANIFEST, FOREIGN_MANIFEST):
            root, mode = root.parent, root.parent.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(root)
        _refuse_other_formats(root, mode)
    except FileNotFoundError:
        raise TraceError(f"{root}: there is no such file or folder") from None
    except (OSError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{root}: cannot be read: {why}") from None
    if root.suffix == ".npz":
        return _Dump(root, Manifest(), step_files.list_npz(root))
    if root.suffix in single_files.SUFFIXES:
        return _Dump(root, Manifest(), single_files.list_tensors(root, Manifest(), [(_of_step_0(root.name), root)]))
    return _Dump(root, Manifest(), step_files.list_steps(root, Manifest(), {0: [root]}))


def _of_step_0(name: str) -> str:
    """Return the name of a lone file without a step: it is the only one that is opened."""
    suffix = Path(name).suffix
    return spelled(name.removesuffix(suffix)).name + suffix


def _folder(root: Path) -> _Dump:
    files = _files_of(root)
    manifest_path = next((root / name for name in (MANIFEST, FOREIGN_MANIFEST) if (root / name).exists()), None)
    if manifest_path is not None and manifest_path.name == FOREIGN_MANIFEST and files.steps:
        manifest_path = None  # somebody else's, and nothing needs it
    if manifest_path is not None and not manifest_path.is_file():
        raise TraceError(f"{manifest_path}: is not a regular file")
    manifest = Manifest() if manifest_path is None else read_manifest(manifest_path)
    if manifest_path is not None and manifest.tensors is not None and not files.steps:
        return _Dump(root, manifest, list_listed(root, manifest_path, manifest))
    if files.steps:
        return _Dump(root, manifest, step_files.list_steps(root, manifest, files.steps))
    if files.singles:
        return _Dump(root, manifest, single_files.list_tensors(root, manifest, files.singles))
    if not any(root.iterdir()):
        raise TraceError(f"{root}: is an empty folder: a trace holds step-000.safetensors")
    pickles = [file for file in files.others if file.suffix in PICKLES]
    if pickles:
        raise PickleError(pickles[0])
    others = [file.name for file in files.others if file.suffix in step_files.SUFFIXES]
    advice = f": {shown(others[0])} is there; open that file itself, or rename it" if others else ""
    raise TraceError(f"{root}: has no readable step: it holds no step-000.safetensors{advice}")


def _files_of(root: Path) -> _Files:
    """Sort the files of a folder by what they can be. Links to folders are not followed, nor other traces entered."""
    found = _Files()
    for index, path in enumerate(_walk(root, 0)):
        if index >= _MOST_FILES:
            raise TraceError(f"{root}: holds more than {_MOST_FILES:,} files: move what is no trace elsewhere")
        inside = path.relative_to(root).as_posix()
        if not inside.isprintable():
            if path.suffix in (*step_files.SUFFIXES, *single_files.SUFFIXES):
                raise TraceError(f"{root}: the file name {shown(inside)} is not printable: rename it")
            continue
        step = step_of_file(inside) if path.suffix in step_files.SUFFIXES else None
        folders_say_it = all(spelled(folder.name).step == step for folder in list(path.relative_to(root).parents)[:-1])
        if step is not None and folders_say_it:
            found.steps.setdefault(step, []).append(path)
        elif path.suffix in single_files.SUFFIXES:
            found.singles.append((inside, path))
        elif path.parent == root:
            found.others.append(path)
    return found


def _walk(folder: Path, depth: int) -> list[Path]:
    files: list[Path] = []
    for path in sorted(folder.iterdir(), key=_natural):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            files.append(path)
        elif depth < _DEEPEST and not path.is_symlink() and not (path / MANIFEST).exists():
            files += _walk(path, depth + 1)
            if len(files) > _MOST_FILES:
                break
    return files


def _natural(file: Path) -> tuple[tuple[bool, int, str], ...]:
    """Sort layer-10 after layer-9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", file.name)
    return tuple((part[0] in "0123456789", int(part) if part[0] in "0123456789" else 0, part) for part in parts)


def _refuse_other_formats(path: Path, mode: int) -> None:
    """Say what a file is, if it is none that is read."""
    if not stat.S_ISREG(mode):
        raise TraceError(f"{path}: is neither a folder nor a regular file")
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix in (*step_files.SUFFIXES, *single_files.SUFFIXES):
        return
    pickled = magic[:1] == b"\x80" and magic[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix in PICKLES or pickled or (path.suffix == ".bin" and magic == b"PK\x03\x04"):
        raise PickleError(path)
    if magic == b"GGUF":
        raise TraceError(f"{path}: is a GGUF model and no trace: record one with 'firstdiff record'")
    if path.suffix in (".bin", ".raw", ".f32", ".f16"):
        raise TraceError(
            f"{path}: values in binary do not say what they are: list the file in a trace.json beside it, "
            '{"tensors": [{"file": …, "dtype": "f32", "shape": […], "name": …}]}, and open the folder'
        )
    read = ", ".join((*step_files.SUFFIXES, *single_files.SUFFIXES))
    raise TraceError(
        f"{path}: format {shown(path.suffix)} is not read: a trace is a folder of step-NNN.safetensors files, "
        f"or a file of one of {read}"
    )
