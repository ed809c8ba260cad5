"""A disk that writes down what is done to it, and a small run over a replay with a long-term copy on it."""

from __future__ import annotations

import copy
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tests.training.replay_world import digest, make, step
from torchmem.training.replay import Replay

ENVS, ROWS, LENGTH, STEPS = 2, 16, 4, 64
# The ring of rows wraps thrice, that of chunks (2 rows each, 11 slots) twice. Between 32 and 47 more chunks are
# written than there are spare slots; 10 and 32 are one row after another snapshot.
SNAPSHOTS = (3, 9, 10, 17, 24, 31, 32, 47, 50, 59)
PAGE = 512


class PowerCut(BaseException):
    """Nothing may catch it."""


@dataclass
class Disk:
    """Every write and sync under `folder`, in order; `die_at`: PowerCut half-way into that write."""

    folder: Path
    die_at: int | None = None
    log: list[tuple] = field(default_factory=list)
    writes: int = 0

    def install(self, patch) -> Disk:
        pwrite, fsync = os.pwrite, os.fsync

        def write(file, data, place):
            name = self._name(file)
            if name is None:
                return pwrite(file, data, place)
            self.writes += 1
            if self.die_at is not None and self.writes > self.die_at:
                pwrite(file, data[: len(data) // 2], place)
                raise PowerCut
            self.log.append(("write", name, place, bytes(data)))
            return pwrite(file, data, place)

        def sync(file):  # really syncing would only make the test slow
            if (name := self._name(file)) is not None:
                self.log.append(("sync", name))

        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "fsync", sync)
        self.fsync = fsync
        return self

    def _name(self, file: int) -> str | None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        return path.name if path.parent == self.folder / "data" and path.is_file() else None


class Image:
    """What the files hold after a part of a disk's log."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.dirty: list[tuple[str, int, bytes]] = []  # written and not yet synced
        self.safe: dict[str, bytearray] = {}

    def apply(self, entry: tuple) -> None:
        if entry[0] == "write":
            overwrite(self.files, *entry[1:])
            self.dirty.append(entry[1:])
        elif entry[0] == "sync":
            self.safe[entry[1]] = bytearray(self.files.get(entry[1], b""))
            self.dirty = [write for write in self.dirty if write[0] != entry[1]]

    def after_power_cut(self, rng: random.Random) -> dict[str, bytearray]:
        """What was synced, and any pages of what was not."""
        files = copy.deepcopy(self.safe)
        for name, place, data in self.dirty:
            for first in range(0, len(data), PAGE):
                if rng.random() < 0.5:
                    overwrite(files, name, place + first, data[first : first + PAGE])
        return files


def overwrite(files: dict[str, bytearray], name: str, place: int, data: bytes) -> None:
    file = files.setdefault(name, bytearray())
    file.extend(bytes(max(0, place + len(data) - len(file))))
    file[place : place + len(data)] = data


def marked(row: int) -> bool:
    """Whether the run closes the episode of env 1 at this row, once the row after it is due."""
    return row % 11 == 6


def play(replay: Replay, stop: int, at_snapshot=lambda state: None) -> None:
    """Go on to row `stop`: a mark now and then, add, sample, and snapshots where they belong."""
    for row in range(replay._head, stop):
        if row and marked(row - 1):
            replay.mark_truncated(1)
        replay.add(step(row, ENVS))
        if len(replay):
            replay.sample(2)
        if row + 1 in SNAPSHOTS:
            at_snapshot(replay.snapshot())
            replay.commit()


def small(directory: Path, **kwargs) -> Replay:
    return make(directory, n=ENVS, rows=ROWS, length=LENGTH, seed=5, owner="run", **kwargs)


def check_rows(replay: Replay) -> None:
    """Every step held is the one that was collected, and whole."""
    rows = np.arange(replay.oldest, replay._head)
    cells = replay._cells(rows[:, None] * ENVS + np.arange(ENVS))
    truth = [step(int(row), ENVS) for row in rows]
    for key in replay.schema:
        want = torch.stack([v if torch.is_tensor(v := t[key]) else torch.from_numpy(v.copy()) for t in truth])
        if key == "is_last":
            want[:, 1] |= torch.tensor([marked(int(row)) and row < replay._head - 1 for row in rows])
        assert torch.equal(replay._store.gather(key, cells), want), key


def stream(replay: Replay, count: int = 3) -> list[str]:
    """Digests of what is sampled next, each sequence checked to be one: the rewards are the ids."""
    seen = []
    for _ in range(count if len(replay) else 0):
        batch = replay.sample(3)
        assert torch.equal(batch["reward"].long(), batch["index"]), "a sequence is not what its ids say"
        assert (batch["index"].diff(dim=1) == ENVS).all()
        seen.append(digest(batch))
    return seen


def elsewhere(tmp_path, state, name="other machine") -> Replay:
    """The replay on a machine that has the copy only."""
    return Replay.restore(tmp_path / name, state, long_term=tmp_path / "slow")


def after(tmp_path, rows: int) -> tuple[Replay, dict]:
    """A replay with a copy after `rows` rows, and its snapshot of that moment."""
    replay = small(tmp_path / "fast", long_term=tmp_path / "slow")
    play(replay, rows)
    state = json.loads(json.dumps(replay.snapshot()))
    replay.commit()
    return replay, state


def check_held(replay: Replay, head: int) -> None:
    """All that is held is right; where the newest rows were lost, the seam is an end and a beginning."""
    if not replay.lost:
        assert replay._head == head
        return check_rows(replay)
    seam = replay._head
    assert seam < head and replay.lost == (head - seam) * ENVS
    for row in range(head, head + ROWS):  # the worlds are where they were at the snapshot
        replay.add(step(row, ENVS))
    rows = np.arange(replay.oldest, replay._head)
    cells = replay._cells(rows[:, None] * ENVS + np.arange(ENVS))
    reward, first = (replay._store.gather(key, cells).numpy() for key in ("reward", "is_first"))
    assert first[rows == seam].all()
    assert reward[:, 0].tolist() == [(row if row < seam else row - seam + head) * ENVS for row in rows]
