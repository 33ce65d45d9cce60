"""When the kernels of the weight types are compiled, and where they are kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from firstdiff.model import quants


def test_importing_the_type_table_does_not_import_numba() -> None:
    code = "import sys, firstdiff.model.quants; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_without_any_cache_directory_kernels_still_work(tmp_path: Path) -> None:
    package = tmp_path / "firstdiff"
    shutil.copytree(Path(quants.__file__).parent, package / "model", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    # A regular file where numba wants a directory: this stops even the superuser.
    blocked = package / "model" / "__pycache__"
    blocked.touch()
    code = (
        "import logging, numpy as np; logging.basicConfig(level=logging.DEBUG)\n"
        "from firstdiff.model import quants\n"
        "raw = np.array([0, 60, *[0x98] * 16], np.uint8)\n"
        "print(quants.__file__, quants.dequantize(raw, quants.BY_NAME['Q4_0'])[[0, 16]])\n"
    )
    places = dict.fromkeys(["NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"], str(blocked / "below"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **places, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{package / 'model' / 'quants.py'} [0. 1.]\n"
    assert "kernel Q4_0 is compiled without a cache" in done.stderr


def test_a_kernel_is_compiled_anew_where_a_table_that_it_reads_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "firstdiff" / "model"
    shutil.copytree(Path(quants.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder.parent / "__init__.py").touch()
    code = (
        "import numpy as np\n"
        "from firstdiff.model import quants\n"
        "print(quants.dequantize(np.array([0, 60, *[0] * 16], np.uint8), quants.BY_NAME['IQ4_NL'])[0])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def first_value() -> str:
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert first_value() == "-127.0\n"
    tables = folder / "few_bits.py"
    tables.write_text(tables.read_text().replace("[-127, -104", "[-126, -104"))
    assert first_value() == "-126.0\n"


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import IndexDataCacheFile

    from firstdiff.model import kernels

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "load", lambda *_: None)
    monkeypatch.setattr(IndexDataCacheFile, "save", full)

    out = np.empty(1, np.float32)
    kernels.load("BF16")(np.array([0x80, 0x3F], np.uint8), out)

    assert out[0] == 1
