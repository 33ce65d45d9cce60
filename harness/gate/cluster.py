"""Cases judged by the workers of a dask cluster."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

from firstdiff.errors import UsageError

SECONDS = 30
"""How long a cluster may take to answer."""

Case = TypeVar("Case")
Result = TypeVar("Result")


def on_cluster(
    cases: Sequence[Case], judged: Callable[[Case], Result], address: str
) -> Iterator[tuple[int, Result | None]]:
    """Judge cases on the workers of a cluster, and yield the number of each with its result, as they end.

    The workers share the files: each goes to the folder that this process is in. A case whose worker is lost goes to
    another one; that which ends three workers has no result (None).

    Raises
    ------
    UsageError
        Where dask is not installed, the address is none, nobody answers there, or a worker does not have the folder.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UsageError("--on: dask is not installed: pip install 'firstdiff[dask]'") from None
    try:
        client = Client(_tcp(address), timeout=SECONDS)
    except (OSError, ValueError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UsageError(f"--on {address}: no dask scheduler answers there ({reason:.100})") from None
    with client:
        pool = client.get_executor(pure=False)
        work = partial(_in_folder, Path.cwd(), judged)
        futures = {pool.submit(work, case): number for number, case in enumerate(cases)}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except KilledWorker:
                yield futures[future], None


def _tcp(address: str) -> str:
    kind, sign, host = address.partition("://")
    if kind != "dask" or not sign or not host:
        raise UsageError(f"--on {address!r:.80}: is no cluster: give dask://HOST:PORT, of a dask scheduler")
    return f"tcp://{host}"


def _in_folder(folder: Path, judged: Callable[[Case], Result], case: Case) -> Result:
    """Judge a case in a folder of the machine that this runs on."""
    try:
        os.chdir(folder)
    except OSError as e:
        raise UsageError(
            f"--on: the worker on {platform.node()} has no folder {folder} ({e.strerror}): let all share it"
        ) from None
    return judged(case)
