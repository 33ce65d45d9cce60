"""Tables that are printed line by line, and kept."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def printed(lines: Iterable[tuple[str, int]], out: Path | None) -> int:
    """Print lines as they come, write them to a file where one is asked for, and add up what is wrong in them."""
    done, wrong = [], 0
    for line, count in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        done.append(line)
        wrong += count
    if out is not None:
        out.write_text("\n".join(done) + "\n", encoding="utf-8")
    return wrong
