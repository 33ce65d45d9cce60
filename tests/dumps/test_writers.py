"""The writers that engines copy: what each language writes is read back bit for bit."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from firstdiff.dumps import Site, Trace, open_trace

HERE = Path(__file__).parent / "writers"
WRITERS = Path(__file__).parents[2] / "dumps" / "writers"
STEPS = (((1, 29896, 2), (0, 1, 2)), ((13,), (3,)), ((7,), (4,)))
NAME = 'an "odd" \\ engine\n\x01'

WARNINGS = ("-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{WRITERS}")
C, CPP = ("gcc", "-std=c99", *WARNINGS), ("g++", "-std=c++17", *WARNINGS, "-x", "c++")


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def in_c(out: Path) -> list[str]:
    run(*C, HERE / "writes.c", "-o", out / "writes")
    return [str(out / "writes")]


def in_two_files_of_cpp(out: Path) -> list[str]:
    """Both include the header, and share one trace."""
    for part in ("1", "2"):
        run(*CPP, "-DPARTS=2", f"-DPART={part}", "-c", HERE / "writes.c", "-o", out / f"{part}.o")
    run("g++", out / "1.o", out / "2.o", "-o", out / "writes")
    return [str(out / "writes")]


def in_c_and_cpp(out: Path) -> list[str]:
    run(*C, "-DPARTS=2", "-DPART=1", "-c", HERE / "writes.c", "-o", out / "1.o", "-Dput_tensors=tensors")
    glue = 'extern "C" void tensors(const int32_t *x, int t, int step, int killed) { put_tensors(x, t, step, killed); }'
    (out / "glue.cpp").write_text(f'#include "{HERE / "writes.c"}"\n{glue}\n')
    run(*CPP, "-DPARTS=2", "-DPART=2", "-c", out / "glue.cpp", "-o", out / "2.o")
    run("g++", out / "1.o", out / "2.o", "-o", out / "writes")
    return [str(out / "writes")]


def in_rust(out: Path) -> list[str]:
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("there is no Rust compiler here: install rustc")
    for source in (HERE / "writes.rs", WRITERS / "firstdiff.rs"):
        shutil.copy(source, out)
    run(rustc, "--edition", "2021", "-D", "warnings", out / "writes.rs", "-o", out / "writes")
    return [str(out / "writes")]


def in_python(out: Path) -> list[str]:
    for source in (HERE / "writes.py", WRITERS / "firstdiff_writer.py"):
        shutil.copy(source, out)
    # Isolated, without site-packages: the standard library is all there is.
    return [sys.executable, "-S", "-E", str(out / "writes.py")]


COMPILED = (in_c, in_two_files_of_cpp, in_c_and_cpp, in_rust)
LANGUAGES = (*(pytest.param(build, marks=pytest.mark.compiler) for build in COMPILED), in_python)


@pytest.fixture(scope="module", params=LANGUAGES, ids=lambda build: build.__name__)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    command: list[str] = request.param(tmp_path_factory.mktemp(request.param.__name__))
    return command


def engine(
    command: list[str], *arguments: str | Path, dump: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {key: text for key, text in os.environ.items() if key != "FIRSTDIFF_DUMP"}
    environment |= {} if dump is None else {"FIRSTDIFF_DUMP": str(dump)}
    words = [*command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def expected(step: int) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    tokens, _ = STEPS[step]
    t = len(tokens)
    values = (np.arange(8 * t) * 7 % 31 * 0.125 - 1.5 + step).astype(np.float32)
    halves = np.array([0x3C00, 0xC000, 0x0001, 0x7BFF], np.uint16).view(np.float16).reshape(1, 2, 2)
    brains = (np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], np.uint32) << 16).view(np.float32)
    return {
        "embd": ("f32", values[: 4 * t].reshape(t, 4)),
        "Qcur-0": ("f32", values.reshape(2, t, 4)),
        "Kcur-11": ("f16", halves.astype(np.float32)),
        "Vcur-11": ("bf16", brains),
        "ids_of_it": ("i32", np.array(tokens, np.float64)),  # '/' and '"' are not for names
        "scores-3": ("f64", (1.0 / (3 + np.arange(2 * t) + step)).reshape(t, 2)),
    }


def same(trace: Trace, step: int, wanted: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    sites = [site for site in trace if site.step == step]
    assert [site.key for site in sites] == list(wanted)  # in the order in which they were put
    for site in sites:
        dtype, values = wanted[site.key]
        assert trace.dtype(site) == dtype
        read = trace[site]
        assert read.shape == values.shape
        assert read.dtype == values.dtype
        assert read.tobytes() == values.tobytes()


def test_what_is_written_is_read_back_bit_for_bit(program: list[str], tmp_path: Path) -> None:
    done = engine(program, tmp_path / "deep" / "run")
    assert done.returncode == 0
    assert "embd" in done.stderr  # put twice, which is said
    trace = open_trace(tmp_path / "deep" / "run")
    assert trace.complete
    assert not trace.notes
    assert trace.engine == {"name": NAME, "arithmetic": "f32"}
    assert trace.names == "firstdiff"
    assert trace.layouts == {"Qcur": ("head", "token", "head_dim")}
    assert [(step.tokens, step.positions) for step in trace.steps] == [*STEPS]
    for step in range(3):
        same(trace, step, expected(step))
    manifest = json.loads((tmp_path / "deep" / "run" / "trace.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("firstdiff-trace", 1)


def test_a_step_is_a_trace_of_its_own(program: list[str], tmp_path: Path) -> None:
    assert engine(program, tmp_path).returncode == 0
    trace = open_trace(tmp_path / "step-001.safetensors")
    assert (trace.steps[0].tokens, trace.steps[0].positions) == STEPS[1]


def test_a_killed_engine_loses_the_step_in_hand(program: list[str], tmp_path: Path) -> None:
    assert engine(program, tmp_path, "kill").returncode == -signal.SIGKILL
    trace = open_trace(tmp_path)
    assert not trace.complete
    assert [(step.tokens, step.positions) for step in trace.steps] == [*STEPS[:2]]
    for step in range(2):
        same(trace, step, expected(step))


def test_a_second_run_replaces_the_first(program: list[str], tmp_path: Path) -> None:
    assert engine(program, tmp_path).returncode == 0
    assert engine(program, tmp_path, "kill").returncode == -signal.SIGKILL
    assert len(open_trace(tmp_path).steps) == 2
    assert engine(program, tmp_path).returncode == 0
    assert open_trace(tmp_path).complete
    steps = [f"step-00{i}.safetensors" for i in range(3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*steps, "trace.json"]


def test_without_a_folder_nothing_happens(program: list[str], tmp_path: Path) -> None:
    done = engine(program, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [*tmp_path.iterdir()]


def test_the_environment_names_the_folder(program: list[str], tmp_path: Path) -> None:
    assert engine(program, dump=tmp_path / "run").returncode == 0
    assert len(open_trace(tmp_path / "run").steps) == 3


def test_a_folder_that_cannot_be_written_is_reported_once_and_stops_nothing(program: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = engine(program, tmp_path / "file" / "run")
    assert done.returncode == 0
    assert done.stderr.startswith("firstdiff: ")
    assert "nothing more is recorded" in done.stderr
    assert done.stderr.count("\n") == 1


def test_writers_are_short() -> None:
    lengths = {
        file.name: len(file.read_text().splitlines())
        for file in WRITERS.iterdir()
        if file.is_file() and file.suffix != ".md"
    }
    assert set(lengths) == {"firstdiff.h", "firstdiff.rs", "Firstdiff.swift", "firstdiff_writer.py"}
    assert max(lengths.values()) < 200


if shutil.which("swiftc"):

    @pytest.mark.compiler
    def test_the_swift_writer_compiles(tmp_path: Path) -> None:
        (tmp_path / "main.swift").write_text('Firstdiff.open(nil, engine: "e")\nFirstdiff.close()\n')
        run("swiftc", WRITERS / "Firstdiff.swift", tmp_path / "main.swift", "-o", tmp_path / "writes")


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("firstdiff_writer", WRITERS / "firstdiff_writer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_python_takes_arrays_of_numpy(writer: ModuleType, tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    with writer.Writer(tmp_path, "numpy", names={"their.{layer}.x": "Qcur"}) as dump:
        dump.step(np.array([5, 6]), 2)
        dump.put("turned", x.T, 1)
        dump.put("other bytes", x.astype(">f4"))
        dump.put("half", x.astype(np.float16))
        dump.put("bytes", np.arange(3, dtype=np.uint8))
    trace = open_trace(tmp_path)
    assert (trace.steps[0].tokens, trace.steps[0].positions) == ((5, 6), (2, 3))
    assert trace.names == {"their.{layer}.x": "Qcur"}
    wanted = {
        "turned-1": ("f32", x.T),
        "other bytes": ("f32", x),
        "half": ("f16", x.astype(np.float16).astype(np.float32)),
        "bytes": ("u8", np.arange(3, dtype=np.float32)),
    }
    same(trace, 0, wanted)


@pytest.mark.torch
def test_python_takes_tensors_of_torch(writer: ModuleType, tmp_path: Path) -> None:
    import torch

    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    weights = torch.tensor(x, requires_grad=True)
    with writer.Writer(tmp_path, "torch", names="hf", backend="cpu") as dump:
        dump.step(torch.tensor([5, 6]), torch.tensor(2))
        dump.put("grad", weights)
        dump.put("brain", weights.to(torch.bfloat16).T)
        dump.put("eight", weights.to(torch.float8_e4m3fn))
        dump.put("scalar", torch.tensor(True))
    trace = open_trace(tmp_path)
    assert (trace.steps[0].tokens, trace.steps[0].positions) == ((5, 6), (2, 3))
    assert trace.names == "hf"
    assert trace.engine == {"name": "torch", "backend": "cpu"}
    brain = torch.tensor(x).to(torch.bfloat16).float().numpy().T
    wanted = {
        "grad": ("f32", x),
        "brain": ("bf16", brain),
        "eight": ("f8_e4m3", torch.tensor(x).to(torch.float8_e4m3fn).float().numpy()),
        "scalar": ("bool", np.array(1, np.float32)),
    }
    same(trace, 0, wanted)


def test_python_says_what_it_cannot_record_and_goes_on(
    writer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = writer.Writer(tmp_path, "e")
    dump.put("before any step", np.zeros(2))
    dump.step([1])
    dump.put("strings", np.array(["a"]))
    dump.put("fine", np.zeros(2, np.float32))
    dump.close()
    assert "str" in capsys.readouterr().err
    assert open_trace(tmp_path).sites() == [Site(0, None, "fine")]


def test_an_exception_leaves_python_s_trace_cut_short(writer: ModuleType, tmp_path: Path) -> None:
    def crash() -> None:
        with writer.Writer(tmp_path, "e") as dump:
            for step in range(2):
                dump.step([1], step)
                dump.put("x", np.zeros(2, np.float32))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    trace = open_trace(tmp_path)
    assert not trace.complete
    assert len(trace.steps) == 1
