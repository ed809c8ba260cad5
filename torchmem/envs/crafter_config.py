"""Arguments of Crafter, cheap to import."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torchmem.envs.configs import check, check_choices
from torchmem.envs.crafter_map import read_map
from torchmem.options import option

STOCK_ONLY = ("image", "night_noise")  # fields that change no rule of the game


@dataclasses.dataclass
class CrafterConfig:
    """Crafter: survive, gather and build in a world that is new in every episode; 22 achievements pay 1 each."""

    length: int = option(10000, "Agent steps before truncation.")
    image: int = option(64, "Side of the image in pixels; at night it also decides what is drawn at random, unless "
                            "night_noise is own.")  # fmt: skip
    area: int | list[int] = option(64, "Tiles of the world: the side of a square, or [width, height].")
    fixed_seed: int | None = option(
        None, "Every episode of every copy and split is the first of crafter.Env(seed=fixed_seed); null: each its own.")
    fixed_layout: int | None = option(
        None, "Every episode has the terrain of crafter.Env(seed=fixed_layout); trees, ores and creatures are its own.")
    map: str | None = option(None, "A drawn world: a text file, or its text (letters: docs/spatial.md); null: none.")
    random_spawn: bool = option(False, "Start on any free tile of grass, sand or path, by the episode's own seed.")
    disable_mobs: bool = option(False, "No zombies, skeletons and arrows; cows stay.")
    egocentric_view: int = option(
        0, "Side in tiles, odd, of a view that turns with the player (moves too: left, right, forward, backward); 0: "
           "the package's.")  # fmt: skip
    upright_sprites: bool = option(
        True, "Egocentric view: turn places and arrows only; false: textures too, and grass then tells the compass.")
    night_noise: Literal["package", "own"] = option(
        "package", "package: the image's noise takes numbers of the game, as in crafter; own: a stream of its own.")
    island: bool = option(False, "Terrain only within a coast, water around it.")
    island_border: int = option(4, "Tiles of water between the coast and each edge of the world, at least.")
    island_fill: float = option(0.72, "Share of the tiles within the border that is land, lakes included.")
    island_roughness: float = option(0.16, "How far the coast departs from an ellipse, 0: not at all.")
    island_seed: int | None = option(None, "Seed of the coast; null: each world's own.")
    cow_spawn_prob: float = option(0.01, "Chance, every 10 steps, that a chunk with too few cows gets one.")
    cow_span_dist: int = option(5, "Tiles from the player within which no cow comes into being.")
    cow_target_scale: float = option(1.0, "Factor of the numbers of cows that a chunk of grass should have.")
    cow_worldgen_scale: float = option(1.0, "Factor of the number of cows with which a world begins.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.length >= 1, self, "length", "at least 1")
        check(self.image >= 36, self, "image", "at least 36 (nine cells of four pixels)")
        if self.map is not None:
            drawn = read_map(self.map)
            self.map, size = drawn.text, [drawn.width, drawn.height]
            check(self.area in (64, size), self, "area", f"left out or {size}, the size of the map")
            self.area = size
            check(self.fixed_layout is None and not self.island, self, "map", "null beside fixed_layout or island")
        check(isinstance(self.area, int) or len(self.area) == 2, self, "area", "a number or [width, height]")
        check(min(self.size) >= 9 and max(self.size) <= 512, self, "area", "between 9 and 512 on each side")
        for seed in ("fixed_seed", "fixed_layout", "island_seed"):
            value = getattr(self, seed)
            check(value is None or 0 <= value < 2**61, self, seed, "null or in [0, 2^61)")
        view = self.egocentric_view
        check(view == 0 or (view >= 3 and view % 2 == 1), self, "egocentric_view", "0, or odd and at least 3")
        check(view == 0 or self.image // view >= 4, self, "egocentric_view", "at most a quarter of image")
        if self.island:
            inside = min(self.size) - 2 * self.island_border
            check(self.island_border >= 0 and inside >= 9, self, "island_border", "0 or more and leave 9 tiles")
            check(0 < self.island_fill <= 1, self, "island_fill", "above 0 and at most 1")
            check(self.island_roughness >= 0, self, "island_roughness", "at least 0")
        check(0 <= self.cow_spawn_prob <= 1, self, "cow_spawn_prob", "in [0, 1]")
        for name in ("cow_span_dist", "cow_target_scale", "cow_worldgen_scale"):
            check(getattr(self, name) >= 0, self, name, "at least 0")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in tiles."""
        return (self.area, self.area) if isinstance(self.area, int) else (self.area[0], self.area[1])

    @property
    def stock(self) -> bool:
        """Whether the rules, worlds and lengths are the published ones."""
        return all(getattr(self, f.name) == f.default for f in dataclasses.fields(self) if f.name not in STOCK_ONLY)
