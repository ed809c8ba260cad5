"""A replay directory belongs to one run, and to one process at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tests.training.replay_world import SCHEMA, fill, make, step
from torchmem.training.replay import Replay

LENGTH = 5


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_another_runs_replay_is_refused_by_name_and_left_alone(tmp_path):
    replay = make(tmp_path / "r", owner="maze-1")
    fill(replay, 9)
    state = replay.snapshot()
    replay.commit()
    replay.close()
    before = files(tmp_path / "r")
    for owner in ("maze-2", "maze-1", ""):  # a committed replay is only for a restore
        with pytest.raises(FileExistsError, match="maze-1"):
            make(tmp_path / "r", owner=owner)
    assert files(tmp_path / "r") == before
    assert Replay.restore(tmp_path / "r", state).steps == 27


def test_other_files_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        make(tmp_path)
    assert files(tmp_path).keys() == {"thesis.tex", "lock"}


def test_a_run_that_died_before_its_first_snapshot_starts_over(tmp_path):
    fill(make(tmp_path / "r", owner="maze-1"), 9)
    make(tmp_path / "r", owner="maze-1").snapshot()  # not committed: still nothing to come back to
    again = make(tmp_path / "r", owner="maze-1", rows=20)
    assert again.steps == 0 and again.journal_bytes == 0 and again.rows == 20
    with pytest.raises(FileExistsError):
        make(tmp_path / "r", owner="maze-2")
    make(tmp_path / "s")
    with pytest.raises(FileExistsError, match="not named"):
        make(tmp_path / "s")  # runs without a name are never the same run


def test_a_snapshot_of_another_replay_is_refused(tmp_path):
    one, two = make(tmp_path / "one", owner="first"), make(tmp_path / "two", owner="second")
    state = one.snapshot()
    with pytest.raises(ValueError, match=r"second.*snapshot was taken of replay"):
        Replay.restore(tmp_path / "two", state)
    with pytest.raises(FileNotFoundError, match="holds no replay"):
        Replay.restore(tmp_path / "three", state)
    assert not (tmp_path / "three").exists()
    two.add(step(0, 3))


def test_files_of_another_shape_are_refused(tmp_path):
    replay = make(tmp_path / "r")
    state = replay.snapshot()
    replay.close()
    manifest = tmp_path / "r" / "replay.json"
    manifest.write_text(manifest.read_text().replace('"rows": 40', '"rows": 41'))
    with pytest.raises(ValueError, match="does not hold"):
        Replay.restore(tmp_path / "r", state)


def test_a_replay_in_use_is_refused(tmp_path):
    replay = make(tmp_path / "r", owner="maze-1")
    code = (
        "import sys; from pathlib import Path; from torchmem.training.replay_home import Home\n"
        f"try: Home.claim(Path({str(tmp_path / 'r')!r}), 'maze-1', {{}})\n"
        "except RuntimeError as error: sys.exit(str(error))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "in use by another process" in result.stderr
    replay.close()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_disk_too_small_is_refused_with_numbers_and_nothing_is_left(tmp_path):
    with pytest.raises(OSError, match=r"needs 59 PB.*are free; set replay\.capacity to \d+ or less|needs 5.9e\+04 TB"):
        Replay(SCHEMA, 1, 10**15, LENGTH, tmp_path / "r", 0)
    assert files(tmp_path / "r").keys() <= {"lock"}
    assert make(tmp_path / "r").steps == 0  # the folder can be used at once


def test_a_disk_that_fills_up_while_reserving_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"could not reserve 7.08 kB.*No space left"):
        make(tmp_path / "r")
    monkeypatch.undo()
    assert files(tmp_path / "r").keys() <= {"lock"}
    assert make(tmp_path / "r").steps == 0
