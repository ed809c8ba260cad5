"""MinigridWorld: what MiniGrid-Memory and its relatives share: observations, dynamics, truth and reset options.

Success pays 1 - 0.9 t / max_steps and terminates, failure pays 0 and terminates, max_steps truncates: reward > 0 means
success.

Truth, all of fixed shape. Types: 0 key, 1 ball, 2 box. `heading` is the angle from +x (east) towards +y (south).
`phase`: 0 not yet seen what decides the target, 1 delay, 2 choice (a choice object was seen since then), 3 done.
`outcome`: 0 running, 1 success, 2 wrong, 3 timeout. `steps_since_cue`: -1 before it is first seen.
`optimal_actions`: 1 for each action that leads one step nearer to success while avoiding the wrong ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from torchmem.envs.minigrid_geometry import LayoutEnv, PosedEnv, best_actions, sightings
from torchmem.envs.minigrid_layouts import GridLayout, Pose
from torchmem.envs.minigrid_views import TILE, encode, enlarge, obs_spaces
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space

# of every world here; each adds what its layouts' `facts` hold
TRUTH = {
    "pos": "cells", "heading": "rad", "cue_visible": "bool", "choice_visible": "bool", "steps_since_cue": "steps",
    "phase": "0 pre_cue, 1 delay, 2 choice, 3 done", "outcome": "0 running, 1 success, 2 wrong, 3 timeout",
    "distance_to_success": "steps", "optimal_actions": "mask",
}
PRE_CUE, DELAY, CHOICE, DONE = range(4)
RUNNING, SUCCESS, WRONG, TIMEOUT = range(4)


class MinigridWorld(World):
    """See the module's docstring. A subclass names itself and makes `_env`, whose resets draw layout and pose."""

    NAME: ClassVar[str]
    OPTIONS: ClassVar[tuple[str, ...]]  # what `reset(options=...)` takes
    _env: PosedEnv

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._views: dict[Any, Arrays] = {}  # (layout, pose) -> observation, filled as poses are met

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        env = self._env
        env.choose = self._check_options(options or {})
        env.reset(seed=seed)
        self._enter(env.layout)
        x, y, _ = env.pose()
        if self._distance[x, y, 0] <= 0:
            raise ValueError(f"reset option agent_pos {(x, y)} is an end of this layout, or cut off from it")
        self._follow()

    def _enter(self, layout: GridLayout) -> None:
        """Look up what holds for the whole episode."""
        self._layout, self._facts = layout, layout.facts()
        self._sees = sightings(layout, self.config.view)
        self._distance, self._best = best_actions(layout)
        self._outcome, self._phase = RUNNING, PRE_CUE
        self._since = {name: -1 for name in self._sees if name != "choice"}

    def present(self) -> tuple[GridLayout, Pose, set[str]]:
        """For experts: layout, pose, and the marks that have been seen."""
        return self._layout, self._env.pose(), {name for name, since in self._since.items() if since >= 0}

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < self.config.actions:
            raise ValueError(f"{self.NAME}: action must be in 0..{self.config.actions - 1}, got {action}")
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
        pose, deciding = self._env.pose(), self._layout.deciding
        for name, since in self._since.items():
            self._since[name] = 0 if self._sees[name][pose] else since + 1 if since >= 0 else -1
        if all(self._since[name] >= 0 for name in deciding) and any(self._since[name] == 0 for name in deciding):
            self._phase = DELAY
        if self._phase == DELAY and self._sees["choice"][pose]:
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
            return {"image": enlarge(self._env.get_pov_render(TILE))}
        return encode(self.config.obs, self._env.look())

    def _truth(self) -> Arrays:
        x, y, heading = pose = self._env.pose()
        done = self._outcome != RUNNING
        optimal = np.zeros(self.config.actions, np.uint8)
        if not done:
            optimal[:3] = self._best[pose]
        return {
            **{k: v.copy() for k, v in self._facts.items()},
            **{f"{name}_visible": np.array(seen[pose]) for name, seen in self._sees.items()},
            **{f"steps_since_{name}": np.array(since, np.int64) for name, since in self._since.items()},
            "pos": np.array((x, y), np.float32),
            "heading": np.array(heading * np.pi / 2, np.float32),
            "phase": np.array(DONE if done else self._phase, np.int64),
            "outcome": np.array(self._outcome, np.int64),
            "distance_to_success": np.array(self._distance[pose], np.int64),  # -1 at a wrong end
            "optimal_actions": optimal,
        }

    def _check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What holds for any layout; a layout refuses the rest."""
        chosen = dict(options)
        for key, value in chosen.items():
            if key not in self.OPTIONS:
                raise ValueError(f"{self.NAME} has no reset option {key!r}; valid: {', '.join(self.OPTIONS)}")
            if key == "agent_dir" and value not in range(4):
                raise ValueError(f"reset option agent_dir must be in 0..3; got {value!r}")
            if key == "agent_pos" and not all(0 < int(i) < self.config.size - 1 for i in value):
                raise ValueError(f"reset option agent_pos must lie inside the outer walls; got {value!r}")
        if "agent_pos" in chosen:
            chosen["agent_pos"] = tuple(int(i) for i in chosen["agent_pos"])
        return chosen


class DrawnWorld(MinigridWorld):
    """A world of ours: each episode draws one layout of a family, then one of its start poses."""

    def __init__(self, config: Any, layouts: list[tuple[Any, float]]) -> None:
        super().__init__(config)
        self._family = [layout for layout, _ in layouts]
        self._chances = np.array([chance for _, chance in layouts])
        self._env = LayoutEnv(
            self._draw, grid_size=config.size, max_steps=config.max_steps or 5 * config.size**2,
            agent_view_size=config.view)

    def _draw(self, rng: np.random.Generator) -> tuple[GridLayout, Pose]:
        layout = self._family[rng.choice(len(self._family), p=self._chances)]
        starts = layout.starts(self.config.start, sightings(layout, self.config.view)["cue"])
        pose = tuple(int(i) for i in starts[rng.integers(len(starts))])
        layout = layout.changed({k: v for k, v in self._env.choose.items() if k in layout.OPTIONS})
        return layout, layout.clip(pose)  # type: ignore[arg-type]


def spec_of(name: str, config: Any, truth: Mapping[str, str], levels: Mapping[str, float]) -> EnvSpec:
    """The spec of one of these worlds. truth: what it adds to TRUTH."""
    return EnvSpec(
        name=name, obs=obs_spaces(config), action={"action": Space((), "int64", classes=config.actions)},
        control_hz=1.0, truth={**TRUTH, **truth}, score="success", levels=levels, kwargs=dataclasses.asdict(config),
    )
