"""What a file states about its model: nothing of it is silently ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import write_model

from firstdiff.model import llama
from firstdiff.model.errors import ModelError
from firstdiff.model.fields import Fields
from firstdiff.model.gguf import open_gguf

U32 = np.uint32


@pytest.mark.parametrize(("name", "value"), [("attention.head_count_kv", 3), ("attention.key_length", 15)])
def test_a_message_names_the_key_of_the_files_own_architecture(tmp_path: Path, name: str, value: int) -> None:
    stated = {key: None for key in open_gguf(write_model(tmp_path / "a.gguf")).metadata if key.startswith("llama.")}
    given = {"llama." + name: U32(value)}
    gguf = open_gguf(write_model(tmp_path / "a.gguf", metadata=given))
    renamed = {"other." + key.removeprefix("llama."): gguf.metadata[key] for key in stated}
    numbers = {k: float(v) if isinstance(v, float) else U32(v) for k, v in renamed.items()}
    gguf = open_gguf(write_model(tmp_path / "b.gguf", metadata=stated | numbers))
    with pytest.raises(ModelError, match=rf"'other\.{name}'"):
        llama.read(Fields(gguf, "other"))
