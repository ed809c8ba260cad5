"""Crafter 1.8.3 (Hafner 2021, arXiv:2109.06780) as it is: survive, gather, build; 22 achievements.

Two things differ from the package, and neither changes a rule. Creatures of a chunk are listed in the order in which
they were made, as the package's set lists them by memory address and so differs from process to process. And the image
is drawn on demand, with the noise of the night taken from where the package takes it.

Truth: counts of the 16 items of the inventory (`ITEMS`) and the 22 achievements of this episode (`ACHIEVEMENTS`; one is
unlocked where its count is above 0, so the last step of an episode gives the success rates), place and facing in cells
(x right, y down), and `semantic` uint8 [row y, column x], what lies in the 9 x 7 cells in view (`MEANINGS`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.protocol import Arrays, World
from torchmem.envs.seeds import narrow_seed
from torchmem.types import EnvSpec, Space

if TYPE_CHECKING:
    from torchmem.envs.crafter_game import Game

ITEMS = (
    "health", "food", "drink", "energy", "sapling", "wood", "stone", "coal", "iron", "diamond", "wood_pickaxe",
    "stone_pickaxe", "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword",
)
ACHIEVEMENTS = (
    "collect_coal", "collect_diamond", "collect_drink", "collect_iron", "collect_sapling", "collect_stone",
    "collect_wood", "defeat_skeleton", "defeat_zombie", "eat_cow", "eat_plant", "make_iron_pickaxe", "make_iron_sword",
    "make_stone_pickaxe", "make_stone_sword", "make_wood_pickaxe", "make_wood_sword", "place_furnace", "place_plant",
    "place_stone", "place_table", "wake_up",
)
MEANINGS = (
    "outside", "water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table", "furnace",
    "player", "cow", "zombie", "skeleton", "arrow", "plant",
)
ACTIONS = 17
HASH_RANGE = 2**31 - 1
# Mean returns. chance: uniformly random actions, 200 episodes on the eval seeds of env 0, standard error 0.09 (and a
# crafter score of 1.5 %: the paper's percentages are such scores, not returns). human: experts, table of the paper.
LEVELS = {"chance": 1.36, "human": 14.3}


class Crafter(World):
    """One new world per episode. Reward: 1 for each step that unlocks an achievement, and 0.1 per point of health."""

    config: CrafterConfig

    def __init__(self, config: CrafterConfig) -> None:
        super().__init__(config)
        from torchmem.envs.crafter_game import Game  # here, as it loads textures and a compiler

        self._game: Game = Game(config.length, config.image)

    @classmethod
    def describe(cls, config: CrafterConfig) -> EnvSpec:
        return EnvSpec(
            name="crafter", obs={"image": Space((config.image, config.image, 3), "uint8")},
            action={"action": Space((), "int64", classes=ACTIONS)}, control_hz=1.0,
            truth={
                "inventory": "count per item", "achievements": "count per achievement in this episode", "pos": "cells",
                "facing": "cells", "semantic": "index of MEANINGS", "daylight": "0 night to 1 day",
                "sleeping": "1 = asleep",
            },
            levels=LEVELS if config.length == 10000 else {}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        if options:
            raise ValueError(f"crafter has no reset options; got {sorted(options)}")
        self._game.open(world_seed(seed))

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < ACTIONS:
            raise ValueError(f"crafter: action must be in 0..{ACTIONS - 1}, got {action}")
        _, reward, done, info = self._game.step(action)
        dead = info["discount"] == 0
        return float(reward), dead, bool(done) and not dead

    def _observe(self) -> Arrays:
        return {"image": self._game.picture()}

    def _truth(self) -> Arrays:
        game, player = self._game, self._game.player
        return {
            "inventory": np.array([player.inventory[name] for name in ITEMS], np.int64),
            "achievements": np.array([player.achievements[name] for name in ACHIEVEMENTS], np.int64),
            "pos": np.array(player.pos, np.int64), "facing": np.array(player.facing, np.int64),
            "semantic": game.semantic(), "daylight": np.array(game.daylight, np.float32),
            "sleeping": np.array(player.sleeping),
        }


def world_seed(seed: int) -> int:
    """The seed s whose `crafter.Env(seed=s)` has this episode as its first.

    The package hashes s. Seeds are tried until the upper two bits of that hash name the split, as those of `seed` do,
    so that no world of one split is one of another.
    """
    for stream in itertools.count():
        narrow = narrow_seed(seed, stream)
        if hash((narrow, 1)) % HASH_RANGE >> 29 == narrow >> 29:
            return narrow
    raise AssertionError  # count() does not end
