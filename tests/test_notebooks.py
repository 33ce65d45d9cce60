"""The notebooks: executed from top to bottom, and kept small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
MOST = 300_000  # bytes of a notebook with its outputs

CLAIMS = {
    "first_divergence.ipynb": [
        "<Verdict diverges: Qcur_rope-17 is the first to go wrong",
        "a rope base of 10000 in place of the file's",
        "<Verdict agrees: Every one of the",
    ],
    "case_study.ipynb": [
        "token-appended-eos",
        "token-whitespace",
        "weight-reinterpreted",
        "residual-clipped      {'bound': 10.0}",
        "head-transposed",
        "<Verdict agrees: Every one of the",
    ],
    "rope.ipynb": [
        "half-split pairs, where the order of the head dimensions needs interleaved ones (rope-pairing)",
        "--bug rope-base changes no value at any layer",
    ],
    "quantisation_noise.ipynb": ["'agrees'", "(norm-eps)"],
}
"""What each notebook comes to, as its outputs say it."""

EXECUTE = (
    "import sys, nbformat\n"
    "from nbclient import NotebookClient\n"
    "book = nbformat.read(sys.argv[1], as_version=4)\n"
    "NotebookClient(book, timeout=900, kernel_name='python3').execute()\n"
    "nbformat.write(book, sys.argv[2])\n"
)


def outputs(book: dict[str, Any]) -> str:
    """All that a notebook's cells have printed, and the plain texts of what they show."""
    told = []
    for cell in book["cells"]:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            told.append("".join(text))
    return "\n".join(told)


def test_every_notebook_has_its_claims() -> None:
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_notebook_is_kept_with_its_outputs_and_small(name: str) -> None:
    path = NOTEBOOKS / name
    assert path.stat().st_size < MOST
    book = json.loads(path.read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [claim for claim in CLAIMS[name] if claim not in outputs(book)] == []
    assert str(Path.home()) not in path.read_text("utf-8")


@pytest.mark.notebook
@pytest.mark.llama
@pytest.mark.smollm2
@pytest.mark.parametrize("name", CLAIMS)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    command = [sys.executable, "-P", "-c", EXECUTE, str(NOTEBOOKS / name), str(executed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "firstdiff-runs", ignore_errors=True)  # some 100 MB of traces
    assert done.returncode == 0, done.stderr
    told = outputs(json.loads(executed.read_text("utf-8")))
    assert [claim for claim in CLAIMS[name] if claim not in told] == []
    assert executed.stat().st_size < MOST
