"""Memory Maze (Pasukonis et al. 2022): fetch the ball whose colour frames the image, again and again, by memory.

Truth, as in the package's ExtraObs variants, in cells with (0, 0) at the bottom left of the inner maze: `pos`
(agent_pos there), `heading` the angle of agent_dir from +x towards +y, `maze_layout` uint8 [row y, column x] with
1 where one can walk, `targets_pos` and agent-centred `targets_vec` (right, ahead), and of the ball that pays now its
index `target`, `target_pos`, `target_vec` and `target_color` (RGB in [0, 1]).

An episode ends by its time limit only (truncated). It is restored from the state of the physics, in the same maze at
once, else after building the maze of its seed again. `reset(options={"target": i})` opens the same episode with another
ball that pays first, and `set_target` changes it later: the two halves of a counterfactual pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.envs.configs import MemoryMazeConfig
from torchmem.envs.protocol import Arrays, RestoreError, World, checksum
from torchmem.types import EnvSpec, Space

if TYPE_CHECKING:
    from torchmem.envs.maze_task import Simulator

# Targets collected per episode of the published tasks: README of jurgisp/memory-maze. chance: uniformly random actions,
# 20 episodes on the eval seeds of env 0, standard error 0.10; not measured for the larger mazes.
LEVELS = {
    9: {"chance": 0.25, "human": 26.4, "oracle": 34.8},
    11: {"human": 44.3, "oracle": 58.0},
    13: {"human": 55.5, "oracle": 74.5},
    15: {"human": 67.7, "oracle": 87.7},
}
TRUTH = {
    "pos": "cells", "heading": "rad", "maze_layout": "1 = free", "targets_pos": "cells", "targets_vec": "cells",
    "target": "index", "target_pos": "cells", "target_vec": "cells", "target_color": "RGB in [0, 1]",
}


class MemoryMaze(World):
    """One maze per episode, a new one each time. Reward 1 for touching the ball that pays; then another one pays."""

    config: MemoryMazeConfig

    def __init__(self, config: MemoryMazeConfig) -> None:
        super().__init__(config)
        from torchmem.envs.maze_task import Simulator  # here, as it loads MuJoCo and OpenGL

        self._sim: Simulator = Simulator(config)
        self._built: int | None = None  # seed of the maze that stands

    @classmethod
    def describe(cls, config: MemoryMazeConfig) -> EnvSpec:
        published = config.n_targets is None and config.time_limit is None and config.control_freq == 4.0
        return EnvSpec(
            name="memory_maze", obs={"image": Space((config.image, config.image, 3), "uint8")},
            action={"action": Space((), "int64", classes=6)}, control_hz=config.control_freq, truth=TRUTH,
            levels=LEVELS.get(config.size, {}) if published else {}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        if set(options or {}) - {"target"}:
            raise ValueError(f"memory_maze has the reset option target; got {sorted(options or {})}")
        sim = self._sim
        self._built = None
        sim.reset(seed)
        if options:
            sim.aim(int(options["target"]))
        inner = sim.arena.maze.entity_layer[1:-1, 1:-1]
        free = np.isin(inner, [" ", "P", "G"])  # floor, and where the walker and targets may be put
        self._layout = np.ascontiguousarray(free[::-1].astype(np.uint8))  # row 0 at the bottom
        self._center = np.array([self.config.size, self.config.size]) / 2
        self._targets = np.stack([sim.physics.bind(t.geom).xpos.copy() for t in sim.targets])
        self._built = seed

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < 6:
            raise ValueError(f"memory_maze: action must be in 0..5, got {action}")
        reward, over = self._sim.step(action)
        return reward, False, over

    def _observe(self) -> Arrays:
        return {"image": self._sim.picture()}

    def _truth(self) -> Arrays:
        from torchmem.envs.maze_task import XY_SCALE

        body = self._sim.physics.bind(self._sim.walker.root_body)
        frame = np.array(body.xmat).reshape(3, 3)  # columns: the walker's right, ahead, up
        place = np.array(body.xpos)
        pos = (place[:2] / XY_SCALE + self._center).astype(np.float32)
        targets_pos = (self._targets[:, :2] / XY_SCALE + self._center).astype(np.float32)
        targets_vec = (((self._targets - place) @ frame)[:, :2] / XY_SCALE).astype(np.float32)
        target = self._sim.target
        return {
            "pos": pos,
            "heading": np.array(np.arctan2(frame[1, 1], frame[0, 1]), np.float32),
            "maze_layout": self._layout.copy(),
            "targets_pos": targets_pos,
            "targets_vec": targets_vec,
            "target": np.array(target, np.int64),
            "target_pos": targets_pos[target].copy(),
            "target_vec": targets_vec[target].copy(),
            "target_color": self._sim.target_color.astype(np.float32),
        }

    def get_state(self) -> dict[str, Any]:
        """The open episode as a flat dict of JSON values and arrays: its seed and the state of the physics."""
        if not self._open:
            raise RuntimeError("memory_maze: no open episode to save")
        return {"seed": self._seed, "options": self._options, "check": checksum(self._truth()), **self._sim.save()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue the saved episode: the same actions then give the same frames, truth and rewards, bit for bit.

        Raises RestoreError where the state does not fit this world, or the truth then differs from what was saved.
        """
        if "physics" not in state:  # saved before 21 November 2026: seed and actions
            super().set_state(state)
            return
        self._open = False
        self._seed, self._options, self._actions = int(state["seed"]), state["options"], []
        if self._built != self._seed:
            self._begin(self._seed, self._options)
        try:
            self._sim.load(state)
        except ValueError as error:
            raise RestoreError(str(error)) from error
        if checksum(self._truth()) != state["check"]:
            raise RestoreError("the restored world differs from the saved one")
        self._open = True

    def set_target(self, target: int) -> None:
        """From now on ball `target` pays and frames the image; nothing else changes. Raises ValueError."""
        self._sim.aim(target)

    def close(self) -> None:
        self._sim.close()
