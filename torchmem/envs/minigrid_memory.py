"""MiniGrid-Memory on the minigrid package: see a key or a ball, walk down a hallway, turn towards its twin.

Dynamics, reward and random draws are the package's (S sizes and Random); a test replays both. Success pays
1 - 0.9 t / max_steps and terminates, failure pays 0 and terminates, max_steps truncates: reward > 0 means success.

Truth, all of fixed shape. Types: 0 key, 1 ball. `heading` is the angle from +x (east) towards +y (south).
`phase`: 0 cue not seen yet, 1 delay, 2 choice (a choice object was seen since the cue last was), 3 done.
`outcome`: 0 running, 1 success, 2 wrong, 3 timeout. `steps_since_cue`: -1 before it is first seen.
`optimal_actions`: 1 for each action that leads one step nearer to success while avoiding the wrong end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from torchmem.envs.configs import MinigridMemoryConfig
from torchmem.envs.minigrid_geometry import CUES, StockMemory, best_actions, joint_poses, visible
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space

LAYERS = {"object": len(OBJECT_TO_IDX), "colour": len(COLOR_TO_IDX), "state": len(STATE_TO_IDX)}
TRUTH = {
    "pos": "cells", "heading": "rad", "cue_type": "0 key, 1 ball", "target_type": "0 key, 1 ball",
    "success_pos": "cells", "failure_pos": "cells", "cue_visible": "bool", "choice_visible": "bool",
    "steps_since_cue": "steps", "phase": "0 pre_cue, 1 delay, 2 choice, 3 done",
    "outcome": "0 running, 1 success, 2 wrong, 3 timeout", "distance_to_success": "steps", "optimal_actions": "mask",
}
OPTIONS = ("cue", "layout", "agent_pos", "agent_dir", "hallway_end")
IMAGE_SIDE, TILE = 64, 8  # pixels
PRE_CUE, DELAY, CHOICE, DONE = range(4)
RUNNING, SUCCESS, WRONG, TIMEOUT = range(4)


class MinigridMemory(World):
    """See the module's docstring. `reset(options=...)` takes any of

    cue ("key" or "ball"), layout (which of them lies at the north end), agent_pos (x, y), agent_dir (0..3) and
    hallway_end (x of the hallway's last cell). Everything else follows from the seed, unchanged, so one seed with two
    cues makes a counterfactual pair: equal observations wherever no cue cell is in view.
    """

    config: MinigridMemoryConfig

    def __init__(self, config: MinigridMemoryConfig) -> None:
        super().__init__(config)
        self._env = StockMemory(
            size=config.size, random_length=config.random_length, max_steps=config.max_steps,
            agent_view_size=config.view)
        self._views: dict[Any, Arrays] = {}  # (layout, pose) -> observation, filled as poses are met

    @classmethod
    def describe(cls, config: MinigridMemoryConfig) -> EnvSpec:
        view = config.view
        joint_poses(config.size, view, config.random_length)  # warns, once, where memory is not needed
        obs = {
            "symbolic_onehot": {"view": Space((view * view * sum(LAYERS.values()),), "float32", low=0.0, high=1.0)},
            "symbolic": {k: Space((view, view), "uint8", classes=n) for k, n in LAYERS.items()},
            "rgb": {"image": Space((IMAGE_SIDE, IMAGE_SIDE, 3), "uint8")},
        }[config.obs]
        if config.direction:
            obs = {**obs, "direction": Space((), "int64", classes=4)}
        return EnvSpec(
            name="minigrid_memory", obs=obs, action={"action": Space((), "int64", classes=config.actions)},
            control_hz=1.0, truth=TRUTH, score="success",
            levels={"chance": 0.5, "oracle": 1.0},  # chance: walk to one end blindly
            kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        env = self._env
        env.choose = self._check_options(options or {})
        env.reset(seed=seed)
        layout = self._layout = env.layout
        self._sees_cue, self._sees_choice = visible(layout, self.config.view)
        if self.config.start != "stock":
            self._start_at_cue(env.choose)
        self._distance, self._best = best_actions(layout)
        x, y, _ = env.pose()
        if self._distance[x, y, 0] <= 0:
            raise ValueError(f"reset option agent_pos {(x, y)} is an end of the hallway, or cut off from it")
        cue = np.array(CUES.index(layout.cue), np.int64)
        self._fixed = {
            "cue_type": cue, "target_type": cue,  # the target is the cue's twin
            "success_pos": np.array(layout.success_pos, np.float32),
            "failure_pos": np.array(layout.failure_pos, np.float32),
        }
        self._outcome, self._since_cue, self._phase = RUNNING, -1, PRE_CUE
        self._follow()

    def _start_at_cue(self, chosen: Mapping[str, Any]) -> None:
        """Move a drawn start to where the cue is in view; the draw comes after all of minigrid's."""
        env, (cue_x, cue_y) = self._env, self._layout.cue_pos
        if self.config.start == "at_cue":
            pose = (cue_x, cue_y + 1, env.agent_dir)
        else:
            room = self._sees_cue.copy()
            room[4:] = False  # x = 1..3 is the room
            poses = np.argwhere(room)
            pose = tuple(int(i) for i in poses[env.np_random.integers(len(poses))])
        x, y = chosen.get("agent_pos", pose[:2])
        env.place(x, y, chosen.get("agent_dir", pose[2]))

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < self.config.actions:
            raise ValueError(f"minigrid_memory: action must be in 0..{self.config.actions - 1}, got {action}")
        _, paid, terminated, truncated, _ = self._env.step(action)
        reward = float(paid)
        if terminated:
            # minigrid may flag both at max_steps; an episode ends for one reason.
            self._outcome, truncated = (SUCCESS if reward > 0 else WRONG), False
        elif truncated:
            self._outcome = TIMEOUT
        self._follow()
        return reward, terminated, truncated

    def _follow(self) -> None:
        """Bring the memory-related truth up to date with the pose."""
        pose = self._env.pose()
        if self._sees_cue[pose]:
            self._since_cue, self._phase = 0, DELAY
        elif self._since_cue >= 0:
            self._since_cue += 1
        if self._phase == DELAY and self._sees_choice[pose]:
            self._phase = CHOICE

    def _observe(self) -> Arrays:
        pose = self._env.pose()
        key = (self._layout, pose)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._encode()
        obs = {k: v.copy() for k, v in view.items()}  # the kept one must survive a caller who writes into it
        if self.config.direction:
            obs["direction"] = np.array(pose[2], np.int64)
        return obs

    def _encode(self) -> Arrays:
        if self.config.obs == "rgb":
            image = self._env.get_pov_render(TILE)
            nearest = np.arange(IMAGE_SIDE) * len(image) // IMAGE_SIDE
            return {"image": np.ascontiguousarray(image[nearest][:, nearest])}
        layers = dict(zip(LAYERS, np.moveaxis(self._env.look(), -1, 0), strict=True))
        if self.config.obs == "symbolic":
            return {k: np.ascontiguousarray(v) for k, v in layers.items()}
        one_hot = [np.eye(n, dtype=np.float32)[layers[k]] for k, n in LAYERS.items()]
        return {"view": np.concatenate(one_hot, -1).reshape(-1)}

    def _truth(self) -> Arrays:
        x, y, heading = pose = self._env.pose()
        done = self._outcome != RUNNING
        optimal = np.zeros(self.config.actions, np.uint8)
        if not done:
            optimal[:3] = self._best[pose]
        return {
            **{k: v.copy() for k, v in self._fixed.items()},
            "pos": np.array((x, y), np.float32),
            "heading": np.array(heading * np.pi / 2, np.float32),
            "cue_visible": np.array(self._sees_cue[pose]),
            "choice_visible": np.array(self._sees_choice[pose]),
            "steps_since_cue": np.array(self._since_cue, np.int64),
            "phase": np.array(DONE if done else self._phase, np.int64),
            "outcome": np.array(self._outcome, np.int64),
            "distance_to_success": np.array(self._distance[pose], np.int64),  # -1 at the wrong end
            "optimal_actions": optimal,
        }

    def _check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        chosen = dict(options)
        for key, value in chosen.items():
            if key not in OPTIONS:
                raise ValueError(f"minigrid_memory has no reset option {key!r}; valid: {', '.join(OPTIONS)}")
            if key in ("cue", "layout") and value not in CUES:
                raise ValueError(f"reset option {key} must be one of {', '.join(CUES)}; got {value!r}")
            if key == "agent_dir" and value not in range(4):
                raise ValueError(f"reset option agent_dir must be in 0..3; got {value!r}")
            if key == "hallway_end" and value not in range(4, self.config.size - 2):
                raise ValueError(f"reset option hallway_end must be in 4..{self.config.size - 3}; got {value!r}")
            if key == "agent_pos" and not all(0 < int(i) < self.config.size - 1 for i in value):
                raise ValueError(f"reset option agent_pos must lie inside the outer walls; got {value!r}")
        if "agent_pos" in chosen:
            chosen["agent_pos"] = tuple(int(i) for i in chosen["agent_pos"])
        return chosen


