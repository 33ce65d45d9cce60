"""Files of numpy that are damaged or hostile: refused with the reason, and nothing in them is run, or read unasked."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from builders.foreign_dumps import npy, npy_bytes, opened, refused, text, values
from firstdiff.dumps import Site, TraceError


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no npy file"),
        (b"\x93NUMPX\x01\x00\x00\x00", "it is no npy file"),
        (pickle.dumps([1.0], 4), "is a pickle"),
        (npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "holds Python objects.*pickle.*astype"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)), "is cut short: shape"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "goes on after its array"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999,), }"), "has shape"),
        (
            npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 0), }"),
            "no file can hold",
        ),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }"), "up to 8"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': 1, 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': True, 'fortran_order': False, 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 9000), "is damaged"),
        (npy_bytes("__import__('os').abort()"), "is damaged"),
        (npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }"), "structured array"),
        (npy_bytes("{'descr': '<c8', 'fortran_order': False, 'shape': (), }", bytes(8)), "dtype '<c8' cannot be read"),
        (npy_bytes("{'descr': '<f16', 'fortran_order': False, 'shape': (), }", bytes(16)), "cannot be read"),
        (npy_bytes("{'descr': '<U3', 'fortran_order': False, 'shape': (), }", bytes(12)), "cannot be read"),
        (npy_bytes(" " * 10_001, version=b"\x02\x00"), "at most 10,000 are read"),
        (npy_bytes("{}", version=b"\x03\x00"), "version 3.0 is not read"),
        (b"\x93NUMPY\x02\x00\x10\x00\x00\x00{}", "cut short within its header"),
    ],
)
def test_a_bad_npy_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    file = text(tmp_path / "x.npy", content)
    refused(file, why)


def test_a_pickled_array_is_never_left_out_quietly(tmp_path: Path) -> None:
    npy(tmp_path / "embd.npy", values(2))
    npy(tmp_path / "l_out-0.npy", np.array([{}], object))
    with pytest.raises(TraceError, match="reading one runs whatever code is in it"):
        opened(tmp_path)
    np.savez(tmp_path / "o.npz", embd=np.array([None], object))
    with pytest.raises(TraceError, match=r"o\.npz: member 'embd\.npy': holds Python objects"):
        opened(tmp_path / "o.npz")


def test_headers_of_version_2_and_python_2_are_read(tmp_path: Path) -> None:
    header = '{"shape": (2L, 1L), "descr": "<f4", "fortran_order": False}'
    text(tmp_path / "embd.npy", npy_bytes(header, values(2).tobytes(), version=b"\x02\x00"))
    assert opened(tmp_path).shape(Site(0, None, "embd")) == (2, 1)


def archive(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def array_bytes(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def test_a_bad_npz_is_refused_with_the_reason(tmp_path: Path) -> None:
    good = array_bytes(values(2, 3))
    refused(text(tmp_path / "a.npz", b"PK\x03\x04"), r"format '\.npz' is not readable")
    refused(archive(tmp_path / "b.npz", {"x.txt": b"1"}), "hold no tensor")
    refused(archive(tmp_path / "c.npz", {"archive/data.pkl": b""}), "holds the pickle")
    refused(archive(tmp_path / "d.npz", {"embd.npy": good}, zipfile.ZIP_LZMA), "packed in another way")
    refused(archive(tmp_path / "e.npz", {"embd.npy": good[:-1]}), "is cut short")
    refused(archive(tmp_path / "f.npz", {"a\nb.npy": good}), "control character")
    refused(archive(tmp_path / "g.npz", {"step1/embd@2.npy": good}), "says steps 1 and 2")


def test_a_flipped_bit_of_a_deflated_member_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(values(1000))})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    trace = opened(path)
    with pytest.raises(TraceError, match=r"member 'embd\.npy'"):
        _ = trace[Site(0, None, "embd")]


def test_a_member_that_claims_more_than_deflate_can_hold_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(np.zeros(1000, np.float32))})
    content = path.read_bytes()
    size = struct.pack("<I", 128 + 4000)
    path.write_bytes(content.replace(size, struct.pack("<I", 2**31)))
    refused(path, "cannot hold more than")


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {f"l_out-{i}.npy": array_bytes(np.zeros(1000, np.float32)) for i in (0, 1)})
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = bytes(4)  # both begin where the first does
    path.write_bytes(content)
    with pytest.raises(TraceError):
        opened(path)


def test_nothing_is_unpacked_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, embd=np.zeros((64, 2**18), np.float32))  # 64 MiB in 64 KiB
    tracemalloc.start()
    try:
        trace = opened(path, tokens=64)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert trace.shape(Site(0, None, "embd")) == (64, 2**18)


def test_an_archive_after_other_bytes_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(values(2))})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert opened(path).shape(Site(0, None, "embd")) == (2,)


def test_a_file_that_goes_or_shrinks_while_open_is_an_error(tmp_path: Path) -> None:
    file = npy(tmp_path / "embd.npy", values(2))
    trace = opened(tmp_path)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(TraceError, match="open the trace again"):
        _ = trace[Site(0, None, "embd")]
    file.unlink()
    with pytest.raises(TraceError, match="cannot be read any more"):
        _ = trace[Site(0, None, "embd")]


def test_zlib_bounds_what_it_unpacks() -> None:
    """What `firstdiff.dumps.formats.npz` relies on."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(bytes(10**7)) + packed.flush()
    assert 10**7 / len(data) < 1032
    assert len(zlib.decompressobj(-15).decompress(data, 100)) == 100
