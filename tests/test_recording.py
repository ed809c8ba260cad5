"""Recordings: what goes in comes out, at every instant, and in other people's formats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import zarr

from torchmem.errors import TorchmemError
from torchmem.recording import Recording, RecordingWriter
from torchmem.recording import writer as writer_module
from torchmem.recording.store import DATA, from_bfloat16, to_bfloat16
from torchmem.result import Provenance

LENGTHS = (5, 1, 12)


def episode(number: int, length: int) -> dict:
    """Values that say where they belong."""
    rng = np.random.default_rng(number)
    step = np.arange(length)
    return {
        "activations": {
            "memory": (1000 * number + 10 * step[:, None] + np.arange(4)).astype(np.float32),
            "stoch": rng.normal(size=(length, 2, 3)).astype(np.float16),
        },
        "covariates": {"reward": step.astype(np.float32), "is_last": step == length - 1,
                       "pos": rng.random((length, 2))},
        "seed": 2**62 + number,
    }


def write(path, lengths=LENGTHS, **options) -> list[dict]:
    made = [episode(i, n) for i, n in enumerate(lengths)]
    with RecordingWriter(
        path, control_hz=4.0, units={"reward": "reward", "pos": "cells"}, plan={"seed": 3}, **options
    ) as writer:
        for one in made:
            writer.append(**one)
        writer.finish()
    return made


def whole(made: list[dict], group: str, name: str) -> np.ndarray:
    return np.concatenate([one[group][name] for one in made])


def test_what_goes_in_comes_out(tmp_path):
    made = write(tmp_path / "r", flush_bytes=1, provenance=Provenance.here(edits=("cut",), weights="ab"))
    rec = Recording(tmp_path / "r")
    assert rec.finished and rec.steps == len(rec) == sum(LENGTHS) and rec.plan == {"seed": 3}
    for group, columns in (("activations", rec.activations), ("covariates", rec.covariates)):
        for name, column in columns.items():
            expected = whole(made, group, name)
            np.testing.assert_array_equal(np.asarray(column), expected)
            assert column.dtype == expected.dtype and column.shape == expected.shape
            # for readers that know nothing of torchmem: an array has no rows in reserve once the recording is finished
            assert zarr.open_group(tmp_path / "r" / DATA, mode="r")[f"{group}/{name}"].shape == expected.shape
    assert list(rec.activations) == ["memory", "stoch"] and set(rec.covariates) == {"reward", "is_last", "pos"}
    assert rec.episodes["seed"].tolist() == [2**62, 2**62 + 1, 2**62 + 2] and rec.episodes["complete"].all()
    assert rec.episodes["start"].tolist() == [0, 5, 6] and rec.episodes["stop"].tolist() == [5, 6, 18]
    assert rec.episode.tolist() == [0] * 5 + [1] + [2] * 12
    assert rec.time.tolist() == [*(np.arange(5) / 4), 0.0, *(np.arange(12) / 4)]
    np.testing.assert_array_equal(rec.activations["memory"][rec.rows(2)], made[2]["activations"]["memory"])
    assert rec.units["pos"] == "cells" and rec.provenance.edits == ("cut",)
    assert "3 episodes, 18 steps at 4 Hz" in rec.summary() and "not finished" not in rec.summary()


KEYS = [
    3, -1, np.int64(2), slice(2, 9), slice(None), slice(-3, None), slice(9, 2), slice(15, 3, -2), slice(1, 99, 5),
    [4, 1, 1, -2], np.array([], int), Ellipsis, (slice(3, 8), 2), (slice(None), [0, 3]), (3, 1), (Ellipsis, 1),
    (slice(2, 5), Ellipsis), ([5, 2], slice(1, 3)), (),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_column_indexes_as_numpy_does(tmp_path, key):
    made = write(tmp_path / "r")
    column = Recording(tmp_path / "r").activations["memory"]
    expected = whole(made, "activations", "memory")[key]
    got = column[key]
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_array_equal(got, expected)


def test_a_column_takes_masks_and_refuses_what_is_outside(tmp_path):
    made = write(tmp_path / "r")
    rec = Recording(tmp_path / "r")
    column, expected = rec.activations["memory"], whole(made, "activations", "memory")
    mask = expected[:, 0] > 1005
    np.testing.assert_array_equal(column[mask], expected[mask])
    for key in (18, -19, [0, 18], mask[:-1], 0.5, [[1]]):
        with pytest.raises(IndexError):
            column[key]
    with pytest.raises(KeyError, match="memory, stoch"):
        rec.activations["deter"]
    with pytest.raises(KeyError, match=r"sites: memory, stoch; covariates: reward"):
        rec.column("x")


def test_bfloat16_is_rounded_as_torch_rounds_and_read_as_float32(tmp_path):
    import torch

    rng = np.random.default_rng(0)
    values = (rng.normal(size=4000) * 10.0 ** rng.integers(-44, 39, 4000)).astype(np.float32)
    values[:6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.00390625]  # the last is a tie
    values[6] = np.array([0x7F800001], np.uint32).view(np.float32)[0]  # a NaN that rounding would turn into infinity
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), expected)
    with RecordingWriter(tmp_path / "r", control_hz=1, sites={"a": {"dtype": "bfloat16"}}) as writer:
        writer.append({"a": values}, {"a": values})
        writer.append({"a": to_bfloat16(values)}, {"a": values})  # its bits
    rec = Recording(tmp_path / "r")
    np.testing.assert_array_equal(rec.activations["a"][:], np.concatenate([expected, expected]))
    assert rec.activations["a"].dtype == np.float32
    np.testing.assert_array_equal(rec.covariates["a"][: len(values)], values)  # the covariate of that name is not


def test_bytes_on_disk_follow_the_dtype(tmp_path):
    values = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        with RecordingWriter(tmp_path / dtype, control_hz=1, sites={"a": {"dtype": dtype}}) as writer:
            writer.append({"a": values}, {})
        sizes[dtype] = sum(f.stat().st_size for f in (tmp_path / dtype / "data.zarr").rglob("*") if f.is_file())
    assert sizes["bfloat16"] < 0.55 * sizes["float32"]


# Crashes --------------------------------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_its_complete_episodes(tmp_path):
    """SIGKILL between two flushes and in the middle of one: after the data, before the count."""
    code = """
        import os, signal, sys
        sys.path.insert(0, "tests")
        import numpy as np
        import torchmem.recording.writer as w
        w.ALIGNED = 0  # one row is enough to write
        from test_recording import episode
        writer = w.RecordingWriter(sys.argv[1], control_hz=4.0, plan={"seed": 3}, flush_bytes=1)
        writer.append(**episode(0, 5))
        writer.append(**episode(1, 7))
        writer.flush()
        writer._commit = lambda news: os.kill(os.getpid(), signal.SIGKILL)
        writer.append(**episode(99, 700))  # its rows reach the disk, its count does not
        writer.flush()
    """
    path = tmp_path / "r"
    dead = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    rec = Recording(path)
    assert len(rec.episodes) == 2 and rec.steps == 12 and not rec.finished
    made = [episode(0, 5), episode(1, 7)]
    np.testing.assert_array_equal(rec.activations["memory"][:], whole(made, "activations", "memory"))
    with RecordingWriter(path, control_hz=4.0, plan={"seed": 3}, resume=True) as writer:
        assert writer.episodes["length"].tolist() == [5, 7]
        writer.append(**episode(2, 3))
    made.append(episode(2, 3))
    rec = Recording(path)
    for name in ("memory", "stoch"):
        np.testing.assert_array_equal(rec.activations[name][:], whole(made, "activations", name))
    np.testing.assert_array_equal(rec.covariates["pos"][-4:], whole(made, "covariates", "pos")[-4:])


def test_an_error_in_the_body_keeps_the_whole_episodes(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with RecordingWriter(tmp_path / "r", control_hz=1.0) as writer:
            writer.append(**episode(0, 5))
            raise ZeroDivisionError
    rec = Recording(tmp_path / "r")
    assert rec.steps == 5 and not rec.finished and "not finished" in rec.summary()


def test_a_full_disk_costs_nothing_that_was_appended(tmp_path, monkeypatch):
    import torchmem.recording.writer as module

    writer = RecordingWriter(tmp_path / "r", control_hz=1.0)
    writer.append(**episode(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                writer.flush()
    writer.append(**episode(1, 5))
    writer.close()
    rec = Recording(tmp_path / "r")
    assert rec.episodes["length"].tolist() == [5, 5]
    made = [episode(0, 5), episode(1, 5)]
    np.testing.assert_array_equal(rec.activations["memory"][:], whole(made, "activations", "memory"))


def test_one_array_that_cannot_be_written_holds_up_the_count_and_none_writes_on(tmp_path, monkeypatch):
    """Arrays are written side by side: the failure of one is told once the others are done, and all are tried again."""
    whole_write, running = writer_module.write_rows, []

    def write_rows(array, folder, start, rows):
        if folder.name == "memory":
            raise OSError("No space left on device")
        running.append(folder.name)
        time.sleep(0.05)
        whole_write(array, folder, start, rows)
        running.remove(folder.name)

    made = [episode(0, 5), episode(1, 3)]
    with RecordingWriter(tmp_path / "r", control_hz=4.0) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(writer_module, "write_rows", write_rows)
            for one in made:
                writer.append(**one)
            with pytest.raises(OSError, match="No space"):
                writer.flush()
            assert not running and len(writer.episodes) == 0
        writer.finish()
    rec = Recording(tmp_path / "r")
    for group, columns in (("activations", rec.activations), ("covariates", rec.covariates)):
        for name, column in columns.items():
            np.testing.assert_array_equal(np.asarray(column), whole(made, group, name))


def test_a_writer_that_never_flushed_leaves_an_empty_recording(tmp_path):
    writer = RecordingWriter(tmp_path / "r", control_hz=1.0)
    writer.append(**episode(0, 5))
    rec = Recording(tmp_path / "r")  # while it is being written
    assert rec.steps == 0 and not rec.activations and rec.episode.shape == rec.time.shape == (0,)
    with pytest.raises(TorchmemError, match="nothing to write"):
        rec.to_nwb(tmp_path / "x.nwb")
    with pytest.raises(TorchmemError, match="written by another process"):
        RecordingWriter(tmp_path / "r", control_hz=1.0, resume=True)
    writer.close()
    writer.close()
    assert Recording(tmp_path / "r").steps == 5


# Wrong use ------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_or_mixed(tmp_path):
    write(tmp_path / "r")
    with pytest.raises(FileExistsError, match="choose another folder, or resume"):
        write(tmp_path / "r")
    with pytest.raises(TorchmemError, match="seed was 3, is 4"):
        RecordingWriter(tmp_path / "r", control_hz=4.0, plan={"seed": 4}, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for resume in (False, True):
        with pytest.raises(FileExistsError):
            RecordingWriter(tmp_path / "mine", control_hz=4.0, resume=resume)
    with pytest.raises(TorchmemError, match="not a recording"):
        Recording(tmp_path / "mine")
    assert Recording(tmp_path / "r").steps == 18


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"covariates": {"reward": np.zeros(4)}}, "arrays of one length"),
        ({"activations": {"memory": np.zeros((0, 4)), "stoch": np.zeros((0, 2, 3))}, "covariates": {}}, "at least 1"),
        ({"covariates": {}}, "covariates/is_last is None"),
        ({"activations": {"memory": np.zeros((5, 4), np.float32), "stoch": np.zeros((5, 2, 3))}}, "stoch.*float64"),
        ({"covariates": {"a/b": np.zeros(5)}}, "cannot name"),
        ({"covariates": {"cue": np.array(["left"] * 5)}}, "holds numbers"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, word):
    with RecordingWriter(tmp_path / "r", control_hz=1.0) as writer:
        writer.append(**episode(0, 5))
        with pytest.raises(TorchmemError, match=word):
            writer.append(**{**episode(1, 5), **change})
        writer.append(**episode(2, 5))
    np.testing.assert_array_equal(
        Recording(tmp_path / "r").activations["memory"][5:], episode(2, 5)["activations"]["memory"]
    )


def test_a_damaged_recording_is_refused(tmp_path):
    write(tmp_path / "r")
    header = tmp_path / "r" / "recording.json"
    content = json.loads(header.read_text())
    header.write_text(json.dumps(content | {"steps": 99}))
    with pytest.raises(TorchmemError, match="missing or short"):
        Recording(tmp_path / "r")
    header.write_text(json.dumps(content | {"format": 9}))
    with pytest.raises(TorchmemError, match="format 1"):
        Recording(tmp_path / "r")
    header.write_text("{")
    with pytest.raises(TorchmemError, match="cannot be read"):
        Recording(tmp_path / "r")


def test_pieces_and_flushes_at_the_ends_of_chunks_change_nothing(tmp_path):
    """Chunks of 16 rows, flushed whenever one is full; episodes come in pieces and cross chunks."""
    import torchmem.recording.writer as module

    rng = np.random.default_rng(0)
    wide = [rng.normal(size=(n, 40_000)).astype(np.float32) for n in (5, 40, 1, 16, 3, 30)]
    with RecordingWriter(tmp_path / "r", control_hz=1.0, flush_bytes=1) as writer:
        for values in wide:
            writer.append({"wide": [values[:2], values[2:]]}, {"first": np.arange(len(values))})
        assert writer._aligned == 16 and module.CHUNK_BYTES // (4 * 40_000) < 16
    rec = Recording(tmp_path / "r")
    np.testing.assert_array_equal(rec.activations["wide"][:], np.concatenate(wide))
    np.testing.assert_array_equal(rec.covariates["first"][:], np.concatenate([np.arange(len(v)) for v in wide]))
    assert rec.episodes["length"].tolist() == [5, 40, 1, 16, 3, 30]


def test_no_pickle_is_written(tmp_path):
    write(tmp_path / "r")
    assert not [f for f in (tmp_path / "r").rglob("*") if f.is_file() and b"pickle" in f.read_bytes().lower()]
    assert os.listdir(tmp_path) == ["r"]


# Other people's formats -----------------------------------------------------------------------------------------------


def test_xarray_has_everything_with_units(tmp_path):
    made = write(tmp_path / "r")
    rec = Recording(tmp_path / "r")
    data = rec.to_xarray()
    assert data["memory"].dims == ("step", "memory.0") and data["stoch"].shape == (18, 2, 3)
    np.testing.assert_array_equal(data["pos"].values, whole(made, "covariates", "pos"))
    assert data["pos"].attrs == {"units": "cells"} and data["time"].attrs == {"units": "s"}
    mean = data["memory"].groupby("episode").mean()
    np.testing.assert_allclose(mean[1], made[1]["activations"]["memory"][0])
    assert set(rec.to_xarray(["memory"]).data_vars) == {"memory"}
    with pytest.raises(KeyError, match="'deter' was recorded"):
        rec.to_xarray(["deter"])


def test_pynapple_restricts_to_an_episode_and_crosses_no_border(tmp_path):
    import pynapple

    made = write(tmp_path / "r")
    rec = Recording(tmp_path / "r")
    frame, epochs = rec.tsd("memory"), rec.epochs()
    assert isinstance(frame, pynapple.TsdFrame) and isinstance(rec.tsd("reward"), pynapple.Tsd)
    assert isinstance(rec.tsd("stoch"), pynapple.TsdTensor)
    assert len(frame) == 18 and len(epochs) == 3 and epochs["seed"].tolist() == [2**62, 2**62 + 1, 2**62 + 2]
    for number, one in enumerate(made):
        part = frame.restrict(epochs[number])
        np.testing.assert_array_equal(part.values, one["activations"]["memory"])
        np.testing.assert_allclose(np.diff(part.times()), 1 / 4)
    begin = np.asarray(epochs.start)
    assert (begin[1:] - np.asarray(epochs.end)[:-1] > 1 / 4).all()


def test_nwb_comes_back(tmp_path):
    pynwb = pytest.importorskip("pynwb")
    made = write(tmp_path / "r")
    path = Recording(tmp_path / "r").to_nwb(tmp_path / "out" / "x.nwb")
    with pynwb.NWBHDF5IO(str(path), "r") as file:
        nwb = file.read()
        series = nwb.processing["activations"]["memory"]
        np.testing.assert_array_equal(series.data[:], whole(made, "activations", "memory"))
        np.testing.assert_array_equal(
            nwb.processing["covariates"]["is_last"].data[:], whole(made, "covariates", "is_last")
        )
        assert nwb.processing["covariates"]["pos"].unit == "cells"
        trials = nwb.trials.to_dataframe()
        assert trials["seed"].tolist() == [2**62, 2**62 + 1, 2**62 + 2] and trials["complete"].all()
        stamps = series.timestamps[:]
        for number, row in enumerate(trials.itertuples()):
            inside = (stamps >= row.start_time) & (stamps < row.stop_time)
            assert inside.sum() == LENGTHS[number]
    with pytest.raises(FileExistsError):
        Recording(tmp_path / "r").to_nwb(path)
    assert os.listdir(path.parent) == ["x.nwb"]


def test_nwb_says_what_is_missing(tmp_path, monkeypatch):
    write(tmp_path / "r")
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(TorchmemError, match="pip install pynwb"):
        Recording(tmp_path / "r").to_nwb(tmp_path / "x.nwb")
