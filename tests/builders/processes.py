"""What processes of a pool are given to do."""

from __future__ import annotations

import os
import time
from pathlib import Path


def squared(number: int) -> int:
    """The square; the first ends last."""
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def squared_or_ended(number: int) -> int:
    """The square; of 3 and 5 there is none, and the process ends."""
    if number in (3, 5):
        os._exit(9)
    return number * number


def refused(number: int) -> int:
    """No square of 2."""
    if number == 2:
        raise ValueError("no two")
    return number * number


def waiting_once(case: tuple[int, Path]) -> int:
    """The square; the first that is given 2 says which process it is, and waits to be killed."""
    number, folder = case
    if number == 2 and not (folder / "waits").exists():
        (folder / "waits").write_text(str(os.getpid()))
        time.sleep(60)
    return number * number
