"""What is wrong, said in one line on stderr."""

from __future__ import annotations

import sys

from firstdiff.errors import escaped


def fail(message: str, code: int) -> int:
    """Say in one line what is wrong: what a path or a file smuggles into it is escaped."""
    sys.stderr.write(("\r\x1b[2K" if sys.stderr.isatty() else "") + f"firstdiff: {escaped(message)}\n")
    return code
