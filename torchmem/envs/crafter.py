"""Crafter 1.8.3 (Hafner 2021, arXiv:2109.06780): survive, gather, build; 22 achievements.

As it is, two things differ from the package, and neither changes a rule. Creatures of a chunk are listed in the order
in which they were made, as the package's set lists them by memory address and so differs from process to process. And
the image is drawn on demand, with the noise of the night taken from where the package takes it. Fields of the config
change terrain, view, spawn and creatures (docs/spatial.md).

Seeds. The episode with reset seed s is the first of `crafter.Env(seed=world_seed(s))`, or of fixed_seed; reset option
`package`: [seed, k] plays the k-th of crafter.Env(seed=seed) in place of that. random_spawn draws from
numpy.random.RandomState(SeedSequence([s, SPAWN]).generate_state(4)). The other streams: `crafter_game.py`.

Truth: counts of the 16 items of the inventory (`ITEMS`), of which the first four also have names of their own (the
vitals), and of the 22 achievements of this episode (`ACHIEVEMENTS`; one is unlocked where its count is above 0, so the
last step of an episode gives the success rates), place and facing in cells (x right, y down), `heading` the angle of
facing from +x towards +y, `semantic` uint8 [row y, column x], what lies in the 9 x 7 cells in view, `materials` the
same of the whole world, without creatures (both `MEANINGS`), and `world`: the number of the terrain (the seed for the
package, fixed_layout or the map's checksum).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.crafter_map import read_map
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
VITALS = ITEMS[:4]
LEGEND = ", ".join(f"{i} {name}" for i, name in enumerate(MEANINGS))  # so that a recording explains itself
ACTIONS = 17
NOOP, LEFT, RIGHT, UP, DOWN = range(5)
TOWARDS = {(-1, 0): LEFT, (1, 0): RIGHT, (0, -1): UP, (0, 1): DOWN}  # facing -> the action that moves there
SPAWN = 3  # stream of random_spawn
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

        self._game: Game = Game(config)
        self._map_id = None if config.map is None else read_map(config.map).id

    @classmethod
    def draws(cls, config: CrafterConfig) -> bool:
        empty = config.map is not None and not read_map(config.map).creatures  # the same until creatures come
        return config.random_spawn or (config.fixed_seed is None and not empty)

    @classmethod
    def describe(cls, config: CrafterConfig) -> EnvSpec:
        return EnvSpec(
            name="crafter", obs={"image": Space((config.image, config.image, 3), "uint8")},
            action={"action": Space((), "int64", classes=ACTIONS)}, control_hz=1.0,
            truth={
                "inventory": "count per item", **dict.fromkeys(VITALS, "count"),
                "achievements": "count per achievement in this episode", "pos": "cells", "facing": "cells",
                "heading": "rad", "semantic": "as materials", "materials": LEGEND, "world": "id",
                "daylight": "0 night to 1 day", "sleeping": "1 = asleep",
            },
            levels=LEVELS if config.stock else {}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        fixed = self.config.fixed_seed
        which = world_seed(seed) if fixed is None else fixed, 1
        if options:
            which = package_episode(options)
        spawn = None
        if self.config.random_spawn:
            spawn = np.random.RandomState(np.random.SeedSequence([seed, SPAWN]).generate_state(4))
        self._game.open(*which, spawn)
        terrain = [self._map_id, self.config.fixed_layout, which[0] if which[1] == 1 else hash(which) % HASH_RANGE]
        self._world_id = next(number for number in terrain if number is not None)

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < ACTIONS:
            raise ValueError(f"crafter: action must be in 0..{ACTIONS - 1}, got {action}")
        if self.config.egocentric_view:
            action = world_action(action, self._game.player.facing)
        _, reward, done, info = self._game.step(action)
        dead = info["discount"] == 0
        return float(reward), dead, bool(done) and not dead

    def _observe(self) -> Arrays:
        return {"image": self._game.picture()}

    def _truth(self) -> Arrays:
        game, player = self._game, self._game.player
        items = np.array([player.inventory[name] for name in ITEMS], np.int64)
        facing = np.array(player.facing, np.int64)
        return {
            "inventory": items, **{name: np.array(items[i]) for i, name in enumerate(VITALS)},
            "achievements": np.array([player.achievements[name] for name in ACHIEVEMENTS], np.int64),
            "pos": np.array(player.pos, np.int64), "facing": facing,
            "heading": np.array(np.arctan2(facing[1], facing[0]), np.float32), "semantic": game.semantic(),
            "materials": game.materials.copy(), "world": np.array(self._world_id, np.int64),
            "daylight": np.array(game.daylight, np.float32), "sleeping": np.array(player.sleeping),
        }


def world_action(action: int, facing: tuple[int, int]) -> int:
    """The package's action for one of the egocentric view: moves 1 to 4 go to the left, right, forward and backward.

    As in the package a move also turns the player: after a step to the left, ahead is what was on the left.
    """
    x, y = facing
    ways = {LEFT: (y, -x), RIGHT: (-y, x), UP: (x, y), DOWN: (-x, -y)}
    return TOWARDS[ways[action]] if action in ways else action


def package_episode(options: Mapping[str, Any]) -> tuple[int, int]:
    """(seed, episode) of the reset option `package`. Raises ValueError."""
    match options.get("package"):
        case [int(seed), int(episode)] if len(options) == 1 and seed >= 0 and episode >= 1:
            return seed, episode
    raise ValueError(f"crafter's reset option is package=[seed, episode from 1]; got {dict(options)}")


def dreamerv3f_seed(seed: int, env: int = 0) -> int:
    """The seed that vviggyy/dreamerv3f gives to crafter.Env, for its config's seed and the number of the copy.

    With its `fixed_seed` every episode is `fixed_seed=dreamerv3f_seed(...)` here; without, reset option `package`.
    """
    return hash((seed, env)) % (2**32 - 1)


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
