"""Edits of an agent's memory along directions, as surgery's edits: the same hold in a simulator and in the real world.

Spec simulator.md section 6 and R12: they edit movement (Swap, Collapse) or place (Project), find the amounts along
directions that are not orthogonal jointly, and act before the heads read, in both worlds alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.find_directions import DirectionsResult
from torchmem.models.simulator.agent_loop import Edit
from torchmem.studies.slopes import memory_field
from torchmem.surgery.edits import At, Project, SiteEdit
from torchmem.surgery.movement import Swap


@dataclasses.dataclass(frozen=True)
class Changes:
    """swap: (from, to) pairs; drop: directions along which nothing moves; clamp: (direction, value of y)."""

    swap: tuple[tuple[int, int], ...] = ()
    drop: tuple[int, ...] = ()
    clamp: tuple[tuple[int, float], ...] = ()

    @property
    def numbers(self) -> list[int]:
        """All directions named, each once."""
        named = [k for pair in self.swap for k in pair] + list(self.drop) + [k for k, _ in self.clamp]
        return list(dict.fromkeys(named))

    def describe(self) -> str:
        parts = [f"{a} into {b}" for a, b in self.swap] + [f"drop {k}" for k in self.drop]
        return ", ".join(parts + [f"{k} at {y:g}" for k, y in self.clamp]) or "nothing"


def read_changes(swap: Sequence[str], drop: Sequence[int], clamp: Sequence[str]) -> Changes:
    """ "10:12" (route), "3<>5" (both ways), 7, "4=1.5". Raises ValueError naming the word that is wrong."""
    pairs: list[tuple[int, int]] = []
    for word in swap:
        if (match := re.fullmatch(r"(\d+)(:|<>)(\d+)", word)) is None:
            raise ValueError(f"--swap {word!r} is neither A:B nor A<>B")
        a, b = int(match[1]), int(match[3])
        pairs += [(a, b)] if match[2] == ":" else [(a, b), (b, a)]
    held = []
    for word in clamp:
        if (match := re.fullmatch(r"(\d+)=(-?\d+(?:\.\d+)?)", word)) is None:
            raise ValueError(f"--clamp {word!r} is not K=Y, such as 4=1.5")
        held.append((int(match[1]), float(match[2])))
    return Changes(tuple(pairs), tuple(drop), tuple(held))


def make_edits(
    directions: DirectionsResult, changes: Changes, dose: float = 1.0, turn: np.ndarray | None = None
) -> list[SiteEdit]:
    """At site `memory`. dose: 0 leaves everything, 1 is the whole change (a clamp is held whole at any dose above 0).

    turn: (k, k') random rows in place of the directions named, for controls: see `random_rows`.
    Raises ValueError for unknown or repeated directions.
    """
    if directions.site != "memory":
        raise ValueError(f"the directions are of {directions.site}; an agent is edited at the site memory")
    directions.chosen(changes.numbers)  # raises
    rows = dict(zip(changes.numbers, directions.decode[changes.numbers] if turn is None else turn))
    sources = [a for a, _ in changes.swap] + list(changes.drop)
    if len(set(sources)) != len(sources):
        raise ValueError(f"a direction is the source of two changes: {changes.describe()}")
    edits: list[SiteEdit] = []
    if sources and dose:
        gone = [rows[k] for k in sources]
        come = [rows[b] for _, b in changes.swap] + [np.zeros_like(directions.centre)] * len(changes.drop)
        at = [s + dose * (t - s) for s, t in zip(gone, come)]
        edits.append(Swap("memory", _tensor(gone), _tensor(at)))
    if changes.clamp and dose:
        held = [k for k, _ in changes.clamp]
        point = directions.centre + sum(y * rows[k] for k, y in changes.clamp)
        basis = _tensor([rows[k] for k in held])
        dual = _tensor(directions.encode[held]) if turn is None else None  # y as the directions read it
        edits.append(Project("memory", basis, mean=_tensor(point), dual=dual))
    return edits


def named_edits(
    directions: DirectionsResult | None, swap: Sequence[str], drop: Sequence[int], clamp: Sequence[str]
) -> list[SiteEdit]:
    """The edits that these words ask for, whole; none for no words. Raises ValueError, also without directions."""
    changes = read_changes(swap, drop, clamp)
    if not changes.numbers:
        return []
    if directions is None:
        raise ValueError("swap, drop and clamp edit along directions: give the folder that torchmem directions wrote")
    return make_edits(directions, changes)


def random_rows(directions: DirectionsResult, changes: Changes, rng: np.random.Generator) -> np.ndarray:
    """As many random directions as are named, each as long: each unit drawn by its own standard deviation, dead units
    left out. They overlap with those named as chance has it, most in small memories."""
    named = directions.decode[changes.numbers]
    live = np.abs(directions.decode).max(0) > 0
    mixed = rng.normal(size=named.shape) * directions.scale * live
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True) * np.linalg.norm(named, axis=1, keepdims=True)


def in_simulator(edits: Sequence[SiteEdit], agent: Any) -> Edit:
    """The same edits for `rollout(..., edit=..., early=True)`. Movement across the reset of an episode is let be.

    A fresh one for each rollout: it counts the steps.
    """
    field, step = memory_field(agent), [0]

    def edit(before: Any, after: Any) -> Any:
        old, new = getattr(before, field), getattr(after, field)
        value: Tensor = new.unsqueeze(1)
        first = torch.zeros(len(value), 1, dtype=torch.bool, device=value.device)
        for one in edits:
            value = one.apply(value, At([step[0]], "imagine", first, old.unsqueeze(1)))
        step[0] += 1
        return after._replace(**{field: value[:, 0]})

    return edit


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)
