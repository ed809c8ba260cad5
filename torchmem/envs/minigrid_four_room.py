"""Four-Room-Memory: see a cue in one of four rooms, find its twin in another (our definition; circuits spec 5.3).

The cue (green key, ball or box) lies in the corner of the north-west room, where the agent starts in any pose. Each of
`n_candidates` kinds lies in one of the other three corners. Standing beside a candidate ends the episode: success if it
is the cue's twin. Doors are in the middle of each wall or, with `door_layouts` above 1, in one of so many arrangements.

Dynamics are the minigrid package's, reward is Memory's. Truth beyond `minigrid_world.py`: target_pos is where the twin
lies; candidates are the kinds in the north-east, south-west and south-east corner, -1 for none.
"""

from __future__ import annotations

import functools
import logging

from torchmem.envs.configs import MinigridFourRoomConfig
from torchmem.envs.minigrid_four_room_layouts import FourRoomLayout, layouts
from torchmem.envs.minigrid_geometry import count_joint
from torchmem.envs.minigrid_world import DrawnWorld, spec_of
from torchmem.types import EnvSpec

KIND = "0 key, 1 ball, 2 box"
FOUR_ROOM_FACTS = {
    "cue_type": KIND, "target_type": KIND, "target_pos": "cells", "candidates": f"{KIND}, -1 none",
}
log = logging.getLogger("torchmem")


class MinigridFourRoom(DrawnWorld):
    """See the module's docstring. `reset(options=...)` takes any of

    cue ("key", "ball" or "box"), layout (the kinds in the three corners, "" for none), doors (y of the north and south
    door, x of the west and east one), agent_pos (x, y) and agent_dir (0..3).
    """

    NAME = "minigrid_four_room"
    OPTIONS = (*FourRoomLayout.OPTIONS, "agent_pos", "agent_dir")
    config: MinigridFourRoomConfig

    def __init__(self, config: MinigridFourRoomConfig) -> None:
        super().__init__(config, layouts(config))

    @classmethod
    def describe(cls, config: MinigridFourRoomConfig) -> EnvSpec:
        _warn(config.size, config.view, config.n_candidates, config.door_layouts)
        # chance: walk to one of the corners blindly
        return spec_of(cls.NAME, config, FOUR_ROOM_FACTS, {"chance": 1 / config.n_candidates, "oracle": 1.0})


@functools.cache
def _warn(size: int, view: int, n_candidates: int, door_layouts: int) -> None:
    """Say, once, where the target can be told without memory."""
    config = MinigridFourRoomConfig(
        size=size, view=view, n_candidates=n_candidates, door_layouts=door_layouts)  # type: ignore[arg-type]
    if total := count_joint([layout for layout, _ in layouts(config)], view, "cue"):
        log.warning(
            "minigrid_four_room size=%d view=%d: %d poses show the cue and a candidate at once, so this can be solved "
            "without memory; a larger size or a smaller view never does", size, view, total)
