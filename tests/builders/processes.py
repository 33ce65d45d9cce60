"""What processes of a pool are given to do."""

from __future__ import annotations

import os
import time


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
