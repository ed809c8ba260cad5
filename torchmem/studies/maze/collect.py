"""Collect a set of Memory Maze trajectories with the scripted walker, in the published offline format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from torchmem.envs.maze_walker import ACTIONS, MazeWalker
from torchmem.envs.vector import VectorEnv
from torchmem.files import atomic_write
from torchmem.studies.folder import differences
from torchmem.studies.maze.trajectories import MazeSetError, write

MANIFEST = "set.json"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CollectPlan:
    """What decides a set. size: cells a side. steps: actions per trajectory; None: the whole episode.

    noise: share of the walker's actions that are random. held_out: trajectories in eval/, the last ones. worlds: that
    walk side by side; world i walks trajectories i, i + worlds, ... Each trajectory has a maze of its own.
    """

    size: int = 9
    trajectories: int = 60
    held_out: int = 10
    steps: int | None = None
    noise: float = 0.2
    worlds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trajectories < 2 or not 0 < self.held_out < self.trajectories:
            raise ValueError(f"held_out must lie between 0 and trajectories={self.trajectories}; is {self.held_out}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be a share between 0 and 1; got {self.noise}")
        if self.worlds < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"worlds and steps must be at least 1; got {self.worlds} and {self.steps}")

    def file(self, i: int) -> str:
        """Where trajectory `i` lies, below the set's folder."""
        return f"{'train' if i < self.trajectories - self.held_out else 'eval'}/{i:05d}.npz"


def collect(out: str | Path, plan: CollectPlan, *, workers: int = 0, progress: bool = False) -> Path:
    """Walk and write; goes on where an earlier sitting stopped, with the same trajectories as without the stop.

    workers: processes for the worlds, 0: this one. Returns the folder. Raises MazeSetError where `out` holds another
    set, ValueError for a plan that does not fit the world, WorldFailed, OSError.
    """
    out = Path(out)
    card = {"format": "memory-maze offline", **dataclasses.asdict(plan)}
    _check_home(out, card)
    missing = [i for i in range(plan.trajectories) if not (out / plan.file(i)).is_file()]
    if not missing:
        return out
    begin = min(missing) // plan.worlds
    rounds = range(begin, -(-plan.trajectories // plan.worlds))
    kwargs = {"size": plan.size}
    with (
        VectorEnv("memory_maze", kwargs, plan.worlds, split="record", seed=plan.seed, workers=workers,
                  on_error="raise") as worlds,
        tqdm(total=len(rounds) * plan.worlds, unit="trajectory", disable=not progress) as bar,
    ):  # fmt: skip
        most = round(worlds.spec.control_hz * _seconds(worlds.spec.kwargs))
        steps = plan.steps or most
        if steps > most:
            raise ValueError(f"an episode of this maze has {most} steps: {steps} are too many")
        atomic_write(out / MANIFEST, json.dumps(card, indent=1) + "\n")
        for number in rounds:
            _open_round(worlds, number)
            walked = _walk(worlds, plan, number, steps)
            for i, arrays in enumerate(walked, start=number * plan.worlds):
                if i < plan.trajectories:
                    write(out / plan.file(i), arrays)
            bar.update(plan.worlds)
    return out


def _check_home(out: Path, card: Mapping[str, Any]) -> None:
    """Raises MazeSetError where `out` holds something else than the begun set of this manifest."""
    file = out / MANIFEST
    if file.is_file():
        if unlike := differences(json.loads(file.read_text()), card):
            raise MazeSetError(f"{out} holds another set ({unlike}): choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise MazeSetError(f"{out} holds something that was not made by `torchmem collect`: choose another folder")


def _seconds(kwargs: Any) -> float:
    from torchmem.envs.maze_task import TASKS

    return kwargs["time_limit"] or TASKS[kwargs["size"]][1]


def _open_round(worlds: VectorEnv, number: int) -> None:
    """The next step of every world opens its episode `number`, wherever it stands now."""
    state = {
        key: getattr(worlds, key) for key in ("name", "kwargs", "n", "split", "seed")
    } | {"episode": np.full(worlds.n, number - 1), "closed": np.ones(worlds.n, bool)}  # fmt: skip
    worlds.load_state_dict(state)


def _walk(worlds: VectorEnv, plan: CollectPlan, number: int, steps: int) -> list[Arrays]:
    """One trajectory of every world, the keys of the format."""
    first = number * plan.worlds
    walkers = [MazeWalker(np.random.default_rng([plan.seed, first + i]), plan.noise) for i in range(worlds.n)]
    data, truth = worlds.step(None)
    taken = np.zeros((worlds.n, ACTIONS), np.uint8)  # no action before the first image
    rows = [_row(data, truth, taken)]
    for _ in range(steps):
        seen = zip(walkers, truth["pos"], truth["heading"], truth["maze_layout"], strict=True)
        actions = np.array([w.act(pos, float(heading), layout) for w, pos, heading, layout in seen])
        data, truth = worlds.step({"action": actions})
        rows.append(_row(data, truth, np.eye(ACTIONS, dtype=np.uint8)[actions]))
    return [{key: np.stack([row[key][i] for row in rows]) for key in rows[0]} for i in range(worlds.n)]


def _row(data: Arrays, truth: Arrays, taken: np.ndarray) -> Arrays:
    heading = truth["heading"]
    same = ("maze_layout", "targets_pos", "targets_vec", "target_pos", "target_vec", "target_color")
    return {
        "image": data["image"].copy(), "action": taken, "reward": data["reward"].copy(),
        "agent_pos": truth["pos"].copy(), "agent_dir": np.stack([np.cos(heading), np.sin(heading)], -1),
        **{key: truth[key].copy() for key in same},
    }  # fmt: skip
