"""POPGym (Morad et al. 2023, arXiv:2303.01859) on the package: tasks that need memory and little else.

Dynamics, rewards, ends and random draws are the package's; a test compares every task with it. Each part of an
observation has a key of its own. Truth: `popgym_truth.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.popgym_config import PopGymConfig, class_name
from torchmem.envs.popgym_truth import READERS
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space

# What differs between easy, medium and hard.
DECKS = {
    "repeat_previous": (1, 2, 3), "repeat_first": (1, 8, 16), "autoencode": (1, 2, 3), "concentration": (1, 2, 1),
    "count_recall": (1, 2, 4), "higher_lower": (1, 2, 3),
}
KINDS = {"concentration": (2, 2, 13), "count_recall": (2, 4, 13)}  # cards that differ: colours, suits or ranks
BOARDS = {"battleship": (8, 10, 12), "mine_sweeper": (4, 6, 8)}  # side
MINES = (2, 6, 10)
ARMS = (10, 20, 30)

# Mean return of uniformly random actions. The first six tasks: exact, as a guess among n answers is right once in n
# (episodes pay 1 for all right, -1 for all wrong), and up and down, or paying and not, are equally likely. The others:
# measured, 1000 episodes each on the eval seeds of env 0, standard errors 0.011 (mine_sweeper easy) and less.
CHANCE: dict[str, tuple[float, float, float]] = {
    "repeat_previous": (-0.5, -0.5, -0.5), "repeat_first": (-0.5, -0.5, -0.5), "autoencode": (-0.5, -0.5, -0.5),
    "count_recall": (2 / 27 - 1, 2 / 27 - 1, 2 / 17 - 1), "higher_lower": (0.0, 0.0, 0.0),
    "multiarmed_bandit": (0.0, 0.0, 0.0),
    "concentration": (-0.189, -0.181, -0.837),
    "battleship": (-0.443, -0.411, -0.396),
    "mine_sweeper": (-0.239, -0.397, -0.430),
    "position_only_cart_pole": (0.113, 0.057, 0.038),
    "velocity_only_cart_pole": (0.113, 0.057, 0.038),
    "noisy_position_only_cart_pole": (0.113, 0.113, 0.113),
    "position_only_pendulum": (0.251, 0.249, 0.249),
    "noisy_position_only_pendulum": (0.251, 0.251, 0.251),
}
# Best mean return of an agent that reads the truth. 1 by the package's scaling, and below it where luck takes a share:
# of higher_lower, equal neighbours (48 of 52 cards differ); of the bandit, the best of n uniform payouts, 2n / (n + 1)
# - 1. The pendulum's is not known.
ORACLE: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys((
        "repeat_previous", "repeat_first", "autoencode", "concentration", "count_recall", "battleship", "mine_sweeper",
        "position_only_cart_pole", "velocity_only_cart_pole", "noisy_position_only_cart_pole"), (1.0, 1.0, 1.0)),
    "higher_lower": (12 / 13, 12 / 13, 12 / 13), "multiarmed_bandit": (9 / 11, 19 / 21, 29 / 31),
}


class PopGym(World):
    """See the module's docstring. A continuous action in [-1, 1] is scaled to the pendulum's torque of 2 N m.

    The package's velocity_only_cart_pole shows positions at its first step; so does this one.
    """

    config: PopGymConfig

    def __init__(self, config: PopGymConfig) -> None:
        super().__init__(config)
        import popgym.envs  # here, as a spec must not cost it

        self._env = getattr(popgym.envs, class_name(config.task, config.difficulty))()
        self._reader = READERS[config.task](self._env)

    @classmethod
    def describe(cls, config: PopGymConfig) -> EnvSpec:
        task, level = config.task, ("easy", "medium", "hard").index(config.difficulty)
        obs, action = spaces(task, level)
        known = {"chance": CHANCE, "oracle": ORACLE}
        return EnvSpec(
            name="popgym", obs=obs, action={"action": action}, control_hz=1.0, truth=dict(READERS[task].units),
            levels={name: table[task][level] for name, table in known.items() if task in table},
            kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        if options:
            raise ValueError(f"popgym has no reset options; got {sorted(options)}")
        self._show(self._env.reset(seed=seed)[0])
        self._reader.begin(self._seen)

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        space = self.env_spec.action["action"]
        if not space.discrete:
            action = 2.0 * np.asarray(action, np.float32)
        elif not space.shape:
            action = int(action)
        raw, reward, terminated, truncated, _ = self._env.step(action)
        self._show(raw)
        self._reader.after(self._seen)
        return float(reward), bool(terminated), bool(truncated)

    def _show(self, raw: Any) -> None:
        """Split what the package shows by our keys. Its observation may hold several numbers or be one."""
        keys = self.env_spec.obs
        parts = [raw] if len(keys) == 1 else raw
        self._seen = {
            key: np.array(part, space.dtype).reshape(space.shape)
            for (key, space), part in zip(keys.items(), parts, strict=True)
        }

    def _observe(self) -> Arrays:
        return {key: value.copy() for key, value in self._seen.items()}

    def _truth(self) -> Arrays:
        return self._reader.read()

    def close(self) -> None:
        self._env.close()


def spaces(task: str, level: int) -> tuple[dict[str, Space], Space]:
    """(observation keys, action) of a task; level 0 easy, 1 medium, 2 hard. Without the package."""
    cards = 52 * DECKS[task][level] if task in DECKS else 0
    kinds = KINDS[task][level] if task in KINDS else 0
    if task in ("repeat_previous", "repeat_first"):
        return {"card": choice(4)}, choice(4)
    if task == "autoencode":
        return {"mode": choice(2), "card": choice(4)}, choice(4)  # mode 0: recite, 1: watch
    if task == "concentration":
        return {"table": choice(kinds + 1, cards)}, choice(cards)  # the last class is a card face down
    if task == "count_recall":
        return {"dealt": choice(kinds), "query": choice(kinds)}, choice(cards // kinds + 1)
    if task == "higher_lower":
        return {"card": choice(13)}, choice(2)
    if task == "battleship":
        return {"hit": choice(2)}, choice(BOARDS[task][level], 2)
    if task == "mine_sweeper":
        return {"mines_near": choice(min(MINES[level] + 1, 10))}, choice(BOARDS[task][level], 2)
    if task == "multiarmed_bandit":
        return {"paid": choice(2)}, choice(ARMS[level])
    if task.endswith("cart_pole"):  # cart (m or m/s) and pole (rad or rad/s)
        return {"velocity" if task.startswith("velocity") else "position": Space((2,), "float32")}, choice(2)
    return {"direction": Space((2,), "float32")}, Space((1,), "float32", low=-1, high=1)  # cos, sin of the angle


def choice(classes: int, count: int | None = None) -> Space:
    """One of `classes`, or `count` of them."""
    return Space(() if count is None else (count,), "int64", classes=classes)
