"""What an agent's sites hold along given trajectories, and what is to be read from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from torchmem.envs.maze_walker import ACTIONS
from torchmem.studies.maze.sight import age, in_view
from torchmem.studies.maze.trajectories import MazeSet, MazeSetError, Trajectory


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the probes are to tell, of M trajectories of L steps in mazes of S x S cells with N balls.

    walls (M, S * S) float32, 1 = free. place (M, L, 4): position in cells and heading as a unit vector. balls
    (M, L, N, 2) cells to the right and ahead. age (M, L, N) steps since the ball was in view, -1 never.
    """

    walls: Tensor
    place: Tensor
    balls: Tensor
    age: Tensor


def truth_of(walks: MazeSet) -> Truth:
    """Raises MazeSetError where the trajectories differ in length, size or number of balls."""
    rows = []
    for file, walk in zip(walks.files, walks, strict=True):
        row = (walk.layout.astype(np.float32).ravel(), np.concatenate([walk.pos, walk.dir], -1), walk.vec,
               age(in_view(walk)))  # fmt: skip
        if rows and any(a.shape != b.shape for a, b in zip(row, rows[0], strict=True)):
            raise MazeSetError(f"{file} has another length, size or number of balls than {walks.files[0]}")
        rows.append(row)
    return Truth(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))


def read_sites(
    model: Any, walks: MazeSet, sites: Sequence[str], *, rows: int = 8, chunk: int = 100, seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """(M, L, D) float16: the sites one after another, as the agent has them when it is led along the trajectories.

    It sees every image and is told every action; its own latents are sampled from `seed`. rows, chunk: trajectories
    and steps of one pass, the carry goes on from pass to pass.
    """
    found = []
    bar = tqdm(total=len(walks), unit="trajectory", disable=not progress, leave=False)
    for begin in range(0, len(walks), rows):
        group = [walks[i] for i in range(begin, min(begin + rows, len(walks)))]
        carry, parts = None, []
        for first in range(0, len(group[0].action), chunk):
            obs, actions, is_first = batch_of(model, group, slice(first, first + chunk))
            out, values = model.run_with_cache(
                obs, list(sites), actions=actions, is_first=is_first, carry=carry, seed=seed * 100_003 + begin + first)
            carry = out.carry
            parts.append(joined(values, sites).half().cpu())
        found.append(torch.cat(parts, 1))
        bar.update(len(group))
    bar.close()
    return torch.cat(found)


def batch_of(
    model: Any, group: Sequence[Trajectory], part: slice
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Observations, actions and is_first, (B, T, ...), of some steps of some trajectories."""
    (key,) = model.spec.obs
    (name,) = model.spec.action
    image = np.stack([walk.image[part] for walk in group])
    first = np.zeros(image.shape[:2], bool)
    if not part.start:
        first[:, 0] = True
    return {key: image}, {name: np.stack([walk.action[part] for walk in group])}, first


def joined(values: Any, sites: Sequence[str]) -> Tensor:
    """(B, T, D) of sites (B, T, ...)."""
    return torch.cat([values[name].flatten(2).float() for name in sites], -1)


def check_agent(model: Any, walk: Trajectory) -> None:
    """Raises MazeSetError where the agent cannot be led along such trajectories."""
    obs, action = dict(model.spec.obs), dict(model.spec.action)
    shapes = {key: tuple(space.shape) for key, space in obs.items()}
    classes = {key: space.classes for key, space in action.items()}
    if list(shapes.values()) != [walk.image.shape[1:]] or list(classes.values()) != [ACTIONS]:
        raise MazeSetError(
            f"the agent sees {shapes} and chooses among {classes}; the set has one image {walk.image.shape[1:]} and "
            f"{ACTIONS} actions: take an agent that was trained with env=memory_maze"
        )


@dataclasses.dataclass
class Steps:
    """Some steps of B rows: obs image (B, T, 64, 64, 3), action, reward, is_first (B, T), and the truth beside them."""

    image: Tensor
    action: Tensor
    reward: Tensor
    is_first: Tensor
    place: Tensor
    balls: Tensor
    walls: Tensor  # (B, T, S * S)

    def to(self, device: torch.device) -> Steps:
        return Steps(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def stream(walks: MazeSet, rows: int, length: int, rng: np.random.Generator) -> Iterator[Steps]:
    """For ever: `rows` rows that go through whole trajectories, drawn again and again, `length` steps at a time.

    Each row begins somewhere in its first trajectory, so that the rows' beginnings do not fall together (the rule of
    truncated backpropagation in the paper, section 4.1); later ones are whole. is_first marks where one begins.
    """
    tails = [_endless(walks, rng) for _ in range(rows)]
    while True:
        parts = [_take(tail, length) for tail in tails]
        yield Steps(*(torch.from_numpy(np.stack(column)) for column in zip(*parts, strict=True)))


def _endless(walks: MazeSet, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, ...]]:
    begin = None
    while True:
        walk = walks[int(rng.integers(len(walks)))]
        begin = int(rng.integers(len(walk.action))) if begin is None else 0
        first = np.zeros(len(walk.action), bool)
        first[begin] = True
        wall = walk.layout.astype(np.float32).ravel()
        place = np.concatenate([walk.pos, walk.dir], -1)
        for t in range(begin, len(first)):
            yield walk.image[t], walk.action[t], walk.reward[t], first[t], place[t], walk.vec[t], wall


def _take(tail: Iterator[tuple[np.ndarray, ...]], length: int) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(column) for column in zip(*(next(tail) for _ in range(length)), strict=True))
