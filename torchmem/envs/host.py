"""Host: some worlds in one process, stepped one after the other. VectorEnv has one here or one in each worker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchmem.envs.make import make_env
from torchmem.envs.protocol import Arrays, RestoreError

# observations, reward, terminated, truncated, truth; each array leads with the number of worlds
Block = tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, Arrays]


class Host:
    """`count` equal worlds. Every method may be called from another process: arguments and results are plain data."""

    def __init__(self, name: str, kwargs: Mapping[str, Any], count: int) -> None:
        self.worlds = [make_env(name, **kwargs) for _ in range(count)]
        self._keys = list(self.worlds[0].env_spec.action)

    def step(self, seeds: Sequence[int | None], actions: Mapping[str, np.ndarray]) -> Block:
        """Reset the worlds that have a seed, step the others with their row of `actions` (count, ...)."""
        obs, truth = [], []
        reward = np.zeros(len(self.worlds), np.float32)
        terminated, truncated = np.zeros((2, len(self.worlds)), bool)
        plain = self._keys == ["action"]
        for i, (world, seed) in enumerate(zip(self.worlds, seeds, strict=True)):
            if seed is not None:
                seen, info = world.reset(seed=seed)
            else:
                action = actions["action"][i] if plain else {k: actions[k][i] for k in self._keys}
                seen, reward[i], terminated[i], truncated[i], info = world.step(action)
            check_finite(seen, reward[i])
            obs.append(seen)
            truth.append(info["truth"])
        return stack(obs), reward, terminated, truncated, stack(truth)

    def save(self, is_open: Sequence[bool]) -> list[dict[str, Any] | None]:
        """The state of each world with an open episode, None for the others."""
        return [world.get_state() if open_ else None for world, open_ in zip(self.worlds, is_open, strict=True)]

    def load(self, states: Sequence[Mapping[str, Any] | None]) -> list[str]:
        """Restore what `save` gave. One text per world: empty if done (or nothing to do), else why it was not."""
        reasons = []
        for world, state in zip(self.worlds, states, strict=True):
            try:
                if state is not None:
                    world.set_state(state)
                reasons.append("")
            except RestoreError as error:
                reasons.append(str(error))
        return reasons

    def close(self) -> None:
        for world in self.worlds:
            world.close()


def check_finite(obs: Arrays, reward: float) -> None:
    """Raise ValueError for a NaN or an infinity: once stored, it would poison every batch that holds it.

    An observation of -inf passes: it says that the value is missing (spec section 3; models/inputs.py).
    """
    if not math.isfinite(reward):
        raise ValueError(f"the world gave the reward {reward}")
    for key, value in obs.items():
        if value.dtype.kind == "f" and not (value < np.inf).all():  # also False for NaN
            raise ValueError(f"the world showed a number in {key!r} that is not finite")


def stack(rows: Sequence[Arrays]) -> Arrays:
    """Equal dicts of arrays -> one dict with a leading axis; views of a single row, for `join` copies it."""
    if len(rows) == 1:  # a world that lives alone in this process; np.stack takes as long as a small world's step
        return {key: np.asarray(value)[None] for key, value in rows[0].items()}
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
