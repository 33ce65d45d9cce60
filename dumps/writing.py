"""Writing a trace so that a crash loses the step in hand and nothing before it."""

from __future__ import annotations

import contextlib
import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    Recorded,
    manifest_text,
    parse_manifest,
    with_step,
)
from firstdiff.dumps.site import Site, Step
from firstdiff.dumps.strict_json import MAX_JSON, parse_object
from firstdiff.dumps.tensors import dtype_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

_OURS = re.compile(r"(trace\.json|step-[0-9]+(\..+)?\.safetensors)(\.tmp)?")


class TraceWriter:
    """Write a trace, step by step; of a large step what is there already, while the rest of it is run.

    Used as a context manager it marks the trace complete at the end, or cut short if an exception left it.

    Parameters
    ----------
    path
        The folder, made if it is not there. An earlier trace in it is replaced; any other content is refused.
    engine, model
        What to say about them: name, version, backend, arithmetic, options; file, sha256. JSON values.
    names
        The names' convention: ``firstdiff`` (see section 4 of the design), ``llama.cpp``, ``hf``, or a table.
    layouts
        The axes of a point's tensors where they are not those of the convention.

    Raises
    ------
    TraceError
        If the folder holds something else, cannot be written, or the description is no JSON.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        engine: dict[str, Any],
        model: dict[str, Any],
        names: str | dict[str, str] = "firstdiff",
        layouts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path = Path(path)
        self._manifest = Manifest(
            engine, model, (), complete=False, names=names,
            layouts={point: tuple(axes) for point, axes in (layouts or {}).items()},
        )  # fmt: skip
        self._open = True
        self._ahead = _Ahead()
        parse_manifest(self._text(), self.path / MANIFEST)  # what could not be read back is never written
        _prepare(self.path)
        self._put_manifest()

    def step(self, step: Step, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write one forward pass.

        Parameters
        ----------
        step
            Its tokens and positions.
        tensors
            The arrays by key (``point`` or ``point-layer``), in execution order, each in the dtype given.

        Raises
        ------
        TraceError
            If a key or dtype cannot be recorded, the writer is closed, or the disk refuses.
        """
        arrays, index = self._checked(tensors), self._index
        keys = (*self._ahead.keys, *arrays)
        manifest = with_step(self._manifest, Recorded(step.tokens, step.positions, keys))
        self._ahead.end()
        if arrays or not self._ahead.files:
            self._put(f"step-{index:03d}.safetensors", lambda path: _save(arrays, step, path))
        for file in self._ahead.files:
            _renamed(file, file.with_suffix(""))
        self._ahead = _Ahead()
        self._manifest = manifest
        self._put_manifest()

    def part(self, step: Step, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write some tensors of the step that is being run, in a thread of its own; :meth:`step` writes the others.

        At most one part is being written at a time. Until the step is done its parts have temporary names.

        Raises
        ------
        TraceError
            As :meth:`step` does, perhaps for the part before.
        """
        arrays = self._checked(tensors)
        name = f"step-{self._index:03d}.part-{len(self._ahead.files):03d}.safetensors.tmp"
        self._ahead.write(arrays, step, self.path / name)

    @property
    def _index(self) -> int:
        return len(self._manifest.steps or ())

    def _checked(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Tensors as they are written."""
        if not self._open:
            raise TraceError(f"{self.path}: the trace is closed: no step can be added")
        index = self._index
        arrays: dict[str, NDArray[Any]] = {}
        for key, values in tensors.items():
            array = np.asarray(values, order="C")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            try:
                Site.of_key(key, index)
                dtype_of(array)
            except TraceError as error:
                raise TraceError(f"{self.path}: step {index}: tensor {key!r}: {error}") from None
            arrays[key] = array
        return arrays

    def close(self, complete: bool = True) -> None:  # noqa: FBT001, FBT002 - close(False) is never written
        """Say whether the run is complete, and end the trace. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._ahead.forget()
            self._manifest = replace(self._manifest, complete=complete)
            self._put_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(complete=kind is None)

    def _text(self) -> bytes:
        try:
            text = manifest_text(self._manifest)
        except (TypeError, ValueError, RecursionError) as error:
            raise TraceError(f"{self.path / MANIFEST}: engine or model cannot be written as JSON: {error}") from None
        if len(text) > MAX_JSON:
            raise TraceError(f"{self.path / MANIFEST}: would have {len(text):,} bytes, at most {MAX_JSON:,} are read")
        return text

    def _put_manifest(self) -> None:
        text = self._text()
        self._put(MANIFEST, lambda path: path.write_bytes(text))

    def _put(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file whole under a temporary name, then rename it into place."""
        temporary = self.path / f"{name}.tmp"
        _written(temporary, write)
        _renamed(temporary, self.path / name)


class _Ahead:
    """The parts of the step in hand that are written, the last one perhaps in this moment."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.files: list[Path] = []
        self._thread = ThreadPoolExecutor(1, "firstdiff-writer")
        self._last: Future[None] | None = None

    def write(self, arrays: dict[str, NDArray[Any]], step: Step, file: Path) -> None:
        """Begin to write a part, once the one before is written."""
        self.wait()
        self.keys += arrays
        self.files.append(file)
        self._last = self._thread.submit(_written, file, lambda path: _save(arrays, step, path))

    def wait(self) -> None:
        """Wait until all parts are written."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def end(self) -> None:
        """Wait until all parts are written, and end the thread."""
        self._thread.shutdown()
        self.wait()

    def forget(self) -> None:
        """Remove parts of a step that was not ended."""
        with contextlib.suppress(TraceError):
            self.end()
        for file in self.files:
            with contextlib.suppress(OSError):
                file.unlink()


def _written(temporary: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, whole or not at all."""
    try:
        write(temporary)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TraceError(f"{temporary.with_suffix('')}: cannot be written: {error}") from None


def _renamed(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TraceError(f"{target}: cannot be written: {error}") from None


def _save(arrays: dict[str, NDArray[Any]], step: Step, path: Path) -> None:
    """Write one step's file. The tokens go along, so that the file is a trace of its own."""
    metadata = {"tokens": json.dumps(step.tokens), "positions": json.dumps(step.positions)}
    save_file(arrays, path, metadata)


def _prepare(path: Path) -> None:
    """Make the folder, or take an earlier trace out of it, manifest first."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        inside = sorted(path.iterdir(), key=lambda file: file.name != MANIFEST)
        if inside and not _is_ours(path / MANIFEST):
            raise TraceError(f"{path}: is not empty and no firstdiff trace: choose another folder")
        for file in inside:
            if _OURS.fullmatch(file.name):
                file.unlink()
    except FileExistsError:
        raise TraceError(f"{path}: is a file: a trace is a folder") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from None


def _is_ours(manifest: Path) -> bool:
    try:
        with manifest.open("rb") as file:
            return parse_object(file.read(MAX_JSON + 1), str(manifest)).get("format") == FORMAT
    except (OSError, TraceError):
        return False
