"""The slow disk of a long-term copy is full, fails or lies: training goes on, and nothing wrong is ever restored."""

from __future__ import annotations

import errno
import itertools
import os
import shutil

import pytest

from tests.training.long_term_disk import (
    ENVS,
    ROWS,
    Disk,
    PowerCut,
    after,
    check_held,
    check_rows,
    elsewhere,
    play,
    small,
)
from tests.training.replay_world import fill
from torchmem.training import long_term, long_term_file
from torchmem.training.long_term import LongTerm
from torchmem.training.long_term_recover import newest
from torchmem.training.replay import Replay

# The slow disk fails -------------------------------------------------------------------------------------------------


def broken(patch, folder, name: str, code: int) -> None:
    """Every `name` (pwrite, fsync) on a file in `folder`/data fails from now on."""
    whole = getattr(os, name)

    def fails(file, *arguments):
        if os.readlink(f"/proc/self/fd/{file}").startswith(str(folder / "data")):
            raise OSError(code, os.strerror(code))
        return whole(file, *arguments)

    patch.setattr(os, name, fails)


@pytest.mark.parametrize("name, code", [("pwrite", errno.ENOSPC), ("fsync", errno.EIO)])
@pytest.mark.parametrize("missed", [3, 14, 40])  # 40: the fast tier too has forgotten what the copy holds
def test_training_outlives_a_full_slow_disk(tmp_path, caplog, name, code, missed):
    replay, _ = after(tmp_path, 30)
    with pytest.MonkeyPatch.context() as patch:
        broken(patch, tmp_path / "slow", name, code)
        for rows in range(31, 31 + missed):
            play(replay, rows)
            if rows % 3 == 0:
                replay.snapshot()
                replay.commit()
        late = replay.snapshot()
        replay.commit()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and os.strerror(code) in said[0] and f"{30 * ENVS} steps that the copy has" in said[0]
    check_rows(replay)
    copied = shutil.copytree(tmp_path / "slow", tmp_path / "as it was")
    again = Replay.restore(tmp_path / "third", late, long_term=copied)  # what was committed, and nothing wrong
    check_held(again, 30 + missed)

    play(replay, 33 + missed)
    healed = replay.snapshot()
    replay.commit()
    replay.close()
    again = elsewhere(tmp_path, healed)
    assert again._head == 33 + missed and again.lost == 0 and again.steps >= (ROWS - 1) * ENVS
    check_rows(again)


def test_a_record_that_failed_to_sync_is_not_trusted_once_its_chunks_are_written_again(tmp_path, monkeypatch):
    """It may well be readable; the chunks it names are then on their way to being others."""
    replay, _ = after(tmp_path, 50)
    sync, append = long_term_file.sync, LongTerm._append

    def no_sync(file):
        if "commit" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(file)

    def dying(*arguments):
        append(*arguments)
        raise PowerCut

    monkeypatch.setattr(long_term_file, "sync", no_sync)
    play(replay, 56)
    asked = replay.snapshot()
    monkeypatch.setattr(long_term_file, "sync", sync)
    play(replay, 58)
    monkeypatch.setattr(LongTerm, "_append", dying)
    with pytest.raises(PowerCut):
        replay.snapshot()
    replay.close()
    monkeypatch.undo()
    again = elsewhere(tmp_path, asked)
    assert again._head == 50 and again.lost == 6 * ENVS and again.steps >= (ROWS - 4) * ENVS
    check_held(again, 56)


def test_what_a_failed_sync_lost_is_written_again(tmp_path, monkeypatch):
    """After EIO the kernel forgets the pages that it could not write; the next sync succeeds without them."""
    replay, _ = after(tmp_path, 34)
    chunks, sync = tmp_path / "slow" / "data" / "chunks", long_term_file.sync
    synced = chunks.read_bytes()
    play(replay, 46)

    def lossy(file):
        if "chunks" not in os.readlink(f"/proc/self/fd/{file}"):
            return sync(file)
        chunks.write_bytes(synced)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(long_term_file, "sync", lossy)
    replay.snapshot()
    monkeypatch.setattr(long_term_file, "sync", sync)
    state = replay.snapshot()
    replay.close()
    again = elsewhere(tmp_path, state)
    assert again._head == 46 and again.steps == ROWS * ENVS
    check_rows(again)


def test_a_disk_that_takes_part_of_a_write_is_asked_again(tmp_path, monkeypatch, quick):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: pwrite(file, data[:100], place))
    replay, state = after(tmp_path, 37)
    replay.close()
    monkeypatch.undo()
    check_rows(elsewhere(tmp_path, state))


def test_the_record_is_written_between_two_syncs(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "slow").install(monkeypatch)
    after(tmp_path, 37)
    log = [entry[:2] for entry in disk.log]
    names = [name for kind, name in log if kind == "sync"]
    records = [name for name in names if name != "chunks"]
    assert len(records) > 4 and names == [n for record in records for n in ("chunks", record)]
    assert all(a != b for a, b in itertools.pairwise(records)), "A and B in turn"
    for place, (kind, name) in enumerate(log):
        if kind == "write" and name != "chunks":
            before = [entry for entry in log[:place] if entry[1] == "chunks"]
            assert before[-1][0] == "sync", "a record before its chunks are on the disk"


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_is_no_copy_of_this_replay_is_refused(tmp_path, monkeypatch):
    replay, state = after(tmp_path, 20)
    replay.close()
    with pytest.raises(FileNotFoundError, match=r"holds no replay.*Nor is there a long-term copy"):
        Replay.restore(tmp_path / "new", state, long_term=tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"snapshot was taken of replay .*; check replay\.long_term"):
        Replay.restore(tmp_path / "new", {**state, "replay": "0" * 16}, long_term=tmp_path / "slow")
    with pytest.raises(ValueError, match="not a long-term copy"):
        Replay.restore(tmp_path / "new", state, long_term=tmp_path / "fast")
    with pytest.raises(FileExistsError, match=r"another one in replay\.long_term"):
        small(tmp_path / "second", long_term=tmp_path / "slow")
    assert not (tmp_path / "second" / "replay.json").exists(), "the fast tier stayed behind"
    with pytest.raises(ValueError, match="only commits of later snapshots"):
        Replay.restore(tmp_path / "new", {**state, "journal": "", "head": 2}, long_term=tmp_path / "slow")
    with pytest.raises(FileNotFoundError, match="no commit"):
        newest(tmp_path / "fast" / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        elsewhere(tmp_path, state, "mine")
    monkeypatch.setattr(long_term, "free_bytes", lambda place: 1000)
    with pytest.raises(OSError, match=r"needs .* in .*, where 1 kB are free"):
        small(tmp_path / "third", long_term=tmp_path / "slow 3")


def test_a_run_that_died_before_its_first_snapshot_starts_over(tmp_path):
    replay = small(tmp_path / "fast", long_term=tmp_path / "slow")
    fill(replay, 9)
    replay.snapshot()  # never committed
    replay.close()
    shutil.rmtree(tmp_path / "fast")
    again, state = after(tmp_path, 12)
    again.close()
    check_rows(elsewhere(tmp_path, state))
