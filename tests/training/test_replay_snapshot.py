"""Back to a snapshot, whatever was overwritten since: wrapped rows, latents, flags."""

from __future__ import annotations

import errno
import json
import os
import random

import numpy as np
import pytest

from tests.training.replay_world import SCHEMA, digest, fill, make, refreshed, step
from torchmem.training import replay_journal, replay_store
from torchmem.training.replay import Replay


def everything(replay: Replay) -> str:
    """Hash of every held step, oldest first."""
    cells = replay._cells(np.arange(replay.oldest * replay.n, replay._head * replay.n))
    return digest({key: replay._store.gather(key, cells) for key in replay.schema})


def work(replay: Replay, start: int, stop: int) -> list[str]:
    """Steps `start` to `stop` of a fixed run: add, sample, write back, now and then a truncation."""
    seen = []
    for row in range(start, stop):
        replay.add(step(row, replay.n))
        if row % 11 == 10:
            replay.mark_truncated(row % replay.n)
        if len(replay):
            batch = replay.sample(3)
            seen.append(digest(batch))
            replay.write_back(*refreshed(batch, row))
    return seen


@pytest.mark.parametrize("start", [3, 17, 25, 63])  # nothing sampleable, half full, just full, wrapped twice
@pytest.mark.parametrize("gap", [0, 1, 9, 60])  # 60: more than the whole ring is overwritten
def test_restored_equals_uninterrupted(tmp_path, start, gap):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, start)
    state, at_snapshot = replay.snapshot(), everything(replay)
    replay.commit()
    straight = work(replay, start, start + 70)
    end = everything(replay)

    other = make(tmp_path / "s", rows=25)
    work(other, 0, start)
    state = json.loads(json.dumps(other.snapshot()))
    other.commit()
    work(other, start, start + gap)
    del other  # no goodbye
    again = Replay.restore(tmp_path / "s", state)
    assert everything(again) == at_snapshot
    assert work(again, start, start + 70) == straight
    assert everything(again) == end


def test_a_snapshot_can_be_restored_many_times(tmp_path):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    state, at_snapshot = replay.snapshot(), everything(replay)
    for gap in (30, 0, 5, 30):
        work(replay, 40, 40 + gap)
        replay = Replay.restore(tmp_path / "r", state)
        assert everything(replay) == at_snapshot


def test_before_the_commit_the_older_snapshot_holds_too(tmp_path):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    old, at_old = replay.snapshot(), everything(replay)
    replay.commit()
    work(replay, 40, 50)
    replay.snapshot()  # never committed: the process died while writing the rest
    work(replay, 50, 55)
    replay.snapshot()  # nor was this one
    work(replay, 55, 65)
    replay = Replay.restore(tmp_path / "r", old)
    assert everything(replay) == at_old

    work(replay, 40, 52)  # another future
    new, at_new = replay.snapshot(), everything(replay)
    replay.commit()
    work(replay, 52, 80)
    assert everything(Replay.restore(tmp_path / "r", new)) == at_new


def test_snapshots_that_are_gone_or_of_another_future_are_refused(tmp_path):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    first = replay.snapshot()
    replay.commit()
    work(replay, 40, 50)
    second = replay.snapshot()
    with_second = everything(replay)
    replay.close()
    replay = Replay.restore(tmp_path / "r", first)  # so the second one never happened
    work(replay, 40, 45)
    third = replay.snapshot()
    with pytest.raises(ValueError, match="of another snapshot"):
        Replay.restore(tmp_path / "r", second)
    replay.commit()
    with pytest.raises(ValueError, match="newer snapshot was committed"):
        Replay.restore(tmp_path / "r", first)
    assert everything(Replay.restore(tmp_path / "r", third)) != with_second


def test_journals_stay_short(tmp_path):
    """Each cell once per epoch, nothing before the first snapshot, and old journals go at the commit."""
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 60)
    assert replay.journal_bytes == 0
    replay.snapshot()
    work(replay, 60, 200)
    content = replay.n * 25 * (59 + 2 * 8)  # every cell in two groups, each with its number
    assert content < replay.journal_bytes < content + 25 * 2 * 200
    replay.snapshot()
    replay.commit()
    assert replay.journal_bytes == replay_journal.HEADER_BYTES
    fresh = make(tmp_path / "s", rows=500)
    fill(fresh, 10)
    fresh.snapshot()
    fill(fresh, 400, start=10)  # free rows hold nothing worth keeping
    assert fresh.journal_bytes == replay_journal.HEADER_BYTES


def test_a_kill_inside_a_restore_is_harmless(tmp_path, monkeypatch):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    state, at_snapshot = replay.snapshot(), everything(replay)
    work(replay, 40, 50)
    replay.snapshot()
    work(replay, 50, 60)
    replay.close()
    unpack = replay_store.Store.unpack
    for calls in (0, 1, 7, 20):
        left = [None] * calls

        def dying(*args, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            unpack(*args)

        monkeypatch.setattr(replay_store.Store, "unpack", dying)
        with pytest.raises(KeyboardInterrupt):
            Replay.restore(tmp_path / "r", state)
    monkeypatch.undo()
    assert everything(Replay.restore(tmp_path / "r", state)) == at_snapshot


def test_a_torn_record_at_every_byte(tmp_path, monkeypatch):
    """The process dies inside the write of a record, so its cells are as they were; every cut must come back."""
    replay = make(tmp_path / "r", n=1, rows=8, length=3)
    work(replay, 0, 12)
    state, at_snapshot = replay.snapshot(), everything(replay)
    work(replay, 12, 14)
    journal = tmp_path / "r" / "journal" / "00000001.undo"
    before = journal.stat().st_size
    monkeypatch.setattr(replay_store.Store, "scatter", lambda *_: None)  # the record is written, the cells are not
    replay.add(step(14, 1))
    monkeypatch.undo()
    replay.close()
    whole = journal.read_bytes()
    assert len(whole) > before
    rows = {path: path.read_bytes() for path in (tmp_path / "r" / "data").glob("*.memmap")}
    for cut in range(before, len(whole) + 1):
        journal.write_bytes(whole[:cut])
        for path, content in rows.items():
            with open(path, "r+b") as file:
                file.write(content)
        assert everything(Replay.restore(tmp_path / "r", state)) == at_snapshot


def test_damage_that_no_kill_explains_is_an_error(tmp_path):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    state = replay.snapshot()
    work(replay, 40, 50)
    replay.close()
    journal = tmp_path / "r" / "journal" / "00000001.undo"
    whole = journal.read_bytes()
    for place in random.Random(0).sample(range(replay_journal.HEADER_BYTES, len(whole)), 40):
        journal.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            Replay.restore(tmp_path / "r", state)


@pytest.mark.parametrize("room", [0, 1, 30, 100, 1000])
def test_a_full_disk_in_the_journal_loses_nothing(tmp_path, monkeypatch, room):
    replay = make(tmp_path / "r", rows=25)
    work(replay, 0, 40)
    state, at_snapshot = replay.snapshot(), everything(replay)
    write, left = os.write, room

    def full(file, block):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(file, block[:left])
        left -= count
        return count

    monkeypatch.setattr(replay_journal.os, "write", full)
    with pytest.raises(OSError, match=r"No space left.*Nothing was overwritten"):
        work(replay, 40, 60)
    stopped = replay._head
    held = everything(replay)
    with pytest.raises(OSError, match="No space left"):
        replay.add(step(stopped, replay.n))
    assert everything(replay) == held
    monkeypatch.undo()
    if room == 100:  # space was made: the run goes on
        replay.add(step(stopped, replay.n))
    assert everything(Replay.restore(tmp_path / "r", state)) == at_snapshot


def test_commit_needs_a_snapshot(tmp_path):
    with pytest.raises(RuntimeError, match="without a snapshot"):
        make(tmp_path / "r").commit()


def test_restore_keeps_what_the_replay_was_made_with(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=30, length=4, online=False)
    fill(replay, 20)
    again = Replay.restore(tmp_path / "r", replay.snapshot())
    assert (again.n, again.rows, again.length, again.online) == (2, 30, 4, False)
    assert again.latents == ("deter", "stoch") and dict(again.schema) == SCHEMA


def test_commit_can_keep_older_snapshots(tmp_path):
    replay = make(tmp_path / "r", rows=25)
    states, contents = [], []
    for number in range(4):
        work(replay, 30 * number, 30 * number + 30)
        states.append(replay.snapshot())
        contents.append(everything(replay))
        replay.commit(keep=2)
    work(replay, 120, 150)
    with pytest.raises(ValueError, match="gone"):
        Replay.restore(tmp_path / "r", states[1])
    assert everything(Replay.restore(tmp_path / "r", states[2])) == contents[2]


def test_a_peek_changes_nothing(tmp_path):
    replay, quiet = make(tmp_path / "r", rows=25), make(tmp_path / "s", rows=25)
    work(replay, 0, 20)
    work(quiet, 0, 20)
    looked = digest(replay.peek(4, 7))
    assert looked == digest(replay.peek(4, 7)) != digest(replay.peek(4, 8))
    assert work(replay, 20, 40) == work(quiet, 20, 40)
