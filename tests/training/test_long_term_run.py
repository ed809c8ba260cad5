"""Whole runs with replay.long_term: the same run as without, and one that goes on when the fast tier is gone."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests.training import tiny
from tests.training.forker import Forker
from torchmem.training import command, long_term_file
from torchmem.training.config import compose


def words(tmp_path, *more, steps=60):
    """Snapshots every few steps, replay on a disk of its own, and a copy."""
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    return tiny.words(
        tmp_path / "run", f"replay.directory={fast}", f"replay.long_term={slow}", *more, steps=steps
    )


def outcome(tmp_path):
    """`tiny.outcome` of a run whose replay is elsewhere."""
    (tmp_path / "run" / "replay").symlink_to(tmp_path / "fast")
    found = tiny.outcome(tmp_path / "run")
    (tmp_path / "run" / "replay").unlink()
    return found


def test_a_copy_changes_no_number_of_a_run(tmp_path, straight):
    """Stopped in between, too: what is stored, sampled and learnt comes from the fast tier as long as it is there."""
    assert command.main(words(tmp_path, steps=44)) == 0
    assert command.main(words(tmp_path)) == 0
    assert outcome(tmp_path) == straight


@pytest.mark.parametrize("moved", [False, True])
def test_the_run_goes_on_where_only_the_copy_is_left(tmp_path, straight, capfd, moved):
    assert command.main(words(tmp_path, steps=44)) == 0
    before = {f.name: f.read_bytes() for f in (tmp_path / "fast").rglob("*.memmap")}
    shutil.rmtree(tmp_path / "fast")
    more = [f"replay.directory={tmp_path / 'other'}"] if moved else []  # a job's scratch folder has another name
    capfd.readouterr()
    assert command.main(words(tmp_path, *more, "ratio=0", "allow_config_change=[ratio]", steps=44)) == 0
    said = "".join(capfd.readouterr())
    assert "resumed from snapshot" in said
    now = {f.name: f.read_bytes() for f in (tmp_path / ("other" if moved else "fast")).rglob("*.memmap")}
    assert now.keys() == before.keys() and len(now) > 6
    assert {name for name in now if now[name] != before[name]} <= {"deter.memmap", "stoch.memmap"}
    assert command.main(words(tmp_path, *more, "allow_config_change=[ratio]")) == 0
    assert tiny.snapshot(tmp_path / "run").name == straight["id"], "another number of updates"


def test_killed_and_moved_to_another_machine(tmp_path, straight):
    with Forker() as forker:
        story, errors = str(tmp_path / "story"), tmp_path / "stderr"
        assert forker.run(words(tmp_path), errors, story=story, save_at=[34], kill_at=52) == -signal.SIGKILL
        shutil.rmtree(tmp_path / "fast")
        assert forker.run(words(tmp_path), errors) == 0, errors.read_text()
    assert "is rebuilt from its long-term copy" in errors.read_text()
    assert tiny.snapshot(tmp_path / "run").name == straight["id"]


def test_a_run_whose_slow_disk_is_full_says_so_once_and_ends_well(tmp_path, monkeypatch, caplog, straight):
    def full(file, place, blocks):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(long_term_file, "write_at", full)
    assert command.main(words(tmp_path, "save.every_s=1e-6")) == 0
    assert caplog.text.count("No space left on device") == 1
    assert tiny.snapshot(tmp_path / "run").name == straight["id"]


def test_the_words(tmp_path, capsys):
    assert command.main(["env=dummy", "--help"]) == 0
    assert "long_term" in capsys.readouterr().out
    assert command.main(["env=dummy", "replay.long_term=/x", "replay.directory=/x"]) == 2
    assert "name two folders" in capsys.readouterr().err
    assert compose(["env=dummy"]).replay.long_term is None
