"""The simulator under Memory Maze: memory-maze 1.0.3's arena, walker and task, built without gym and made quick.

Importing this loads MuJoCo and an OpenGL backend. Equal to the package's own `memory_maze_9x9` & co. frame by frame
(tested); what differs is only what costs time: no sensor is computed that nobody reads, touched targets are found in
one array comparison instead of a Python loop over contacts, and pictures are taken on request.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Mapping
from typing import Any

import gymnasium
import labmaze
import numpy as np

from torchmem.envs.configs import MemoryMazeConfig
from torchmem.envs.gl import check_gl
from torchmem.envs.seeds import narrow_seed

check_gl()

import mujoco  # noqa: E402
from dm_control import composer  # noqa: E402
from dm_control.locomotion.arenas import labmaze_textures  # noqa: E402
from dm_control.locomotion.props import target_sphere  # noqa: E402
from dm_control.mujoco import engine  # noqa: E402


def _import_maze() -> types.ModuleType:
    """memory_maze.maze. The package imports the old `gym` to register its own ids; a stand-in takes that import."""
    stand_ins = {name: types.ModuleType(name) for name in ("gym", "gym.envs", "gym.envs.registration")}
    for name in ("Env", "Space", "spaces"):
        setattr(stand_ins["gym"], name, getattr(gymnasium, name))
    stand_ins["gym.envs.registration"].register = lambda **_: None  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("memory_maze.maze")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


maze = _import_maze()
# The walker has no free joint; dm_control says so at every reset.
logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("Cannot set velocity on Entity"))

XY_SCALE = 2.0  # metres per cell
# memory_maze/tasks.py: size -> (targets, seconds). 7 is ours.
TASKS = {7: (2, 125.0), 9: (3, 250.0), 11: (4, 500.0), 13: (5, 750.0), 15: (6, 1000.0)}
# Roll and steer of: noop, forward, left, right, forward left, forward right.
ACTIONS = np.array([[0, 0], [-1, 0], [0, -1], [0, 1], [-1, -1], [-1, 1]], float)
# Time, positions, velocities, controls, and what the constraint solver starts from: all that a next step depends on.
PHYSICS = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # pyright: ignore[reportAttributeAccessIssue]
MAX_LAYOUTS = 1000  # labmaze layouts tried per episode before giving up on placing all targets


class Target(target_sphere.TargetSphere):
    """A ball that knows when it is touched."""

    def _update_activation(self, physics: Any) -> None:
        if not self._activated and (physics.data.ptr.contact.geom == self._geom_id).any():
            self._activated = True
            physics.bind(self._material).rgba[-1] = 0


class MazeTask(maze.MemoryMazeTask):
    """memory-maze's task with `Target`s, and an end to its search for a layout that holds them all."""

    def _create_targets(self, clear_existing: bool = False, randomize_colors: bool = False, rng: Any = None) -> None:
        while clear_existing and self._targets:
            self._targets.pop().detach()
        if randomize_colors:
            rng.shuffle(self._target_colors)
        for color in self._target_colors[: self.n_targets]:
            height = self._target_radius + self._target_height_above_ground
            rgb = tuple(color)
            target = Target(radius=self._target_radius, height_above_ground=height, rgb1=rgb, rgb2=rgb)
            self._targets.append(target)
            self._maze_arena.attach(target)

    def initialize_episode_mjcf(self, rng: Any) -> None:
        self._layouts = 0
        super().initialize_episode_mjcf(rng)

    def _place_targets(self, rng: Any) -> bool:
        self._layouts += 1
        if self._layouts > MAX_LAYOUTS:
            raise ValueError(f"no maze of this size holds {self.n_targets} targets; enlarge size or lower n_targets")
        return super()._place_targets(rng)


class Simulator:
    """One maze in MuJoCo. Every episode follows from its seed, whatever ran before."""

    def __init__(self, config: MemoryMazeConfig) -> None:
        stock_targets, stock_seconds = TASKS.get(config.size, (0, 0.0))  # 0: the config says, for sizes of its own
        n_targets, time_limit = config.n_targets or stock_targets, config.time_limit or stock_seconds
        # Large mazes have many small rooms (tasks.py, 15x15); the smallest has no space for large ones.
        rooms = {"max_rooms": 9, "room_max_size": 3} if config.size >= 15 or config.size < 9 else {
            "max_rooms": 6, "room_max_size": 5}
        # One set of wall pictures for all ten kinds of wall; the package loads it ten times, 0.7 GB a world.
        walls = labmaze_textures.WallTextures("style_01")
        self.walker = maze.RollingBallWithFriction(camera_height=0.3, add_ears=False)
        self.arena = maze.MazeWithTargetsArena(
            x_cells=config.size + 2, y_cells=config.size + 2,  # with outer walls
            xy_scale=XY_SCALE, z_height=0.4 if config.good_visibility else 1.5, room_min_size=3, **rooms,
            spawns_per_room=1, targets_per_room=1,
            floor_textures=maze.FixedFloorTexture("style_01", ["blue", "blue_bright"]),
            wall_textures={
                "*": maze.FixedWallTexture("style_01", "yellow"),
                **{str(i): walls for i in range(10)},
            },
            skybox_texture=None, random_seed=1,
        )
        self.task = MazeTask(
            walker=self.walker, maze_arena=self.arena, n_targets=n_targets, target_radius=0.6,
            target_height_above_ground=0.5 if config.good_visibility else -0.6, enable_global_task_observables=False,
            control_timestep=1.0 / config.control_freq, camera_resolution=config.image,
            target_randomize_colors=config.randomize_colors,
        )
        for observable in self.task.observables.values():
            observable.enabled = False
        # No light casts shadows here and one picture is this small: same pixels, half the time on a CPU.
        visual = self.arena.mjcf_model.visual
        visual.quality.shadowsize = 0
        for side in ("offwidth", "offheight"):
            setattr(getattr(visual, "global"), side, config.image)
        self.env = composer.Environment(
            task=self.task, time_limit=time_limit - 1e-3,  # so that an episode has time_limit * control_freq steps
            random_state=np.random.RandomState(0), strip_singleton_obs_buffer_dim=True,
        )
        self._side = config.image
        self._camera: engine.Camera | None = None

    @property
    def physics(self) -> Any:
        return self.env.physics

    @property
    def targets(self) -> list[Target]:
        return self.task._targets

    @property
    def target(self) -> int:
        """Index of the target that pays now."""
        return self.task._current_target_ix

    @property
    def target_color(self) -> np.ndarray:
        """RGB of that target, (3,) in [0, 1]."""
        return self.task._target_colors[self.target]

    def reset(self, seed: int) -> None:
        """Open the episode of this seed: walls, colours, spawn and targets all follow from it."""
        old = self.arena.maze
        # labmaze cannot be seeded again; its constructor, called on the same object, starts it afresh.
        labmaze.RandomMaze.__init__(
            old, height=old.height, width=old.width, max_rooms=old.max_rooms, room_min_size=old.room_min_size,
            room_max_size=old.room_max_size, max_variations=old.max_variations, spawns_per_room=old.spawns_per_room,
            objects_per_room=old.objects_per_room, simplify=True, random_seed=narrow_seed(seed, 0) or 1,
        )
        self.env.random_state.seed(narrow_seed(seed, 1))
        self.task._target_colors[:] = maze.TARGET_COLORS  # shuffled in place where colours are random
        for target in self.targets:
            target._activated = False  # what the last episode's end touched must not sway this one's first target
        self._camera = None
        self.env.reset()

    def step(self, action: int) -> tuple[float, bool]:
        """-> reward, time is up."""
        step = self.env.step(ACTIONS[action])
        return float(step.reward), step.last()

    def save(self) -> dict[str, Any]:
        """What changed since the episode began, as numbers and arrays. The maze itself follows from the seed."""
        _, key, place, has_gauss, gauss = self.env.random_state.get_state(legacy=True)
        return {
            "physics": self.physics.get_state(PHYSICS), "target": self.target,
            "obtained": int(self.task._targets_obtained), "touched": np.array([t._activated for t in self.targets]),
            "rng.key": np.array(key), "rng.rest": [int(place), int(has_gauss), float(gauss)],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as when `save` was called, in the maze that `reset` built. Raises ValueError where it does not fit."""
        physics, touched = np.asarray(state["physics"], float), np.asarray(state["touched"], bool)
        size = mujoco.mj_stateSize(self.physics.model.ptr, PHYSICS)  # pyright: ignore[reportAttributeAccessIssue]
        if physics.shape != (size,) or touched.shape != (len(self.targets),):
            raise ValueError(f"the saved physics has {physics.size} numbers and {touched.size} targets, this world "
                             f"{size} and {len(self.targets)}: it was saved by another one")
        self.physics.set_state(physics, PHYSICS)
        # What the next step starts from (contacts, velocities of the ball) follows from the state: dm_control leaves
        # exactly this half of a step done.
        mujoco.mj_step1(self.physics.model.ptr, self.physics.data.ptr)  # pyright: ignore[reportAttributeAccessIssue]
        for target, flag in zip(self.targets, touched, strict=True):
            target.reset(self.physics)
            if flag:
                target._activated = True
                self.physics.bind(target.material).rgba[-1] = 0
        self.task._targets_obtained, self.task._rewarded_this_step = int(state["obtained"]), False
        place, has_gauss, gauss = state["rng.rest"]
        self.env.random_state.set_state(
            ("MT19937", np.asarray(state["rng.key"], np.uint32), int(place), int(has_gauss), float(gauss)))
        self.env._reset_next_step = False
        self.aim(int(state["target"]))

    def aim(self, target: int) -> None:
        """From now on this target pays."""
        if not 0 <= target < len(self.targets):
            raise ValueError(f"memory_maze: target must be in 0..{len(self.targets) - 1}, got {target}")
        self.task._current_target_ix = target

    def picture(self) -> np.ndarray:
        """What the walker sees, uint8 (side, side, 3), framed in the colour of the target that pays."""
        if self._camera is None:  # one per episode: making its scene takes as long as drawing it
            self._camera = engine.Camera(self.physics, self._side, self._side, "walker/egocentric")
        picture = self._camera.render().copy()  # the camera draws into the same array every time
        width = int(2 * np.sqrt(self._side // 64))  # memory_maze/wrappers.py
        color = self.target_color * 255 * 0.7
        picture[:, :width] = picture[:, -width:] = picture[:width] = picture[-width:] = color
        return picture

    def close(self) -> None:
        self._camera = None
        self.env.close()
