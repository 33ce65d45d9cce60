"""Cases on a cluster: two workers, each a process, of which one is killed while it judges."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from builders.command_line import Command, assert_refused
from builders.gate import Repository
from builders.processes import waiting_once
from firstdiff.gate.cluster import on_cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # of dask and tornado, when a worker is killed


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


@pytest.fixture
def address(cluster: LocalCluster) -> str:
    cluster.scale(2)
    return str(cluster.scheduler_address).replace("tcp://", "dask://")


def test_a_gate_on_a_cluster_finds_what_it_finds_here(repository: Repository, command: Command, address: str) -> None:
    for i in range(3):
        Path(f"trace-{i}").symlink_to(repository.kept / ("wrong" if i == 1 else "right"))
    traces = "".join(f'case-{i} = "trace-{i}"\n' for i in range(3))
    repository.config(f'[models]\ntiny = "tiny.gguf"\n[traces]\n{traces}')
    repository.gate("--force-regen")
    assert command("gate", "--out", "here").code == 1
    assert command("gate", "--out", "there", "--on", address).code == 1
    here, there = (json.loads(Path(out, "gate.json").read_text()) for out in ("here", "there"))
    assert json.loads(json.dumps(there).replace("there/", "here/")) == here
    assert Path("there/tiny/case-1/report.html").exists()


def test_a_worker_that_is_killed_costs_no_case_and_none_counts_twice(address: str, tmp_path: Path) -> None:
    """The first to take case 2 waits, and is killed; whoever takes it next judges it."""

    def kill() -> None:
        at = tmp_path / "waits"
        while not at.exists() or not at.read_text():
            time.sleep(0.05)
        os.kill(int(at.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = list(on_cluster([(n, tmp_path) for n in range(6)], waiting_once, address))
    killer.join()
    assert sorted(found) == [(n, n * n) for n in range(6)]


@pytest.mark.parametrize(
    ("given", "said"), [("tcp://127.0.0.1:1", "is no cluster"), ("dask://", "is no cluster"), ("8786", "is no cluster")]
)
def test_what_is_no_address_is_refused(repository: Repository, given: str, said: str) -> None:
    assert_refused(repository.gate("--on", given), 2, said)


def test_where_nobody_answers_is_said(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstdiff.gate.cluster.SECONDS", 1)
    assert_refused(repository.gate("--on", "dask://127.0.0.1:1"), 2, "no dask scheduler answers there")


def test_without_dask_what_to_install_is_said(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert_refused(repository.gate("--on", "dask://127.0.0.1:1"), 2, "pip install 'firstdiff[dask]'")
