"""Terrain and creatures of a new world of Crafter, as the package makes them, bit for bit, in a tenth of the time.

The package asks for smooth noise tile by tile. Here every noise comes as one map, and only tiles that take a random
number are visited one by one, in the package's order (x outside, y inside). Maps are indexed [x, y].
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from crafter import objects
from opensimplex.internals import _noise3

from torchmem.envs.crafter_map import WALKABLE

MOST = 3  # random numbers that a tile can take


@contextlib.contextmanager
def drawn(random: np.random.RandomState, most: int) -> Iterator[Callable[[], float]]:
    """The next uniform numbers of a stream, drawn at once; the stream ends where single draws would have left it."""
    before = random.get_state()
    numbers = iter(random.uniform(size=most).tolist())
    yield numbers.__next__
    random.set_state(before)
    random.uniform(size=most - operator.length_hint(numbers))


@numba.njit(cache=True)
def _noise_map(x, y, layer, perm, gradients):  # type: ignore[no-untyped-def]
    """Not opensimplex' own `noise3array`: it wakes numba's threads, which changes how many torch uses."""
    found = np.empty((x.size, y.size))
    for i in range(x.size):
        for j in range(y.size):
            found[i, j] = _noise3(x[i], y[j], layer, perm, gradients)
    return found


class Noise:
    """Maps (W, H) of an opensimplex.OpenSimplex."""

    def __init__(self, simplex: Any, area: tuple[int, int]) -> None:
        self._simplex = simplex
        self._x, self._y = (np.arange(side, dtype=np.float64) for side in area)

    def __call__(self, layer: float, size: float) -> np.ndarray:
        """Waves of `size` tiles."""
        return self._map(self._x / size, self._y / size, layer)

    def squeezed(self, layer: float, size: float, axis: int) -> np.ndarray:
        """Coordinates along `axis` divided by 5, those of the other one doubled: noise that runs along `axis`."""
        x, y = (self._x / 5, self._y * 2) if axis == 0 else (self._x * 2, self._y / 5)
        return self._map(x / size, y / size, layer)

    def _map(self, x: np.ndarray, y: np.ndarray, layer: float) -> np.ndarray:
        return _noise_map(x, y, float(layer), self._simplex._perm, self._simplex._perm_grad_index3)


def generate_materials(world: Any, start: tuple[int, int], simplex: Any) -> np.ndarray:
    """Fill the world's materials; returns tunnels (W, H) bool. start: the place with grass around it."""
    noise, ids = Noise(simplex, world.area), world._mat_ids
    x, y = np.indices(world.area)
    near = 4 - np.sqrt((x - start[0]) ** 2 + (y - start[1]) ** 2)
    near += 2 * noise(8, 3)
    near = 1 / (1 + np.exp(-near))
    water = noise(3, 15) + 0.15 * noise(3, 5) + 0.1
    water -= 2 * near
    mountain = (noise(0, 15) + 0.3 * noise(0, 5)) / 1.3
    mountain -= 4 * near + 0.3 * water

    grown = np.full(world.area, ids["grass"], np.uint8)
    open_land = near > 0.5
    rock = ~open_land & (mountain > 0.15)
    flat = ~open_land & ~rock
    beach = flat & (water > 0.25) & (water <= 0.35) & (noise(4, 9) > -0.2)
    lake = flat & ~beach & (water > 0.3)
    grown[beach], grown[lake] = ids["sand"], ids["water"]

    cave = rock & (noise(6, 7) > 0.15) & (mountain > 0.3)
    level = rock & ~cave & (noise.squeezed(7, 3, axis=1) > 0.4)
    upright = rock & ~cave & ~level & (noise.squeezed(7, 3, axis=0) > 0.4)
    tunnels = level | upright
    solid = rock & ~cave & ~tunnels
    grown[cave | tunnels], grown[solid] = ids["path"], ids["stone"]
    grown[solid & (mountain > 0.3) & (noise(6, 5) > 0.35)] = ids["lava"]

    # From here on random numbers decide; a tile asks for one thing after the other until it gets one.
    coal, iron, deep = solid & (noise(1, 8) > 0), solid & (noise(2, 6) > 0.4), solid & (mountain > 0.18)
    wood = flat & ~beach & ~lake & (noise(5, 7) > 0)
    asks = np.argwhere(coal | iron | deep | wood).tolist()
    with drawn(world.random, MOST * len(asks)) as draw:
        for place in map(tuple, asks):
            if wood[place]:
                if draw() > 0.8:
                    grown[place] = ids["tree"]
            elif coal[place] and draw() > 0.85:
                grown[place] = ids["coal"]
            elif iron[place] and draw() > 0.75:
                grown[place] = ids["iron"]
            elif deep[place] and draw() > 0.994:
                grown[place] = ids["diamond"]
    world._mat_map[:] = grown
    return tunnels


def generate_creatures(world: Any, player: Any, tunnels: np.ndarray) -> None:
    """Cows, zombies and skeletons on a world with materials. tunnels (W, H) bool: where skeletons live."""
    ids, grown = world._mat_ids, world._mat_map
    x, y = np.indices(world.area)
    away = np.sqrt((x - player.pos[0]) ** 2 + (y - player.pos[1]) ** 2)
    walkable = np.isin(grown, [ids[name] for name in WALKABLE])
    pasture, wild = (grown == ids["grass"]) & (away > 3), away > 10
    haunted = (grown == ids["path"]) & tunnels
    asks = walkable & (pasture | wild | haunted)
    tiles = zip(
        np.argwhere(asks).tolist(), pasture[asks].tolist(), wild[asks].tolist(), haunted[asks].tolist(), strict=True
    )
    with drawn(world.random, MOST * int(asks.sum())) as draw:
        for place, cows, zombies, bones in tiles:
            if cows and draw() > 0.985:
                world.add(objects.Cow(world, tuple(place)))
            elif zombies and draw() > 0.993:
                world.add(objects.Zombie(world, tuple(place), player))
            elif bones and draw() > 0.95:
                world.add(objects.Skeleton(world, tuple(place), player))
