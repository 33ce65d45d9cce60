"""Engines whose logits are not those of the model or the tokens that they are given: one clear line for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.black_boxes import ReferenceBox
from builders.models import TINY, synthetic
from firstdiff.errors import CaptureError
from firstdiff.model.engine import Model, open_model
from firstdiff.probing.asking import Asking
from firstdiff.probing.control import control
from firstdiff.probing.logits import read_logits
from firstdiff.runs.run import Run

Floats = npt.NDArray[np.float32]

TOKENS = (70, 71, 72, 73, 74)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY))


@dataclass(eq=False)
class Box:
    """A right engine whose logits, model or tokens are changed on the way."""

    after: Callable[[Floats], Floats] = lambda y: y
    tokens: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ids
    keeps: bool = False
    name: str = "a box"
    decodes: bool = False
    _first: Path | None = None
    _kept: Floats | None = None

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        if self.keeps and self._kept is not None:
            return self._kept
        self._kept = self.after(ReferenceBox().logits(model, self.tokens(tokens), width, parts))
        return self._kept


def holes(y: Floats) -> Floats:
    y[2, 5] = np.nan
    return y


WRONG: dict[str, tuple[Box, tuple[str, ...]]] = {
    "keeps its first model": (Box(keeps=True), ("the same logits for two models", "kept the first model")),
    "the same number everywhere": (Box(after=lambda y: 0 * y + 0.25), ("are the same number (0.25)",)),
    "zeros everywhere": (Box(after=lambda y: 0 * y), ("all logits are 0", "is not added to what the layer gives")),
    "probabilities": (
        Box(after=lambda y: np.exp(y) / np.exp(y).sum(-1, keepdims=True)),
        ("what it gives are probabilities", "before the softmax"),
    ),
    "log probabilities": (
        Box(after=lambda y: y - np.log(np.exp(y).sum(-1, keepdims=True))),
        ("what it gives are log probabilities", "before the softmax"),
    ),
    "NaN": (Box(after=holes), ("1 of 1,600 logits are NaN or infinite, the first at token 2, id 5",)),
    "rows in another order": (Box(after=lambda y: y[::-1].copy()), ("the logits of token 0 are those of token 4",)),
    "a BOS before the prompt": (
        Box(tokens=lambda t: [t[-1], *t[:-1]]),
        ("the logits of token 0 are those of token 4",),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_such_an_engine_does_is_said_in_one_line(model: Model, tmp_path: Path, name: str) -> None:
    box, words = WRONG[name]
    with pytest.raises(CaptureError) as caught:
        control(Asking(Run(model), box, tmp_path, 4), TOKENS)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_engine_in_any_arithmetic_passes(model: Model, tmp_path: Path) -> None:
    def coarse(y: Floats) -> Floats:
        return (np.round(y * 8) / 8).astype(np.float32)

    for box in (Box(), Box(after=coarse), ReferenceBox(last=True)):
        answer = control(Asking(Run(model), box, tmp_path, 4), TOKENS)
        assert answer.logits.shape == (len(TOKENS), answer.model.hp.n_vocab)


# The file of logits


ROWS = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)


def as_npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), ROWS[None])


def as_text(path: Path) -> None:
    path.with_suffix(".json").write_text(str(ROWS.tolist()))


def as_safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"logits": ROWS}, path.with_suffix(".safetensors"))


@pytest.mark.parametrize("write", [ROWS.tofile, as_npy, as_text, as_safetensors])
def test_logits_are_read_from_any_usual_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "logits")
    assert np.array_equal(read_logits(tmp_path, tokens=3, width=7), ROWS)
    assert np.array_equal(read_logits(tmp_path, tokens=1, width=21), ROWS.reshape(1, 21))


def test_a_padded_vocabulary_is_cut_where_the_shape_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.pad(ROWS, ((0, 0), (0, 5))))
    assert np.array_equal(read_logits(tmp_path, tokens=3, width=7), ROWS)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda _path: None, "wrote no file that begins with 'logits'"),
        (ROWS[:2].tofile, "wrote 14 logits to logits, where 3 tokens and a vocabulary of 7 give"),
        (lambda path: path.write_bytes(b"\1" * 5), "5 bytes, which are no whole float32 numbers"),
        (lambda path: path.write_text("1 2 x"), "5 bytes, which are no whole float32 numbers"),
        (lambda path: path.write_text("1 2 1e"), "could not convert string to float"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "its logits cannot be read"),
    ],
)
def test_what_is_no_file_of_logits_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    write(tmp_path / "logits")
    with pytest.raises(CaptureError, match="--engine: ") as caught:
        read_logits(tmp_path, tokens=3, width=7)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
