"""Random play: what a world shows when nobody in particular acts, kept exactly as it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from torchmem.envs.collector import LockStep
from torchmem.envs.seeds import Split
from torchmem.types import EnvSpec, Space

Arrays = dict[str, np.ndarray]
Factory = Callable[[int, Split, int], LockStep]  # (copies, split, seed) -> worlds; the caller closes them


class Row(NamedTuple):
    """One lock-step: what was done before it (None at the first), what came."""

    action: Arrays | None
    data: Arrays
    truth: Arrays


def random_action(space: Space, n: int, rng: np.random.Generator) -> np.ndarray:
    """n actions over the whole range of a key; continuous keys without bounds in [-1, 1]."""
    shape = (n, *space.shape)
    if space.discrete:
        return rng.integers(space.classes or 2, size=shape).astype(space.dtype)
    low, high = max(space.low, -1e6), min(space.high, 1e6)
    low, high = (-1.0, 1.0) if (space.low, space.high) == (-np.inf, np.inf) else (low, high)
    return rng.uniform(low, high, shape).astype(space.dtype)


def random_actions(spec: EnvSpec, n: int, rng: np.random.Generator) -> Arrays:
    return {key: random_action(space, n, rng) for key, space in spec.action.items()}


def play(worlds: LockStep, steps: int, seed: int, ends: int | None = None, first: bool = True) -> list[Row]:
    """At most `steps` lock-steps under random actions of `seed`; arrays are copies.

    ends: stop (after 40 steps at the least) once every copy has ended that many episodes. first: nothing is open yet.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    ended = np.zeros(worlds.n, int)
    for step in range(steps):
        action = None if first and not step else random_actions(worlds.spec, worlds.n, rng)
        data, truth = worlds.step(None if action is None else copied(action))
        rows.append(Row(action, copied(data), copied(truth)))
        ended += np.asarray(data["is_last"])
        if ends is not None and step >= 40 and (ended >= ends).all():
            break
    return rows


def copied(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {key: np.array(value) for key, value in arrays.items()}


def differences(one: list[Row], two: list[Row]) -> tuple[int, str]:
    """How many lock-steps differ in any byte of data or truth, and the first: "step 3: image"."""
    count, first = abs(len(one) - len(two)), ""
    for step, (a, b) in enumerate(zip(one, two, strict=False)):
        keys = [k for x, y in ((a.data, b.data), (a.truth, b.truth)) for k in {*x, *y} if not same(x.get(k), y.get(k))]
        if keys:
            count += 1
            first = first or f"first at step {step}: {', '.join(sorted(keys))}"
    return count, first


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Equal in dtype, shape and every byte."""
    if a is None or b is None:
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
