"""MiniGrid-Memory on the minigrid package: see a key or a ball, walk down a hallway, turn towards its twin.

Dynamics, reward and random draws are the package's (S sizes and Random); a test replays both. Truth and observations:
`minigrid_world.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchmem.envs.configs import MinigridMemoryConfig
from torchmem.envs.minigrid_geometry import StockMemory, joint_poses
from torchmem.envs.minigrid_layouts import GridLayout, Layout
from torchmem.envs.minigrid_world import MinigridWorld, spec_of
from torchmem.types import EnvSpec

FACTS = {
    "cue_type": "0 key, 1 ball", "target_type": "0 key, 1 ball", "success_pos": "cells", "failure_pos": "cells",
}


class MinigridMemory(MinigridWorld):
    """See the module's docstring. `reset(options=...)` takes any of

    cue ("key" or "ball"), layout (which of them lies at the north end), agent_pos (x, y), agent_dir (0..3) and
    hallway_end (x of the hallway's last cell). Everything else follows from the seed, unchanged, so one seed with two
    cues makes a counterfactual pair: equal observations wherever no cue cell is in view.
    """

    NAME = "minigrid_memory"
    OPTIONS = (*Layout.OPTIONS, "agent_pos", "agent_dir")
    config: MinigridMemoryConfig
    _env: StockMemory

    def __init__(self, config: MinigridMemoryConfig) -> None:
        super().__init__(config)
        self._env = StockMemory(
            size=config.size, random_length=config.random_length, max_steps=config.max_steps,
            agent_view_size=config.view)

    @classmethod
    def describe(cls, config: MinigridMemoryConfig) -> EnvSpec:
        joint_poses(config.size, config.view, config.random_length)  # warns, once, where memory is not needed
        # chance: walk to one end blindly
        return spec_of(cls.NAME, config, FACTS, {"chance": 0.5, "oracle": 1.0})

    def _enter(self, layout: GridLayout) -> None:
        super()._enter(layout)
        if self.config.start != "stock":
            self._start_at_cue(layout, self._env.choose)

    def _start_at_cue(self, layout: GridLayout, chosen: Mapping[str, Any]) -> None:
        """Move a drawn start to where the cue is in view; the draw comes after all of minigrid's."""
        env = self._env
        if self.config.start == "at_cue":
            cue_x, cue_y = env.layout.cue_pos
            pose = (cue_x, cue_y + 1, env.agent_dir)
        else:
            poses = layout.starts(self.config.start, self._sees["cue"])
            pose = tuple(int(i) for i in poses[env.np_random.integers(len(poses))])
        x, y = chosen.get("agent_pos", pose[:2])
        env.place(x, y, chosen.get("agent_dir", pose[2]))
