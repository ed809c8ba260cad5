"""A tiny stream whose every value is a known function of (row, env), for the replay's tests."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from torchmem.training.replay import Replay

SCHEMA = {
    "image": ((2, 2, 3), "uint8"),
    "reward": ((), "float32"),
    "is_first": ((), "bool"),
    "is_last": ((), "bool"),
    "is_terminal": ((), "bool"),
    "action": ((), "int64"),
    "deter": ((6,), "float32"),
    "stoch": ((2, 2), "bfloat16"),
}
EPISODE = 7


def step(row: int, n: int) -> dict[str, np.ndarray | torch.Tensor]:
    """What all envs show at lock-step `row`; env e's episodes are shifted by e. reward = row * n + e, the id."""
    ids = row * n + np.arange(n)
    phase = (row + np.arange(n)) % EPISODE
    return {
        "image": np.broadcast_to((ids % 251).astype(np.uint8)[:, None, None, None], (n, 2, 2, 3)),
        "reward": ids.astype(np.float32),
        "is_first": (phase == 0) | (row == 0),
        "is_last": phase == EPISODE - 1,
        "is_terminal": np.zeros(n, np.bool_),
        "action": -ids,
        "deter": torch.from_numpy(ids.astype(np.float32))[:, None].expand(n, 6) / 8,
        "stoch": torch.from_numpy(ids % 64).to(torch.bfloat16)[:, None, None].expand(n, 2, 2),
    }


def make(directory, n=3, rows=40, length=5, seed=0, **kwargs) -> Replay:
    return Replay(SCHEMA, n, n * rows, length, directory, seed, **kwargs)


def fill(replay: Replay, rows: int, start: int = 0) -> None:
    for row in range(start, start + rows):
        replay.add(step(row, replay.n))


def digest(batch: dict[str, torch.Tensor]) -> str:
    """One hash over every byte of a sampled batch."""
    sha = hashlib.sha256()
    for key in sorted(batch):
        sha.update(key.encode())
        sha.update(batch[key].contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def refreshed(batch: dict[str, torch.Tensor], update: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Arguments of a write-back that depends on what was sampled and on the update's number."""
    deter, stoch = batch["deter"][:, 1:], batch["stoch"][:, 1:]
    return batch["index"][:, 1:], {"deter": deter * 0.5 + update, "stoch": (stoch + 1) % 64}
