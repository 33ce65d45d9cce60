"""Whatever the bytes: a model, or a ModelError, and no more memory than the file's size explains."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import open_gguf

EXTREMES = [0, 1, 31, 255, 256, 2**31, 2**32 - 1, 2**48, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
# A key takes 14 bytes at the least and costs a str, a tuple and a dict entry; the constant is for messages.
BYTES_A_BYTE = 100
BYTES_A_MODEL = 200_000

relaxed = settings(deadline=None, max_examples=1500, suppress_health_check=list(HealthCheck))


def whole_model(path: Path) -> bytes:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "bc", "d\0e", "f" * 300, *"ghijklmnopq"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
    writer.add_array("nested", [[1, 2], [3], [4, 5, 6]])
    writer.add_custom_alignment(64)
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("quantised", np.zeros((2, 36), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return whole_model(tmp_path_factory.mktemp("whole") / "model.gguf")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model-00001-of-00002.gguf"


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Draw a function from a file's bytes to damaged ones."""
    kind = draw(st.sampled_from(["flip", "cut", "splice", "extreme", "type", "repeat"]))
    where, other = draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16))
    value = draw(st.sampled_from(EXTREMES))
    small = draw(st.integers(0, 255))

    def damage(data: bytes) -> bytes:
        at, to = where % (len(data) + 1), other % (len(data) + 1)
        return {
            "flip": data[:at] + bytes([small]) + data[at + 1 :],
            "cut": data[:at],
            "splice": data[:at] + data[to:],
            "extreme": data[:at] + struct.pack("<Q", value) + data[at + 8 :],
            "type": data[:at] + struct.pack("<I", small % 14) + data[at + 4 :],
            "repeat": data[:at] + data[to : to + small] + data[at:],
        }[kind]

    return damage


def read_everything(path: Path) -> None:
    model = open_gguf(path)
    for key in model.metadata:
        model.metadata[key]
    for name, info in model.tensors.items():
        assert model.raw(name).nbytes == info.nbytes
    with pytest.raises(ModelError, match="has no tensor"):
        model.raw("no such tensor")


def survives(path: Path, data: bytes) -> str | None:
    """Read all of a file made of these bytes; return the error's message, if that is how it ended."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read_everything(path)
        message = None
    except ModelError as error:
        message = str(error)
        assert message.startswith(str(path.parent))
        assert "\n" not in message
        assert len(message) < len(str(path)) + 700
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BYTES_A_BYTE * len(data) + BYTES_A_MODEL
    return message


def test_the_whole_model_opens(model: bytes, place: Path) -> None:
    assert survives(place, model) is None


@pytest.mark.slow
@relaxed
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(place: Path, data: bytes) -> None:
    assert survives(place, data)


@pytest.mark.slow
@relaxed
@given(tail=st.binary(max_size=300), tensors=st.integers(0, 3), keys=st.integers(0, 3))
def test_random_bytes_behind_a_header_end_well(place: Path, tail: bytes, tensors: int, keys: int) -> None:
    survives(place, b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + tail)


@pytest.mark.slow
@relaxed
@given(damage=st.lists(damages(), min_size=1, max_size=3))
def test_a_damaged_model_ends_well(model: bytes, place: Path, damage: list[Callable[[bytes], bytes]]) -> None:
    data = model
    for one in damage:
        data = one(data)
    survives(place, data)


def test_a_model_cut_anywhere_before_its_last_tensor_ends_is_refused(model: bytes, place: Path) -> None:
    for size in range(0, len(model) - 64, 7):
        assert survives(place, model[:size])


def test_extremes_in_every_place_end_well(model: bytes, place: Path) -> None:
    end_of_metadata = model.index(b"quantised") + 64
    for at in range(4, end_of_metadata, 5):
        for value in (2**60, 2**64 - 1):
            survives(place, model[:at] + struct.pack("<Q", value) + model[at + 8 :])
