"""Layers judged by themselves and made one verdict: to the byte that of one process, whatever the parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.command_line import Command, assert_refused
from builders.engines import recorded_by_reference
from builders.models import synthetic
from builders.traces import rewrite_trace
from firstdiff.dumps import open_trace
from firstdiff.model.engine import open_model
from firstdiff.model.layer_bytes import bytes_of
from firstdiff.model.synthetic import Llama
from firstdiff.runs.judge import judge
from firstdiff.runs.run import begun

SHAPE = Llama(n_layer=7, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96)
PARTS = ("0-2", "3,4,6", "5")
FEW = ("embd", "attn_norm", "kqv_out", "l_out", "result_norm", "result_output")
LAST = {"ffn_out-2", "l_out-2", "Qcur-4", "ffn_norm-1"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and traces of it: right, wrong at one layer and at two, with few rows, and with few points."""
    folder = tmp_path_factory.mktemp("kept")
    model = synthetic(folder / "model.gguf", SHAPE)
    recorded_by_reference(model, folder / "right")
    recorded_by_reference(model, folder / "wrong", ("rope-base", 2))
    recorded_by_reference(model, folder / "wrong twice", ("rope-base", 2), ("norm-eps", 4))
    rewrite_trace(folder / "wrong", folder / "few rows", lambda name, x: x[-1:] if name in LAST else x)
    rewrite_trace(folder / "wrong", folder / "few points", lambda name, x: x if name.partition("-")[0] in FEW else None)
    return folder


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(capfd)


def verdict_of(command: Command, kept: Path, trace: str, parts: tuple[str | None, ...], *more: object) -> bytes:
    """What merging parts of a trace gives."""
    folders = []
    for number, layers in enumerate(parts):
        folders.append(f"part-{number}")
        some = () if layers is None else ("--layers", layers)
        ran = command("judge-layers", kept / "model.gguf", kept / trace, *some, "--out", folders[-1], *more)
        assert (ran.code, ran.err) == (0, "")
    command("merge", *reversed(folders), "--out", "whole")
    return Path("whole/verdict.json").read_bytes()


@pytest.mark.parametrize("trace", ["right", "wrong", "wrong twice", "few rows", "few points"])
def test_parts_are_one_verdict_to_the_byte(command: Command, kept: Path, trace: str) -> None:
    one, several = (verdict_of(command, kept, trace, parts) for parts in ((None,), PARTS))
    assert one == several
    of_one_process = judge(begun(kept / "model.gguf"), open_trace(kept / trace))
    told, wanted = json.loads(one), json.loads(of_one_process.to_json())
    assert told | {"run": None} == wanted | {"run": None}


def test_a_witness_goes_along(command: Command, kept: Path) -> None:
    several = verdict_of(command, kept, "wrong", PARTS, "--witness", kept / "right")
    assert verdict_of(command, kept, "wrong", (None,), "--witness", kept / "right") == several
    told = json.loads(several)
    assert told["first"]["site"] == "Qcur_rope-2"
    assert told["witness"]["agrees"] > 0
    assert told["explanations"][0]["hypothesis"] == "rope-base"


def test_each_site_is_in_the_part_of_its_layer(command: Command, kept: Path) -> None:
    verdict_of(command, kept, "right", PARTS)
    for number, layers in enumerate((["", "0", "1", "2"], ["", "3", "4", "6"], ["5"])):
        told = json.loads(Path(f"part-{number}/layers.json").read_text())
        sites = {s["site"].partition("@")[0].partition("-")[2] for s in told["candidate"]["sites"]}
        assert sorted(sites) == layers


def test_every_byte_of_every_tensor_is_in_the_map_once(kept: Path) -> None:
    model = open_model(kept / "model.gguf")
    needed = bytes_of(model)
    assert needed.keys() == {"outside", *map(str, range(SHAPE.n_layer))}
    seen = np.zeros(model.gguf.path.stat().st_size, int)
    for files in needed.values():
        for start, stop in files[str(model.gguf.path)]:
            seen[start:stop] += 1
    assert seen.max() == 1
    for name in model.gguf.tensors:
        start = model.gguf.raw(name).ctypes.data - model.gguf.mapped[model.gguf.path].ctypes.data
        assert seen[start : start + model.gguf.raw(name).size].all()


def test_a_layer_is_judged_where_no_other_layer_is(command: Command, kept: Path, tmp_path: Path) -> None:
    """On a file of which all bytes but those that the map names are zero; the trace states its arithmetic."""
    partial, path = tmp_path / "partial.gguf", kept / "model.gguf"
    needed, whole = bytes_of(open_model(path)), path.read_bytes()
    with partial.open("wb") as file:
        file.truncate(len(whole))
        for layer in ("outside", "5"):
            for start, stop in needed[layer][str(path)]:
                file.seek(start)
                file.write(whole[start:stop])
    given = kept / "wrong", "--layers", "5"
    assert_refused(command("judge-layers", partial, *given, "--out", "b"), 3, "is a trace of another model")
    assert command("judge-layers", partial, *given, "--out", "b", "--partial").code == 0
    assert command("judge-layers", path, *given, "--out", "a").code == 0
    a, b = (json.loads(Path(out, "layers.json").read_text()) for out in ("a", "b"))
    assert a | {"model": ""} == b | {"model": ""}
    command("judge-layers", path, kept / "wrong", "--layers", "0-4,6", "--out", "c")
    assert command("merge", "c", "b", "--out", "merged").code == 1
    assert command("merge", "b", "c", "--out", "again", "--model", path).code == 1
    whole = verdict_of(command, kept, "wrong", (None,))
    assert Path("merged/verdict.json").read_bytes() == whole


def test_the_map_is_printed(command: Command, kept: Path) -> None:
    told = json.loads(command("judge-layers", kept / "model.gguf", "--bytes").out)
    assert told.keys() == {"outside", *map(str, range(SHAPE.n_layer))}


def changed(part: int, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(f"part-{part}/layers.json")
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


SPOILT: dict[str, tuple[Callable[[], object], int, str]] = {
    "a part is gone": (lambda: Path("part-2/layers.json").unlink(), 2, "part-2: holds no layers of a trace"),
    "another model": (lambda: changed(1, lambda t: t.update(header="0")), 2, "header differs"),
    "read otherwise": (lambda: changed(1, lambda t: t["candidate"].update(read_as="0")), 2, "was read differs"),
    "a site is missing": (lambda: changed(1, lambda t: t["candidate"]["sites"].pop()), 2, "is in no part"),
    "no part": (lambda: Path("part-1/layers.json").write_text("{}"), 3, "is no part that this firstdiff reads"),
    "no value": (lambda: changed(1, lambda t: t.update(layers="all")), 3, "layers must be a list"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_parts_that_are_not_of_one_trace_are_refused(command: Command, kept: Path, spoilt: str) -> None:
    spoil, code, said = SPOILT[spoilt]
    verdict_of(command, kept, "right", PARTS)
    spoil()
    assert_refused(command("merge", "part-0", "part-1", "part-2", "--out", "again"), code, said)


def test_layers_in_no_part_are_named(command: Command, kept: Path) -> None:
    verdict_of(command, kept, "right", PARTS)
    assert_refused(command("merge", "part-0", "part-2", "--out", "again"), 2, "layers 3, 4, 6 are in no part")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--layers", "5-9", "--out", "p"), "there is no layer 7"),
        (("--layers", "3-1", "--out", "p"), "is no range of layers"),
        (("--layers", "x", "--out", "p"), "is no range of layers"),
        ((), "--out is missing"),
    ],
)
def test_what_is_no_layer_is_refused(command: Command, kept: Path, given: tuple[str, ...], said: str) -> None:
    assert_refused(command("judge-layers", kept / "model.gguf", kept / "right", *given), 2, said)


def test_options_for_a_gate_are_refused_for_layers(command: Command, kept: Path) -> None:
    verdict_of(command, kept, "right", (None,))
    assert_refused(command("merge", "part-0", "--out", "again", "--history", "h"), 2, "--history: is for the cases")
