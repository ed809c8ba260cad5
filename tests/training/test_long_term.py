"""The long-term copy of a replay: what a restart finds in it, and what happens when its disk fails."""

from __future__ import annotations

import logging
import os
import random
import shutil

import numpy as np
import pytest

from tests.training.long_term_disk import (
    ENVS,
    ROWS,
    PowerCut,
    after,
    check_held,
    check_rows,
    elsewhere,
    play,
    small,
    stream,
)
from tests.training.replay_world import fill, make, refreshed, step
from torchmem.training import long_term_file
from torchmem.training.long_term_commit import Commits
from torchmem.training.long_term_recover import newest
from torchmem.training.long_term_ring import HEADER_BYTES, Ring
from torchmem.training.replay import Replay
from torchmem.training.replay_home import Home
from torchmem.training.replay_store import Store

# The faults of the original's two-tier replay ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", range(1, 50))
def test_r1_the_newest_rows_are_in_the_commit(tmp_path, quick, rows):
    """Upstream commits before it registers the chunk it has just written: 49 of 50 come back."""
    replay, state = after(tmp_path, rows)
    held, expected = replay.steps, stream(replay)
    replay.close()
    again = elsewhere(tmp_path, state)
    assert again.steps == held == min(rows, ROWS) * ENVS
    check_rows(again)
    assert stream(again) == expected


def test_r2_no_slot_stands_for_a_chunk_that_it_no_longer_holds(tmp_path, quick):
    """Upstream's table of after the wrap still finds an evicted chunk, in the slot of a new one, and serves it."""
    replay = small(tmp_path / "fast", long_term=tmp_path / "slow")
    copy, wrapped = replay._copy, 0
    for rows in range(1, 80):
        play(replay, rows)
        replay.snapshot()
        table = copy._commits.records()[0].table
        numbers = range(table.first, table.next)
        assert len({number % copy.layout.slots for number in numbers}) == len(numbers)
        for number, entry in zip(numbers, table.chunks, strict=True):
            assert copy._ring.holds(number, entry, table.successor(number))
            assert copy._ring.content(number, entry) is not None
        wrapped += table.next > copy.layout.slots
    assert wrapped > 40


@pytest.mark.parametrize("other", [1, 2, 11])
def test_r2_a_whole_chunk_in_the_wrong_slot_is_not_served(tmp_path, quick, caplog, other):
    """Another chunk of the same ring, header and sums and all, where the third newest belongs."""
    replay, state = after(tmp_path, 60)
    replay.close()
    layout = replay._copy.layout
    size, number = layout.slot_bytes, (60 - 1) // layout.chunk - 3
    file = tmp_path / "slow" / "data" / "chunks"
    content = bytearray(file.read_bytes())
    at, source = number % layout.slots * size, (number - other) % layout.slots * size
    if other == layout.slots:  # what the slot held one turn before
        content[at : at + size] = older_turn(tmp_path, number - other, layout)
    else:
        content[at : at + size] = content[source : source + size]
    file.write_bytes(content)
    again = elsewhere(tmp_path, state)
    assert again.oldest == (number + 1) * layout.chunk and "of the oldest steps are not in the copy" in caplog.text
    check_rows(again)
    stream(again)


def older_turn(tmp_path, number: int, layout) -> bytes:
    replay = small(tmp_path / "before", long_term=tmp_path / "slow before")
    play(replay, (number + 1) * layout.chunk + 1)
    replay.snapshot()
    replay.close()
    content = (tmp_path / "slow before" / "data" / "chunks").read_bytes()
    return content[number % layout.slots * layout.slot_bytes :][: layout.slot_bytes]


def test_r3_the_count_of_rows_is_right_at_every_turn_of_the_ring(tmp_path, quick):
    """Upstream commits at the wrap before it counts the turn: 60 chunks come back as step 0."""
    replay = small(tmp_path / "fast", long_term=tmp_path / "slow")
    for rows in range(1, 80):
        play(replay, rows)
        replay.snapshot()
        found = newest(tmp_path / "slow")
        assert found["head"] == rows
        if rows % 11 == 0 or rows in (22, 23, 24, 44, 45, 46):  # a turn is 22 rows
            shutil.copytree(tmp_path / "slow", tmp_path / "copy")
            again = Replay.restore(tmp_path / "other", found, long_term=tmp_path / "copy")
            assert (again._head, again.steps) == (rows, min(rows, ROWS) * ENVS)
            again.close()
            for name in ("copy", "other"):
                shutil.rmtree(tmp_path / name)


# What a restart finds ------------------------------------------------------------------------------------------------


def test_training_samples_the_same_with_and_without_a_copy(tmp_path):
    seen = []
    for name, kwargs in {"plain": {}, "copied": {"long_term": tmp_path / "slow"}}.items():
        replay = make(tmp_path / name, rows=25, **kwargs)
        streams = []
        for row in range(60):
            replay.add(step(row, replay.n))
            if len(replay):
                batch = replay.sample(3)
                streams.append(batch["deter"].sum().item() + batch["index"].sum().item())
                replay.write_back(*refreshed(batch, row))
            if row % 20 == 9:
                replay.snapshot()
                replay.commit()
        seen.append(streams)
    assert seen[0] == seen[1]


def test_latents_come_back_as_they_were_when_their_chunk_was_written(tmp_path):
    replay = small(tmp_path / "fast", long_term=tmp_path / "slow")
    fill(replay, 12)
    index = np.arange(12)[:, None] * ENVS + np.arange(ENVS)
    replay.write_back(index, {"deter": np.full((12, ENVS, 6), 7.0), "stoch": np.full((12, ENVS, 2, 2), 3.0)})
    state = replay.snapshot()
    replay.close()
    again = elsewhere(tmp_path, state)
    deter = again._store.gather("deter", again._cells(index)).numpy()
    first = deter[:, 0, 0] == 7
    assert first.any() and not first.all() and (np.diff(first.astype(int)) >= 0).all(), "old chunks old, tail new"


def test_it_goes_on_after_a_restart_and_can_be_restored_again(tmp_path):
    replay, state = after(tmp_path, 33)
    play(replay, 46)
    expected = stream(replay, 5)
    replay.close()
    for _ in range(2):  # the second time from the fast tier that the first one built
        again = elsewhere(tmp_path, state)
        play(again, 46)
        check_rows(again)
        assert stream(again, 5) == expected
        again.close()


@pytest.mark.parametrize("lose_fast", [True, False])
def test_a_commit_that_the_run_never_published_is_the_one_to_be_overwritten(tmp_path, monkeypatch, lose_fast):
    replay, state = after(tmp_path, 33)
    play(replay, 40)
    replay.snapshot()  # killed before the run's own files were written: it goes on from row 33
    replay.close()
    again = elsewhere(tmp_path, state, "second" if lose_fast else "fast")
    check_rows(again)
    play(again, 38)
    write = long_term_file.write_at

    def dying(file, place, blocks):
        if "commit" in os.readlink(f"/proc/self/fd/{file}"):
            write(file, place, [b"".join(bytes(memoryview(block).cast("B")) for block in blocks)[:300]])
            raise PowerCut
        write(file, place, blocks)

    monkeypatch.setattr(long_term_file, "write_at", dying)
    with pytest.raises(PowerCut):
        again.snapshot()
    again.close()
    monkeypatch.undo()
    again = elsewhere(tmp_path, state, "third")
    assert again._head == 33 and again.lost == 0 and again.steps == ROWS * ENVS
    check_rows(again)


def test_a_machine_that_was_left_behind_is_brought_up_to_date(tmp_path, caplog):
    one, state = after(tmp_path, 20)
    one.close()
    two = elsewhere(tmp_path, state, "two")
    play(two, 33)
    newer = two.snapshot()
    two.commit()
    two.close()
    with pytest.raises(ValueError, match="can not go back"):
        Replay.restore(tmp_path / "fast", newer)
    again = elsewhere(tmp_path, newer, "fast")
    assert again._head == 33 and "is rebuilt from its long-term copy" in caplog.text
    check_rows(again)


def test_a_rebuild_that_is_killed_is_never_taken_for_a_replay(tmp_path, monkeypatch):
    replay, state = after(tmp_path, 37)
    replay.close()

    def killed(store):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "sync", killed)
        patch.setattr(Home, "abandon", lambda self: self.close())  # a killed process tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            elsewhere(tmp_path, state)
    with pytest.raises(ValueError, match="was being rebuilt"):
        Replay.restore(tmp_path / "other machine", state)
    check_rows(elsewhere(tmp_path, state))


def test_switched_on_later_it_is_filled_from_the_fast_tier(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    replay = small(tmp_path / "fast")
    play(replay, 40)
    state = replay.snapshot()
    replay.commit()
    replay.close()
    replay = Replay.restore(tmp_path / "fast", state, long_term=tmp_path / "slow")
    assert "one is made now" in caplog.text
    play(replay, 41)
    newer = replay.snapshot()
    replay.close()
    again = elsewhere(tmp_path, newer)
    assert again.oldest == 26, "whole chunks only: row 25 shares one with a row that is gone"
    check_rows(again)


# Damage --------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_costs_rows_but_never_gives_wrong_ones(tmp_path, quick):
    replay, _ = after(tmp_path, 30)
    play(replay, 37)
    state = replay.snapshot()
    replay.close()
    layout, rng, found = replay._copy.layout, random.Random(0), {"whole": 0, "shorter": 0, "before": 0}
    files = {name: (tmp_path / "slow" / "data" / name).read_bytes() for name in ("chunks", "commit.a", "commit.b")}
    for _ in range(60):
        name = rng.choice(list(files))
        content = bytearray(files[name])
        used = HEADER_BYTES + layout.content_bytes  # of a slot; the rest fills up a page
        slot = rng.randrange(layout.slots) * layout.slot_bytes
        place = slot + rng.randrange(used) if name == "chunks" else rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        (tmp_path / "slow" / "data" / name).write_bytes(content)
        again = elsewhere(tmp_path, state)
        check_held(again, 37)
        found["before" if again.lost else "shorter" if again.steps < ENVS * ROWS else "whole"] += 1
        again.close()
        shutil.rmtree(tmp_path / "other machine")
        for file, content in files.items():
            (tmp_path / "slow" / "data" / file).write_bytes(content)
    assert min(found.values()) >= 5, found


def test_every_byte_of_a_header_is_checked(tmp_path, quick):
    replay, _ = after(tmp_path, 30)
    ring, table = replay._copy._ring, replay._copy._table
    number, entry = table.first + 1, table.chunks[1]
    assert ring.holds(number, entry, table.successor(number))
    assert not ring.holds(number, entry, table.promised), "another successor"
    assert not ring.holds(number + ring.layout.slots, entry, table.successor(number)), "another turn of the ring"
    assert not Ring(ring.file, ring.layout, "0" * 16).holds(number, entry, table.successor(number)), "another replay"
    with open(ring.file, "r+b", buffering=0) as file:
        for place in range(HEADER_BYTES):
            at = number % ring.layout.slots * ring.layout.slot_bytes + place
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)
            assert not ring.holds(number, entry, table.successor(number)), place
            os.pwrite(file.fileno(), byte, at)


def test_the_seam_of_lost_rows_is_the_end_of_every_episode(tmp_path):
    replay, _ = after(tmp_path, 30)
    play(replay, 37)  # the last commit before was of row 32
    asked = replay.snapshot()
    replay.close()
    (tmp_path / "slow" / "data" / Commits(tmp_path / "slow" / "data").records()[0].name).write_bytes(b"")
    again = elsewhere(tmp_path, asked)
    assert again.lost == 5 * ENVS and again._head == 32
    play_on = [step(row, ENVS) for row in range(37, 41)]
    play_on[0]["is_first"] = np.zeros(ENVS, np.bool_)
    held = again.snapshot()  # before anything is collected: the seam must survive that too
    again.commit()
    again.close()
    again = elsewhere(tmp_path, held)
    for row in play_on:
        again.add(row)
    cells = again._cells(np.arange(30, 35)[:, None] * ENVS + np.arange(ENVS))
    assert again._store.gather("is_first", cells)[2].all() and again._store.gather("is_last", cells)[1].all()
    assert not again._store.gather("is_first", cells)[3].any()
