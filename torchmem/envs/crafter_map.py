"""Worlds of Crafter drawn as text, one letter a tile. A leaf: no simulator is loaded.

    .  grass    :  sand    _  path     #  stone    ~  water    %  lava     T  tree     t  table    f  furnace
    c  coal     i  iron    d  diamond  P  player   C  cow      Z  zombie (these three on grass)    S  skeleton (on path)
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

MATERIALS = {
    ".": "grass", ":": "sand", "_": "path", "#": "stone", "~": "water", "%": "lava", "T": "tree", "t": "table",
    "f": "furnace", "c": "coal", "i": "iron", "d": "diamond",
}
STANDING = {"P": ("player", "grass"), "C": ("cow", "grass"), "Z": ("zombie", "grass"), "S": ("skeleton", "path")}
WALKABLE = ("grass", "sand", "path")
LONGEST_PATH = 4096  # characters; more cannot be the name of a file


@dataclasses.dataclass(frozen=True)
class Map:
    """A drawn world. materials[y][x]: names. creatures: (name, x, y). start: (x, y) of the player."""

    text: str
    materials: tuple[tuple[str, ...], ...]
    creatures: tuple[tuple[str, int, int], ...]
    start: tuple[int, int]

    @property
    def width(self) -> int:
        return len(self.materials[0])

    @property
    def height(self) -> int:
        return len(self.materials)

    @property
    def id(self) -> int:
        """A number in [0, 2^31) that names this map."""
        return zlib.crc32(self.text.encode()) & 0x7FFFFFFF


def read_map(given: str) -> Map:
    """A map from its text, or from the file of that name. Without a P the player starts in the middle.

    Raises ValueError naming the row and the letter that is wrong, and where the player cannot stand.
    """
    text = given
    if "\n" not in given.strip("\n"):
        file = Path(given)
        if len(given) > LONGEST_PATH or not file.is_file():
            raise ValueError(f"CrafterConfig.map: {given!r} is neither a file nor a map of several rows")
        text = file.read_text()
    rows = [row.rstrip() for row in text.strip("\n").splitlines()]
    width = len(rows[0])
    start, creatures, materials = None, [], []
    for y, row in enumerate(rows):
        if len(row) != width or not row:
            raise ValueError(f"CrafterConfig.map: row {y + 1} has {len(row)} letters, row 1 has {width}")
        tiles = []
        for x, letter in enumerate(row):
            if letter in STANDING:
                name, ground = STANDING[letter]
                tiles.append(ground)
                if name != "player":
                    creatures.append((name, x, y))
                elif start is not None:
                    raise ValueError(f"CrafterConfig.map: a second P in row {y + 1}, column {x + 1}; one player")
                else:
                    start = (x, y)
            elif letter in MATERIALS:
                tiles.append(MATERIALS[letter])
            else:
                known = "".join([*MATERIALS, *STANDING])
                raise ValueError(f"CrafterConfig.map: {letter!r} in row {y + 1}, column {x + 1} is none of {known}")
        materials.append(tuple(tiles))
    if start is None:
        start = (width // 2, len(rows) // 2)
        if materials[start[1]][start[0]] not in WALKABLE or any(c[1:] == start for c in creatures):
            raise ValueError(f"CrafterConfig.map: no P, and the player cannot stand in the middle, {start}")
    return Map("\n".join(rows) + "\n", tuple(materials), tuple(creatures), start)
