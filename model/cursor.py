"""Reading a mapped file front to back, with every step checked against the file's end."""

import struct
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

from firstdiff.model.errors import ModelError, quoted

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PLAUSIBLE = 1 << 46  # 64 TiB: whoever asks for more was damaged, not cut short


@dataclass(slots=True)
class Cursor:
    """A position in a mapped little-endian file.

    Parameters
    ----------
    path
        The file's path, for messages.
    data
        The mapped file.
    pos
        Byte offset of the next read.
    """

    path: Path
    data: mmap
    pos: int = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return len(self.data) - self.pos

    def skip(self, nbytes: int, what: str) -> int:
        """Step over `nbytes` bytes and return where they began; ModelError if the file ends before."""
        start = self.pos
        if nbytes > self.left:
            raise past_end(self.path, what, start, nbytes, len(self.data))
        self.pos = start + nbytes
        return start

    def scalar(self, form: struct.Struct, what: str) -> Any:  # noqa: ANN401  # an int, a float or a bool
        """Read one value of the given form."""
        return form.unpack_from(self.data, self.skip(form.size, what))[0]

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit integer."""
        return int(self.scalar(_U32, what))

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit integer."""
        return int(self.scalar(_U64, what))

    def count(self, least: int, what: str) -> int:
        """Read how many of something follow, each of at least `least` bytes, and refuse the impossible."""
        count = self.u64(f"the number of {what}")
        if count * least > self.left:
            raise ModelError(
                f"{self.path}: declares {count:,} {what} at offset {self.pos - 8:,}, which need "
                f"at least {count * least:,} bytes, with {self.left:,} bytes left in the file: "
                f"{_advice(count * least)}"
            )
        return count

    def name(self, what: str) -> str:
        """Read a length-prefixed string that must be UTF-8: a metadata key or a tensor's name."""
        nbytes = self.u64(f"the length of {what}")
        start = self.skip(nbytes, what)
        raw = self.data[start : self.pos]
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self.path}: {what} at offset {start:,} is not UTF-8 "
                f"(byte {error.start} of {quoted(raw)}): the file is damaged, fetch it again"
            ) from None


def past_end(path: Path, what: str, start: int, nbytes: int, size: int) -> ModelError:
    """Make the error for something that ends after the file does."""
    past = start + nbytes - size
    return ModelError(
        f"{path}: {what} ends {past:,} byte{'s' if past > 1 else ''} past the end of the file "
        f"(offset {start:,}, size {nbytes:,}, file size {size:,}): {_advice(start + nbytes)}"
    )


def _advice(end: int) -> str:
    if end > _PLAUSIBLE:
        return "the file is damaged, fetch it again"
    return "the download is probably cut short"
