"""Scripted experts for the batched worlds: they read the truth and walk the shortest way to the end that they want.

The search runs over (state, what has been seen), so that "informed" is the best that an agent can do which must first
see what decides the target: the optimum of circuits spec tables 4.4 and 5.3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.minigrid_world import MinigridWorld
from torchmem.envs.tensor_draws import streams, uniform
from torchmem.envs.tensor_tables import RUNNING, SUCCESS, WRONG, Tables, shortest
from torchmem.envs.tensor_world import TensorWorld

MODES = ("informed", "oracle", "anti", "random")


class Expert:
    """Acts for all copies of a TensorWorld, or for one gymnasium world of the same config.

    mode: "informed": see what decides the target, then go there. "oracle": go there at once. "anti": see what decides
    the target, then go to the nearest wrong end. "random": to an end drawn for each episode, blind to the cue.
    Or the name of an end (`GridLayout.choices`: "north", "south"; Four-Room: "north_east", ...): always there.
    """

    def __init__(self, world: TensorWorld, mode: str = "informed", *, seed: int = 0) -> None:
        self.world, self.mode, self._tables = world, mode, world.tables
        tables, device = world.tables, world.device
        places = tuple(dict.fromkeys(name for layout in tables.layouts for name in layout.choices()))
        if mode not in (*MODES, *places):
            raise ValueError(f"an expert's mode must be one of {', '.join((*MODES, *places))}; got {mode!r}")
        self._deciding = [tables.mark_names.index(name) for name in tables.layouts[0].deciding]
        if mode == "random":
            goals = [_place(tables, name) for name in places]
            here = np.stack([_has(tables, name) for name in places], -1)
            self._present = torch.as_tensor(here, device=device)  # (N, ends)
        elif mode in places:
            goals = [_place(tables, mode)]
        else:
            goals = [tables.end == (WRONG if mode == "anti" else SUCCESS)]
        found = [_plan(tables, goal, self._deciding if mode in ("informed", "anti") else []) for goal in goals]
        distance, action = (np.stack(parts) for parts in zip(*found, strict=True))  # (ends, 2^marks * N)
        self._distance = torch.as_tensor(distance, device=device)
        self._action = torch.as_tensor(action, device=device)
        self._keys = streams(f"expert {world.split} {world.seed} {seed}", world.n, device)

    def act(self) -> dict[str, Tensor]:
        """The next action of every copy, int64 (n); 0 where the episode is over."""
        return {"action": self._action[self._ends(), self._nodes()]}

    def distance(self) -> Tensor:
        """How many actions this expert still needs, int64 (n); -1 where its end cannot be reached."""
        return self._distance[self._ends(), self._nodes()]

    def act_in(self, world: MinigridWorld) -> int:
        """The next action in a gymnasium world of the same config. Not for mode "random", whose draws are per copy."""
        if self.mode == "random":
            raise ValueError("mode random draws an end for each batched copy; name the end for a gymnasium world")
        layout, pose, seen = world.present()
        node = int(self._tables.ids[(self._tables.layouts.index(layout), *pose)])
        if self.mode in ("informed", "anti"):
            for bit, mark in enumerate(self._deciding):
                node += len(self._tables.end) * (1 << bit) * (self._tables.mark_names[mark] in seen)
        return int(self._action[0, node])

    def _nodes(self) -> Tensor:
        state, since = self.world.present()
        if self.mode in ("informed", "anti"):
            for bit, mark in enumerate(self._deciding):
                state = state + len(self._tables.end) * (1 << bit) * (since[:, mark] >= 0)
        return state

    def _ends(self) -> Tensor:
        """Which end each copy is after."""
        state, _ = self.world.present()
        if self.mode != "random":
            return torch.zeros_like(state)
        present = self._present.index_select(0, state)
        wanted = (uniform(self._keys, self.world.episode) * present.sum(1)).long()
        return ((present.cumsum(1) == wanted[:, None] + 1) & present).long().argmax(1)


def _plan(tables: Tables, goal: np.ndarray, marks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Distance and action of every (seen, state), flat: goal counts only where all `marks` have been seen."""
    states, sets = len(tables.end), 1 << len(marks)
    sees = sum((tables.marks[:, mark].astype(np.int64) << bit for bit, mark in enumerate(marks)), np.zeros(states, int))
    seen = np.arange(sets)[:, None]
    following = tables.following + states * (seen[..., None] | sees[tables.following])
    wanted = goal & (seen == sets - 1)
    running = np.broadcast_to(tables.end == RUNNING, wanted.shape)
    distance, best = shortest(following.reshape(-1, 3), wanted.ravel(), running.ravel())
    return distance, best.argmax(-1).astype(np.int64)


def _place(tables: Tables, name: str) -> np.ndarray:
    """The states in which the end of this name is reached: bool (N)."""
    goal = np.zeros(len(tables.end), bool)
    for k, layout in enumerate(tables.layouts):
        for cell in layout.choices().get(name, ()):
            here = tables.ids[k][cell]
            goal[here[here >= 0]] = True
    return goal


def _has(tables: Tables, name: str) -> np.ndarray:
    """The states whose layout has an end of this name: bool (N)."""
    return np.array([name in layout.choices() for layout in tables.layouts])[tables.layout]
