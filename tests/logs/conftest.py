"""What tests of logs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders.logs import Read
from firstdiff.dumps.log import Log, read_log


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: str | bytes, **options: Any) -> Log:
        path = tmp_path / "engine.log"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_log(path, **options)

    return read
