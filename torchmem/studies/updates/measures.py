"""Numbers of one episode that a changed reward or rule should move, read from the world's truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from torchmem.envs.lunar_lander import TERMS
from torchmem.envs.tensor_tables import SUCCESS, WRONG
from torchmem.envs.tensor_world import TIMEOUT


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number per episode.

    name: shown in tables. key: of the truth; "reward" is what the test world pays. index: into its last axis. how:
    the sum over the episode's steps, or its last value. equals: count 1 where the value is this, else 0. given: (key,
    value); the number is NaN in episodes whose last truth[key] is another.
    """

    name: str
    key: str
    index: int | None = None
    how: Literal["sum", "last"] = "sum"
    equals: float | None = None
    given: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        if self.how not in ("sum", "last"):
            raise ValueError(f"measure {self.name}: how must be sum or last, got {self.how!r}")

    def read(self, data: Mapping[str, Any], truth: Mapping[str, Any]) -> np.ndarray:
        """(n,) float64: its value at one step of n worlds. Raises ValueError for a key that the truth lacks."""
        value = np.asarray(data["reward"] if self.key == "reward" else _of(truth, self.key, self.name), np.float64)
        value = value if self.index is None else value[..., self.index]
        if value.ndim != 1:
            raise ValueError(f"measure {self.name}: {self.key} has {value.shape[1:]} numbers a step; give an index")
        return value if self.equals is None else (value == self.equals).astype(np.float64)

    def counts(self, truth: Mapping[str, Any]) -> np.ndarray | None:
        """(n,) bool: whether the episode that ends here is one of `given`; None for all."""
        return None if self.given is None else np.asarray(_of(truth, self.given[0], self.name)) == self.given[1]


def _of(truth: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in truth:
        raise ValueError(f"measure {name}: the world's truth has no {key!r}, only {', '.join(sorted(truth))}")
    return truth[key]


RETURN = Measure("return", "reward")


def default_measures(world: str) -> tuple[Measure, ...]:
    """What is measured in a world unless told otherwise; the return of the test world always comes first.

    lunar_lander: each term of the stock reward, unweighted, and the shares of episodes that came to rest or crashed.
    Cue worlds: shares of success, wrong choice and timeout; minigrid_switching also apart by `switch`.
    """
    if world == "lunar_lander":
        terms = [Measure(name, "terms", i) for i, name in enumerate(TERMS)]
        ends = [Measure(name, "terms", TERMS.index("end"), "last", value)
                for name, value in (("landed", 100.0), ("crashed", -100.0))]  # fmt: skip
        return RETURN, *terms, *ends
    if world in ("minigrid_memory", "minigrid_switching", "minigrid_four_room"):
        shares = [Measure(name, "outcome", None, "last", float(value))
                  for name, value in (("success", SUCCESS), ("wrong", WRONG), ("timeout", TIMEOUT))]  # fmt: skip
        if world == "minigrid_switching":
            shares += [
                Measure(f"success, {text}", "outcome", None, "last", float(SUCCESS), ("switch", float(value)))
                for text, value in (("rule unchanged", 0), ("rule inverted", 1))
            ]
        return RETURN, *shares
    return (RETURN,)
