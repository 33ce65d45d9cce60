"""Probes of architectures that firstdiff does not describe: llama.cpp's graph says what their models do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.every_architecture import toy
from firstdiff.engines.opening import open_reference
from firstdiff.errors import CaptureError
from firstdiff.probing.probing import probe
from firstdiff.runs.run import Run

pytestmark = pytest.mark.llama

TOKENS = (10, 25, 41, 57, 73, 88, 104, 120)


@dataclass(eq=False)
class LlamaCpp:
    """llama.cpp, of which only the logits are seen."""

    name: str = "llama.cpp"
    decodes: bool = True

    def logits(
        self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        import llama_cpp

        engine = llama_cpp.Llama(str(model), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
        for start, end in pairwise([0, *accumulate(parts or (len(tokens),))]):
            engine.eval(tokens[start:end])
        return np.array(engine.scores[: engine.n_tokens, :width], np.float32)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param("gemma2", id="gemma2, which always takes the embedding for the output matrix"),
        pytest.param("phi2", id="phi2, whose output matrix has a bias"),
        pytest.param("mamba", id="mamba, which carries a state and has no cache"),
    ],
)
def test_llama_cpp_agrees_at_once_and_in_parts(llama: None, tmp_path: Path, architecture: str) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    model = open_reference(toy(architecture, tmp_path))
    verdict = probe(Run(model), LlamaCpp(), TOKENS, folder)
    assert verdict.verdict == "agrees", verdict.first
    assert any("the prompt in parts of" in note for note in verdict.notes)
    assert list(folder.iterdir()) == []


def test_an_architecture_whose_probes_give_no_numbers_is_told_so(llama: None, tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    model = open_reference(toy("mpt", tmp_path))
    with pytest.raises(CaptureError, match=r"of mpt .* cannot be probed"):
        probe(Run(model), LlamaCpp(), TOKENS, folder)
    assert list(folder.iterdir()) == []
