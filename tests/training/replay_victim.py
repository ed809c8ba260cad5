"""A small training-like run over a replay, to be killed and restarted by test_replay_kill.py.

`main(folder, steps)` starts or resumes it. Every sampled batch's hash goes to folder/seen (one line "row hash"), the
newest snapshot to folder/latest.json, the hash of all rows at the end to folder/end.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from torchmem.files import atomic_write
from torchmem.training.replay import Replay

ENVS, ROWS, LENGTH, BATCH = 4, 30, 9, 8
SCHEMA = {  # rows as wide as real ones, so that a kill finds half-written records
    "image": ((64, 64, 3), "uint8"),
    "reward": ((), "float32"),
    "is_first": ((), "bool"),
    "is_last": ((), "bool"),
    "deter": ((2048,), "float32"),
    "stoch": ((32, 16), "float32"),
}


def step(row: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(row)
    return {
        "image": rng.integers(0, 256, (ENVS, 64, 64, 3), dtype=np.uint8),
        "reward": rng.random(ENVS, dtype=np.float32),
        "is_first": rng.random(ENVS) < 0.1,
        "is_last": rng.random(ENVS) < 0.1,
        "deter": rng.random((ENVS, 2048), dtype=np.float32),
        "stoch": rng.random((ENVS, 32, 16), dtype=np.float32),
    }


def digest(batch: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha1(usedforsecurity=False)
    for key in sorted(batch):
        sha.update(batch[key].contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def main(folder: Path, steps: int) -> None:
    latest = folder / "latest.json"
    start, lagging = 0, None
    if latest.exists():
        saved = json.loads(latest.read_text())
        replay, start = Replay.restore(folder / "replay", saved["replay"]), saved["row"]
    else:
        replay = Replay(SCHEMA, ENVS, ENVS * ROWS, LENGTH, folder / "replay", 3, owner="victim")
    seen = os.open(folder / "seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for row in range(start, steps):
        replay.add(step(row))
        if row % 13 == 12:
            replay.mark_truncated(row % ENVS)
        if lagging:
            replay.write_back(*lagging)
            lagging = None
        if len(replay):
            batch = replay.sample(BATCH)
            os.write(seen, f"{row} {digest(batch)}\n".encode())
            lagging = (batch["index"][:, 1:], {key: batch[key][:, 1:] * 0.5 + row for key in ("deter", "stoch")})
        if row % 10 == 9:
            if lagging:
                replay.write_back(*lagging)
                lagging = None
            state = {"row": row + 1, "replay": replay.snapshot()}
            atomic_write(latest, json.dumps(state))
            replay.commit()
    end = {key: replay._store.gather(key, np.arange(ENVS * ROWS)) for key in SCHEMA}
    atomic_write(folder / "end", digest(end))
