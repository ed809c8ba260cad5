"""The game under the Crafter world: crafter.Env, made repeatable, changed where asked, drawn on demand.

Imports the package. Random numbers come from three streams, none of which can disturb another:

    sim     numpy.random.RandomState(hash((seed, episode)) mod (2^31 - 1)), as in the package: terrain, creatures, luck
    spawn   given to `open`: where random_spawn puts the player
    render  the noise of the night. night_noise "package": the numbers that the package's image takes from sim, which
            passes over them; "own": a new stream for every step, made of seed, episode and step
"""

from __future__ import annotations

from typing import Any

import crafter
import numpy as np
from crafter import constants, engine, objects

from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.crafter_map import read_map
from torchmem.envs.crafter_picture import InventoryView, MaterialView, NoSemantics
from torchmem.envs.crafter_terrain import MOBS, Kept, fill_world, free_tiles, package_state
from torchmem.envs.crafter_view import EgocentricView

VIEW = (9, 7)  # columns and rows of cells in view
ITEM_ROWS = 2  # below them, for the inventory
CHUNK = (12, 12)  # tiles in which creatures are balanced
COWS, RENDER = 1, 2  # streams beside sim


class Game(crafter.Env):
    """crafter.Env whose step and reset draw no image. Same seeds and actions: same game, in every process."""

    def __init__(self, config: CrafterConfig) -> None:
        side = config.image
        self.config = config
        self._area, self._length, self._reward = config.size, config.length, True
        self._view, self._size = np.array((VIEW[0], VIEW[1] + ITEM_ROWS)), np.array((side, side))
        self._world = engine.World(config.size, constants.materials, CHUNK)  # pyright: ignore[reportAttributeAccessIssue]
        self._local_view = MaterialView(self._world, VIEW)
        self._item_view = InventoryView((VIEW[0], ITEM_ROWS))
        kinds = [objects.Player, objects.Cow, objects.Zombie, objects.Skeleton, objects.Arrow, objects.Plant]
        self._sem_view = NoSemantics(self._world, kinds)
        self.drawn = None if config.map is None else read_map(config.map)
        self._kept: tuple[tuple[int, int], Kept] | None = None
        self._noise = np.random.RandomState(0)
        self._before_noise: Any = None
        self._ego: EgocentricView | None = None
        if config.egocentric_view:
            self._ego = EgocentricView(
                self._world, config.egocentric_view, side, config.upright_sprites)

    def open(self, seed: int, episode: int = 1, spawn: np.random.RandomState | None = None) -> None:
        """Episode 1, 2, ... of crafter.Env(seed=seed), as far as the config leaves it that. spawn: see above."""
        self._seed, self._episode, self._step = seed, episode, 0
        world = self._world
        world.reset(seed=package_state(seed, episode))
        self._update_time()
        start = (world.area[0] // 2, world.area[1] // 2) if self.drawn is None else self.drawn.start
        self._player = player = objects.Player(world, start)
        self._last_health = player.health
        world.add(player)
        self._unlocked = set()
        if self._kept is not None and self._kept[0] == (seed, episode):
            self._kept[1].put(world, player)
        else:
            fill_world(world, player, self.config, self.drawn, self._stream(COWS))
            if self.config.fixed_seed is not None:
                self._kept = (seed, episode), Kept(world)
        if self.config.random_spawn:
            if spawn is None:
                raise ValueError("random_spawn needs a stream of random numbers")
            places = free_tiles(world, player)
            place = places[spawn.randint(len(places))]
            if tuple(place) != tuple(player.pos):
                world.move(player, place)
        self._obs()

    def reset(self) -> Any:
        raise RuntimeError("open(seed, episode) begins an episode of this game")

    @property
    def player(self) -> Any:
        return self._player

    @property
    def daylight(self) -> float:
        return self._world.daylight

    @property
    def materials(self) -> np.ndarray:
        """uint8 (rows y, columns x) of the whole world, without creatures; do not write to it."""
        return self._world._mat_map.T

    def picture(self) -> np.ndarray:
        """uint8 (side, side, 3). May be called any number of times: the game's random numbers are left alone."""
        world = self._world
        sim = world.random
        if self._before_noise is not None:
            self._noise.set_state(self._before_noise)
            world.random = self._noise
        elif self._night and self.config.night_noise == "own":
            world.random = self._stream(RENDER, self._step or 0)
        try:
            return self.render() if self._ego is None else self._ego(self._player)
        finally:
            world.random = sim

    def semantic(self) -> np.ndarray:
        """uint8 (rows, columns) of the cells in view: materials, and creatures above them; 0 outside the world."""
        world, (columns, rows) = self._world, VIEW
        seen = np.zeros((rows, columns), np.uint8)
        left, top = int(self.player.pos[0]) - columns // 2, int(self.player.pos[1]) - rows // 2
        x, y = slice(max(left, 0), left + columns), slice(max(top, 0), top + rows)
        part = world._mat_map[x, y].T.copy()
        creatures = world._obj_map[x, y].T
        for place in zip(*np.nonzero(creatures)):
            part[place] = self._sem_view._obj_ids[type(world._objects[creatures[place]])]
        seen[y.start - top : y.start - top + part.shape[0], x.start - left : x.start - left + part.shape[1]] = part
        return seen

    @property
    def _night(self) -> bool:
        return self._world.daylight < 0.5

    def _stream(self, *which: int) -> np.random.RandomState:
        words = np.random.SeedSequence([self._seed, self._episode, *which]).generate_state(4)
        return np.random.RandomState(words)

    def _obs(self) -> None:
        """In place of an image: at night, pass over the random numbers that the package's image takes."""
        random = self._world.random
        self._before_noise = None
        if self._night and self.config.night_noise == "package":
            self._before_noise = random.get_state()
            unit = self._size // self._view
            random.uniform(size=(VIEW[0] * unit[0], VIEW[1] * unit[1]))

    def _balance_chunk(self, chunk: Any, objs: Any) -> None:
        """One of `objs` may be removed by its place in the list, so the list must not follow memory addresses."""
        in_order = sorted(objs, key=lambda creature: self._world._obj_map[tuple(creature.pos)])
        super()._balance_chunk(chunk, in_order)

    def _balance_object(
        self, chunk: Any, objs: Any, cls: type, material: str, span_dist: int, despan_dist: int, spawn_prob: float,
        despawn_prob: float, ctor: Any, target_fn: Any,
    ) -> None:  # fmt: skip
        config = self.config
        if config.disable_mobs and cls in MOBS:
            return
        target = target_fn
        if cls is objects.Cow:
            span_dist, spawn_prob, scale = config.cow_span_dist, config.cow_spawn_prob, config.cow_target_scale

            def target(count: int, space: int) -> tuple[float, float]:
                low, high = target_fn(count, space)
                return scale * low, scale * high

        super()._balance_object(
            chunk, objs, cls, material, span_dist, despan_dist, spawn_prob, despawn_prob, ctor, target)
