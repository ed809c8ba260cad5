"""Chunks are written by our own hand: any zarr reads them, and a disk that refuses or fills up costs nothing."""

import errno
import itertools
import os

import numpy as np
import pytest
import zarr

from torchmem.recording import chunks

DENSE, ONE_HOT = "dense", "one_hot"


@pytest.fixture
def arrays(tmp_path):
    """16 rows a chunk; values that do not compress and values that do."""
    group = zarr.open_group(tmp_path, mode="w")
    rng = np.random.default_rng(0)
    values = {DENSE: rng.normal(size=(70, 33)).astype(np.float32), ONE_HOT: np.eye(33, dtype=np.float32)[[5] * 70]}
    shape = {"shape": (0, 33), "chunks": (16, 33), "dtype": "float32", "config": {"write_empty_chunks": True}}
    made = {n: group.create_array(n, compressors=chunks.codec(v), **shape) for n, v in values.items()}
    return made, values


@pytest.mark.parametrize("direct", [True, False])
def test_zarr_reads_what_was_written(arrays, tmp_path, monkeypatch, direct):
    """Starts and ends inside, at and across the ends of chunks."""
    if not direct:
        monkeypatch.setattr(chunks, "DIRECT", None)
    for name, array in arrays[0].items():
        expected = arrays[1][name]
        cuts = [0, 5, 16, 48, 49, 70]
        for start, stop in itertools.pairwise(cuts):
            array.resize((stop, 33))
            chunks.write_rows(array, tmp_path / name, start, expected[start:stop])
        np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")[name][:], expected)
        assert not list((tmp_path / name).rglob("*.part"))
    full = 16 * 33 * 4
    assert (tmp_path / DENSE / "c/1/0").stat().st_size == full + 16  # nothing gained, nothing tried
    assert (tmp_path / ONE_HOT / "c/1/0").stat().st_size < full / 5


def test_no_chunk_is_written_by_zarr(arrays, tmp_path, monkeypatch):
    """Its machinery costs milliseconds for each array: half of what a recording with many small ones cost."""
    array = arrays[0][DENSE]
    array.resize((50, 33))
    monkeypatch.setattr(zarr.Array, "__setitem__", lambda *_: pytest.fail("zarr wrote"))
    for start, stop in ((0, 10), (10, 48), (48, 50)):
        chunks.write_rows(array, tmp_path / DENSE, start, arrays[1][DENSE][start:stop])


def test_a_begun_chunk_that_is_lost_is_not_filled_with_zeros(arrays, tmp_path):
    array, values = arrays[0][DENSE], arrays[1][DENSE]
    array.resize((16, 33))
    chunks.write_rows(array, tmp_path / DENSE, 0, values[:5])
    (tmp_path / DENSE / "c/0/0").unlink()
    with pytest.raises(FileNotFoundError):
        chunks.write_rows(array, tmp_path / DENSE, 5, values[5:16])


@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_without_direct_writes_gets_plain_ones(tmp_path, monkeypatch, refused):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(chunks.os, refused, refuse)
    chunks.put(tmp_path / "c/0", b"head", memoryview(b"tail"))
    assert (tmp_path / "c/0").read_bytes() == b"headtail"


@pytest.mark.parametrize("written", [0, 100, 4096])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch, written):
    """The system writes a part of what it is given, aligned or not, and has no room for the rest."""
    chunks.put(tmp_path / "c", b"old")
    given = []

    def write(handle, pages):
        given.append(len(pages))
        if len(given) == 1 and written:
            return written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(chunks.os, "write", write)
    with pytest.raises(OSError, match="No space"):
        chunks.put(tmp_path / "c", bytes(3 * 4096 + 5))
    assert (tmp_path / "c").read_bytes() == b"old" and os.listdir(tmp_path) == ["c"]
    assert given == ([4 * 4096, 3 * 4096] if written == 4096 else [4 * 4096])


def test_an_array_without_columns(tmp_path):
    from torchmem.recording import Recording, RecordingWriter

    with RecordingWriter(tmp_path / "r", control_hz=1.0, flush_bytes=1) as writer:
        for _ in range(3):
            writer.append({"nothing": np.zeros((2**16, 0), np.float32)}, {"step": np.arange(2**16)})
    rec = Recording(tmp_path / "r")
    assert rec.activations["nothing"][:].shape == (3 * 2**16, 0) and rec.covariates["step"][-1] == 2**16 - 1
