"""Record what an engine computes as a firstdiff trace. Python's standard library and this file alone.

::

    dump = firstdiff_writer.Writer(None, "my-engine")  # once; None: the folder that $FIRSTDIFF_DUMP names
    dump.step(tokens, first_position)                  # at the top of each forward pass
    dump.put("Qcur", q, layer)                         # after each value; without a layer outside the blocks
    dump.close()                                       # at the end, or `with Writer(...) as dump:`

Arrays are numpy's, torch's (any device; bfloat16 keeps its bits), jax's, or anything with Python's buffer protocol.
Without a folder every call does nothing, so that they can stay in the code. Each step is written whole and renamed
into place when the next one begins: a crash loses the step in hand and nothing before it. What goes wrong is said on
stderr and never stops the engine; after an error of the disk nothing more is recorded.
"""  # noqa: INP001 - it is copied into other people's engines

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "d": "F64", "f": "F32", "e": "F16", "i": "I32", "q": "I64", "h": "I16", "b": "I8", "B": "U8",
}  # fmt: skip


class Writer:
    """Writes one trace.

    Parameters
    ----------
    folder
        Where; an earlier trace there is removed. None for ``$FIRSTDIFF_DUMP``, and nothing if that is not set.
    engine
        The engine's name.
    names
        Whose names the tensors have: ``firstdiff``, ``llama.cpp``, ``hf``, or a table from yours to firstdiff's.
    layouts
        The axes of a point, outermost first, where they are not firstdiff's.
    about
        More of the engine: ``arithmetic="f32"``, ``version``, ``backend``.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        engine: str,
        *,
        names: str | Mapping[str, str] = "firstdiff",
        layouts: Mapping[str, Sequence[str]] | None = None,
        **about: str,
    ) -> None:
        folder = folder or os.environ.get("FIRSTDIFF_DUMP")
        self._folder = Path(folder) if folder else None
        self._said = {"engine": {"name": engine, **about}, "names": names, "layouts": layouts or {}}
        self._steps: list[dict[str, list[int]]] = []
        self._now: dict[str, list[int]] | None = None  # the step in hand
        self._header: dict[str, Any] = {}
        self._data: Any = None  # the file of its tensors
        self._guarded(self._begin)

    def step(self, tokens: Sequence[int], first_position: int = 0) -> None:
        """Begin a forward pass over tokens at consecutive positions; the pass before it is written."""
        self._guarded(self._end_step)
        self._guarded(self._begin_step, tokens, first_position)

    def put(self, point: str, array: Any, layer: int | None = None) -> None:  # noqa: ANN401 - any array
        """Record an array at a point, in its own dtype; of the same name twice in a step, the first."""
        if self._now is not None:
            self._guarded(self._put, point if layer is None else f"{point}-{int(layer)}", array)

    def close(self) -> None:
        """Write the last step, and mark the trace complete."""
        self._guarded(self._end_step)
        self._guarded(self._manifest, True)
        self._leave()

    def __enter__(self) -> Writer:  # noqa: PYI034 - typing.Self is younger than some engines' Python
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.close()
        self._leave()

    def _guarded(self, act: Any, *given: object) -> None:  # noqa: ANN401 - any method
        if self._folder is None:
            return
        try:
            act(*given)
        except OSError as error:
            print(f"firstdiff: {self._folder}: {error}: nothing more is recorded", file=sys.stderr)  # noqa: T201
            self._leave()
        except Exception as error:  # noqa: BLE001 - recording never stops an engine
            print(f"firstdiff: not recorded: {error}", file=sys.stderr)  # noqa: T201

    def _leave(self) -> None:
        self._folder = self._now = None
        if self._data is not None:
            self._data.close()

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / name

    def _begin(self) -> None:
        self._path("").mkdir(parents=True, exist_ok=True)
        self._path("trace.json").unlink(missing_ok=True)
        for file in self._path("").glob("step-*.safetensors*"):
            file.unlink()
        self._manifest(False)

    def _begin_step(self, tokens: Sequence[int], first_position: int) -> None:
        ids = [int(token) for token in tokens]
        self._now = {"tokens": ids, "positions": [*range(int(first_position), int(first_position) + len(ids))]}
        self._header = {"__metadata__": {what: json.dumps(numbers) for what, numbers in self._now.items()}}
        self._data = self._path(f"step-{len(self._steps):03d}.data.safetensors.tmp").open("w+b")

    def _end_step(self) -> None:
        if self._now is None:
            return
        name = f"step-{len(self._steps):03d}.safetensors"
        header = json.dumps(self._header).encode()
        header += b" " * (-len(header) % 8)
        with self._data as data, self._path(f"{name}.tmp").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            data.seek(0)
            shutil.copyfileobj(data, file)
        Path(data.name).unlink()
        self._path(f"{name}.tmp").replace(self._path(name))
        self._steps.append(self._now)
        self._now = None
        self._manifest(False)

    def _manifest(self, complete: bool) -> None:  # noqa: FBT001 - always beside its name
        said = {"format": "firstdiff-trace", "version": 1, **self._said, "complete": complete, "steps": self._steps}
        parts = ",\n".join(f"  {json.dumps(part)}: {json.dumps(value)}" for part, value in said.items())
        self._path("trace.json.tmp").write_text(f"{{\n{parts}\n}}\n")
        self._path("trace.json.tmp").replace(self._path("trace.json"))

    def _put(self, key: str, array: Any) -> None:  # noqa: ANN401 - any array
        key = re.sub(r'[^ -~]|["/\\@]', "_", key)
        if key in self._header:
            raise ValueError(f"{key} is put twice in a step, and the first is kept")
        dtype, shape, raw = contents(array)
        begin = self._data.tell()
        self._data.write(raw)
        self._header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + len(raw)]}


def contents(array: Any) -> tuple[str, list[int], bytes]:  # noqa: ANN401 - any array
    """Return an array's dtype as safetensors names it, its shape, and its bytes, row-major and little-endian."""
    if hasattr(array, "detach"):  # torch: numpy has no bfloat16 and no 8-bit floats, their bits go as integers
        array = array.detach().cpu().contiguous()
        name, torch = str(array.dtype).rpartition(".")[2], sys.modules["torch"]
        bits = {"bfloat16": torch.int16, "float8_e4m3fn": torch.uint8, "float8_e5m2": torch.uint8}.get(name)
        raw = (array if bits is None else array.view(bits)).numpy().tobytes()
    elif hasattr(array, "dtype") and hasattr(array, "tobytes"):  # numpy and jax
        name = str(getattr(array.dtype, "name", array.dtype))
        if getattr(array.dtype, "byteorder", "=") == (">" if sys.byteorder == "little" else "="):
            array = array.astype(array.dtype.newbyteorder("<"))
        raw = array.tobytes()
    else:  # array.array, memoryview, mlx
        array = memoryview(array)
        name, raw = array.format, array.tobytes()
    if name not in DTYPES:
        raise TypeError(f"dtype {name} cannot be recorded (those that can: {', '.join(DTYPES)})")
    return DTYPES[name], [int(n) for n in array.shape], raw
