"""EnvPool's Procgen as torchmem sees it: n games of given levels, stepped together, with ends told apart.

What EnvPool 1.2.5 does, and tests hold: it has taken Procgen's own reset out of the step, so a final frame is the real
one and level_seed is still its level's; the step after an end ignores the action and opens the next level with reward
0, which is a reset row. A level follows from its number alone, whatever was played before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from torchmem.envs.procgen_config import ProcgenConfig, time_limit
from torchmem.errors import TorchmemError

SIDE, ACTIONS = 64, 15


class Frames(NamedTuple):
    """What k games show after a reset or a step; each array leads with k."""

    image: np.ndarray  # uint8 (k, 64, 64, 3)
    reward: np.ndarray  # float32
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool
    level: np.ndarray  # int64
    complete: np.ndarray  # uint8, 1 where this step reached the level's goal
    time: np.ndarray  # int64, steps since the episode opened

    def truth(self) -> dict[str, np.ndarray]:
        return {"level_seed": self.level, "level_complete": self.complete, "time": self.time}


class Engine:
    """One game for each of `seeds`. Game i plays `draws(seeds[i], levels)`, a level per episode.

    levels: at most all of int32, not empty. Loading the pictures costs the first engine of a process about 2 s of CPU;
    the next ones cost about a millisecond. Raises TorchmemError where EnvPool or Qt is missing.
    """

    def __init__(self, config: ProcgenConfig, levels: range, seeds: Sequence[int], threads: int = 1) -> None:
        # EnvPool knows exploration's level by itself and ends the process when told one
        chosen = {} if config.mode == "exploration" else {"start_level": levels.start, "num_levels": len(levels)}
        self._games: Any = envpool().make_gymnasium(
            f"{config.game.capitalize()}{config.mode.capitalize()}-v0", num_envs=len(seeds), env_seed=list(seeds),
            num_threads=min(threads or len(os.sched_getaffinity(0)), len(seeds)), channel_first=False,
            use_backgrounds=config.use_backgrounds, max_episode_steps=time_limit(config.game, config.mode), **chosen)
        self.all = np.arange(len(seeds), dtype=np.int32)

    def reset(self, which: np.ndarray | None = None) -> Frames:
        """Open the next level of some games (indices, ascending), or of all."""
        image, info = self._games.reset(None if which is None else which.astype(np.int32))
        none = np.zeros(len(image), bool)
        return frames(image, np.zeros(len(image), np.float32), none, none, info)

    def step(self, actions: np.ndarray, which: np.ndarray | None = None) -> Frames:
        """Step some games (indices, ascending), or all; one that has ended opens its next level instead."""
        which = self.all if which is None else which.astype(np.int32)
        return frames(*self._games.step(actions.astype(np.int32), which))


def frames(image: Any, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> Frames:
    """EnvPool reports an end at the time limit as truncated whatever else happened: a goal reached there terminates.

    A death at exactly the limit remains truncated, for nothing tells it apart.
    """
    complete = info["prev_level_complete"].astype(np.uint8)
    goal = truncated & (complete > 0)
    return Frames(image, reward, terminated | goal, truncated & ~goal, info["level_seed"].astype(np.int64), complete,
                  info["elapsed_step"].astype(np.int64))


def draws(seed: int, levels: range, count: int) -> list[int]:
    """The first levels that a game of this seed plays (Procgen's rule: Mersenne Twister modulo the number)."""
    numbers = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32)
    return [levels.start + int(number) % len(levels) for number in numbers]


def envpool() -> Any:
    """The package, once its Procgen is known to load. Raises TorchmemError saying what to install."""
    try:
        import envpool
        from envpool.procgen import ProcgenGymnasiumEnvPool  # noqa: F401 - raises where Qt is missing
    except ImportError as error:
        if "Qt" in f"{error} {error.__cause__}":
            raise TorchmemError(
                "Procgen draws with Qt 5, which is not installed. On Debian or Ubuntu: `sudo apt-get install -y "
                "libqt5core5a libqt5gui5`; `torchmem doctor` looks closer") from error
        raise TorchmemError(
            f"Procgen comes with EnvPool, which does not load ({error}). It exists for Linux on x86-64 only: "
            "`pip install 'envpool>=1.2.5,<1.3'`") from error
    return envpool
