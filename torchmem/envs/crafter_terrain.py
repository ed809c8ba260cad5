"""How a world of Crafter is filled: by the package, or with terrain, coast, cows or a map of one's own.

Imports the package. Places are (x, y); arrays of the package are indexed [x, y].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import opensimplex
from crafter import objects

from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.crafter_generate import Noise, generate_creatures, generate_materials
from torchmem.envs.crafter_map import WALKABLE, Map

HASH_RANGE = 2**31 - 1
MOBS = (objects.Zombie, objects.Skeleton, objects.Arrow)
COW_DENSITY = 1 - 0.985  # of the package's worldgen, per tile of grass more than COW_AWAY from the player
COW_AWAY = 3
CREATURES = {"cow": objects.Cow, "zombie": objects.Zombie, "skeleton": objects.Skeleton}


def package_state(seed: int, episode: int) -> int:
    """The seed of the random numbers of episode 1, 2, ... of crafter.Env(seed=seed)."""
    return hash((seed, episode)) % HASH_RANGE  # of a tuple of ints: the same in every process


def fill_world(world: Any, player: Any, config: CrafterConfig, drawn: Map | None, cows: np.random.RandomState) -> None:
    """Terrain and creatures for a world that holds the player alone. cows: random numbers for cow_worldgen_scale."""
    if drawn is not None:
        _from_map(world, player, drawn)
    else:
        own = int(world.random.randint(0, HASH_RANGE))  # drawn in any case, as the package draws it
        if config.fixed_layout is not None:
            other = np.random.RandomState(package_state(config.fixed_layout, 1))
            own = int(other.randint(0, HASH_RANGE))
        _generate(world, player, config, own)
    if config.disable_mobs:
        for creature in world.objects:
            if isinstance(creature, MOBS):
                world.remove(creature)
    if config.cow_worldgen_scale != 1:
        _scale_cows(world, player, config.cow_worldgen_scale, cows)


def _generate(world: Any, player: Any, config: CrafterConfig, seed: int) -> None:
    """As the package does it, but with the noise of a given seed, which decides all terrain; trees, ores and creatures
    come from the world's random numbers."""
    noise = opensimplex.OpenSimplex(seed=seed)
    tunnels = generate_materials(world, tuple(player.pos), noise)
    if config.island:
        coast = noise if config.island_seed is None else opensimplex.OpenSimplex(seed=config.island_seed)
        for x, y in np.argwhere(~_land(world.area, tuple(player.pos), config, coast)):
            world[x, y] = "water"
    generate_creatures(world, player, tunnels)


def _land(area: tuple[int, int], start: tuple[int, int], config: CrafterConfig, noise: Any) -> np.ndarray:
    """(W, H) bool: one connected piece of land around `start`.

    Tiles are ranked by their distance from the middle of an ellipse, moved by smooth noise, and the first ones make up
    island_fill of those within the border. Pieces without a way to the start are water again.
    """
    from scipy import ndimage

    border = config.island_border
    x, y = (np.arange(side) for side in area)
    half = (np.array(area) - 2 * border) / 2
    far = np.hypot((x[:, None] + 0.5 - area[0] / 2) / half[0], (y[None] + 0.5 - area[1] / 2) / half[1])
    maps = Noise(noise, area)
    wave = maps(11, 8) + maps(12, 3) / 2
    rank = far + config.island_roughness * wave
    inside = np.zeros(area, bool)
    inside[border : area[0] - border, border : area[1] - border] = True
    count = max(1, round(config.island_fill * inside.sum()))
    rank = np.where(inside, rank, np.inf)
    rank[start] = -np.inf
    land = rank <= np.partition(rank.ravel(), count - 1)[count - 1]
    pieces = np.asarray(ndimage.label(land)[0])  # pyright: ignore[reportGeneralTypeIssues, reportIndexIssue]
    return pieces == pieces[start]


def _scale_cows(world: Any, player: Any, scale: float, random: np.random.RandomState) -> None:
    """Take cows away, or put more where the package could have put them."""
    for cow in [creature for creature in world.objects if isinstance(creature, objects.Cow)]:
        if random.uniform() >= scale:
            world.remove(cow)
    for place in np.argwhere(world._mat_map == world._mat_ids["grass"]):
        away = np.hypot(*(place - player.pos)) > COW_AWAY
        if random.uniform() < (scale - 1) * COW_DENSITY and away and world[place][1] is None:
            world.add(objects.Cow(world, place))


def _from_map(world: Any, player: Any, drawn: Map) -> None:
    for y, row in enumerate(drawn.materials):
        for x, material in enumerate(row):
            world[x, y] = material
    for name, x, y in drawn.creatures:
        world.add(_creature(CREATURES[name], world, (x, y), player))


def _creature(kind: type, world: Any, place: Any, player: Any) -> Any:
    return kind(world, place) if kind is objects.Cow else kind(world, place, player)


def free_tiles(world: Any, player: Any) -> np.ndarray:
    """(n, 2): tiles on which a player may start, his own among them."""
    walkable = np.isin(world._mat_map, [world._mat_ids[name] for name in WALKABLE])
    walkable &= world._obj_map == 0
    walkable[tuple(player.pos)] = True
    return np.argwhere(walkable)


class Kept:
    """A filled world that every episode begins with, so that it is generated once."""

    def __init__(self, world: Any) -> None:
        self._materials = world._mat_map.copy()
        self._creatures = [(type(c), c.pos.copy()) for c in world.objects if type(c) in CREATURES.values()]
        self._chunks = list(world._chunks)  # those that lost their only creature are there too, and are balanced
        self._random = world.random.get_state()

    def put(self, world: Any, player: Any) -> None:
        """Into a world that holds the player alone."""
        world._mat_map[:] = self._materials
        for chunk in self._chunks:
            world._chunks[chunk]  # a defaultdict: asking makes it, in this order
        for kind, place in self._creatures:
            world.add(_creature(kind, world, place, player))
        world.random.set_state(self._random)
