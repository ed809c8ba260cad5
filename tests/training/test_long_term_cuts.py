"""The slow disk stops at every write: a restart from it alone finds the newest snapshot, whole, and nothing else."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.training.long_term_disk import ROWS, SNAPSHOTS, STEPS, Disk, Image, PowerCut, check_rows, play, small, stream
from torchmem.training.replay import Replay


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The whole run once: what it did to the slow disk, with the snapshots published in between."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder / "slow").install(patch)
        replay = small(folder / "fast", long_term=folder / "slow")
        layout = replay._copy.layout
        play(replay, STEPS, lambda state: disk.log.append(("published", state)))
        replay.close()
    assert (layout.chunk, layout.slots) == (2, 11)
    return disk.log, (folder / "slow" / "replay.json").read_bytes(), layout


def expected_stream(folder, head: int, floor: int) -> list[str]:
    """What the same run without a copy samples after this snapshot, if it too holds nothing before row `floor`."""
    replay = small(folder)
    play(replay, head)
    replay._floor = floor
    seen = stream(replay)
    replay.close()
    shutil.rmtree(folder)
    return seen


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power_cut"])
def test_cut_at_every_write(tmp_path, recorded, monkeypatch, power):
    log, manifest, layout = recorded
    Disk(tmp_path / "nowhere").install(monkeypatch)  # no syncs
    rng, image, state, appended = random.Random(3), Image(), None, 0
    cuts, floors, streams = 0, set(), {}
    for entry in log:
        # A cut before each write, and one between the commit and the moment that the run's own files name it.
        if state is not None and entry[0] != "sync" and (not power or rng.random() < 0.6):
            if entry[0] == "write" and not power and rng.random() < 0.3:  # half of this write gets through
                torn = Image()
                torn.files = {name: bytearray(content) for name, content in image.files.items()}
                torn.apply((*entry[:3], entry[3][: len(entry[3]) // 2]))
                files = torn.files
            else:
                files = image.after_power_cut(rng) if power else image.files
            cuts += 1
            replay = restart(tmp_path, files, manifest, state)
            head, low = state["head"], max(0, state["head"] - ROWS)
            assert replay._head == head and replay.lost == 0
            # The stated window: nothing of the snapshot, unless more chunks came after it than there are spare slots.
            overwritten = (head - 1) // layout.chunk + appended + 1 - layout.slots
            assert low <= replay.oldest <= max(low, overwritten * layout.chunk)
            floors.add(replay.oldest > low)
            check_rows(replay)
            key = (head, replay.oldest)
            if key not in streams:
                streams[key] = expected_stream(tmp_path / "reference", *key)
            assert stream(replay) == streams[key]
            replay.close()
        image.apply(entry)
        if entry[0] == "published":
            state, appended = entry[1], 0
        elif entry[0] == "write" and entry[1] == "chunks" and entry[2] % layout.slot_bytes == 0:
            appended += 1
    assert cuts >= (200 if power else 300) and floors == {False, True}
    assert {head for head, _ in streams} == set(SNAPSHOTS)


def restart(folder, files, manifest, state) -> Replay:
    slow, fast = folder / "slow", folder / "fast"
    for place in (slow, fast):
        shutil.rmtree(place, ignore_errors=True)
    (slow / "data").mkdir(parents=True)
    (slow / "replay.json").write_bytes(manifest)
    for name, content in files.items():
        (slow / "data" / name).write_bytes(content)
    return Replay.restore(fast, state, long_term=slow)


@pytest.mark.parametrize("lose_fast", ["always", "never", "now and then"])
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_it_reaches_the_end(tmp_path, lose_fast, seed):
    """After each restart the run goes on, over what the killed one left half-written, until the next kill."""
    rng, fast, slow, state, kills, restarts = random.Random(seed), tmp_path / "fast", tmp_path / "slow", None, 0, set()
    saved: list[dict] = []
    while True:
        with pytest.MonkeyPatch.context() as patch:
            Disk(slow, die_at=rng.randrange(10, 100) if kills < 40 else None).install(patch)
            try:
                if state is None:
                    replay = small(fast, long_term=slow)
                else:
                    replay = Replay.restore(fast, state, long_term=slow)
                    restarts.add(state["head"])
                    assert replay._head == state["head"] and replay.lost == 0
                    check_rows(replay)
                play(replay, STEPS, saved.append)
                break
            except PowerCut:
                kills += 1
                replay.close()
        state = saved[-1] if saved else None
        if lose_fast == "always" or (lose_fast == "now and then" and rng.random() < 0.5):
            shutil.rmtree(fast)
    check_rows(replay)
    assert kills >= 6 and len(restarts) >= 4
    replay.close()
    shutil.rmtree(fast)
    last = Replay.restore(fast, saved[-1], long_term=slow)
    assert last._head == SNAPSHOTS[-1] and last.steps == 2 * ROWS
    check_rows(last)
