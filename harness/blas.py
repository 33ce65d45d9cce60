"""One thread for numpy's matrix products: more of them spin while they wait, and take cores from what runs beside.

With OpenBLAS's own number of threads, one per core, a comparison of 8 s took 60 s of processor time on a busy machine.
One thread is nearly as fast (``make bench``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

_lock = Lock()
_within: list[Any] = []  # threadpoolctl's limits, one for each block that is being run


def one_thread_from_the_start() -> None:
    """Give OpenBLAS one thread in this process and in those it starts, unless the user has given it a number.

    On processors of AMD with AVX-512, for which numpy's OpenBLAS takes kernels of half the width, its name for those
    with AVX-512 is given too. It must be called before numpy is imported: OpenBLAS reads the variables once.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _is_wide_amd():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _is_wide_amd(processors: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the first processor is AMD's and has all that OpenBLAS's kernels for AVX-512 use."""
    try:
        with processors.open(encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 13).split("\n\n")[0]
    except OSError:
        return False
    return "AuthenticAMD" in first and {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= {*first.split()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Give the BLAS of numpy one thread while the block runs, and the user's number back afterwards.

    The number is the whole process's. Where several threads run such blocks side by side, the last one that leaves
    gives the user's number back.
    """
    import numpy as np  # noqa: F401 - only a BLAS that is loaded can be limited
    from threadpoolctl import threadpool_limits

    with _lock:
        _within.append(threadpool_limits(limits=1, user_api="blas") if not _within else _within[0])
    try:
        yield
    finally:
        with _lock:
            limits = _within.pop()
            if not _within:
                limits.restore_original_limits()
