"""The vocabulary every room shares. A leaf: imports nothing of torchmem, and not torch either.

Glossary letters used in shape comments everywhere:
B batch, T time, H imagination horizon, A actions, E embed, D deter, S stoch variables, K classes, F feature, N units.

Timing of one agent step t (danijar/dreamerv3, embodied/core/driver.py):

    obs[t], reward[t], is_first[t], is_last[t], is_terminal[t]   arrive together,
    action[t]                                                    is chosen after seeing them,
    reward[t + 1]                                                is what action[t] earned.

`is_first[t]`    step t opens an episode: reward[t] is 0 and the action before it does not count.
`is_last[t]`     step t closes an episode (terminated or truncated); action[t] is recorded as zeros.
`is_terminal[t]` step t ended the episode for good: its value is 0. A time limit is last, not terminal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

FLAGS = ("is_first", "is_last", "is_terminal")
RESERVED = ("reward", *FLAGS)  # keys of every step beside the observation keys


@dataclasses.dataclass(frozen=True)
class Space:
    """What one key of an observation or action may hold.

    shape: without batch or time. dtype: a numpy name. classes: number of values of an integer or bool key.
    low, high: bounds of a continuous key (scalars; agents act in [-1, 1] and the env side rescales).
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def discrete(self) -> bool:
        return self.dtype == "bool" or (self.classes is not None)

    @property
    def image(self) -> bool:
        """uint8 height x width x channels."""
        return len(self.shape) == 3 and self.dtype == "uint8"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def one_hot_size(self) -> int:
        """Width of this key once flattened, integers as one-hot."""
        return self.size * ((self.classes or 2) if self.discrete else 1)


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What an agent must know of a world, and what only the experimenter may know (`truth`)."""

    name: str  # config name, such as "memory_maze"
    obs: Mapping[str, Space]  # keys an agent may see
    action: Mapping[str, Space]  # usually one key, "action"
    control_hz: float  # seconds = agent_step / control_hz
    action_repeat: int = 1  # env_steps = agent_steps * action_repeat, really repeated
    truth: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key -> unit; never an agent input
    score: Literal["return", "success"] = "return"  # what evaluation reports
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)  # reference scores: chance, human, oracle
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arguments that make it again
    # observation key -> truth key that is fed into it: a fault of an imported agent, which only its importer sets
    leaked: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        clash = set(self.obs) & (set(RESERVED) | set(self.truth) | set(self.action))
        if clash:
            raise ValueError(f"observation keys {sorted(clash)} of {self.name} are reserved, truth or action keys")
        if set(self.leaked) - set(self.obs):
            raise ValueError(f"leaked keys {sorted(set(self.leaked) - set(self.obs))} of {self.name} are not observed")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What every result made from an agent of this spec must say."""
        if not self.leaked:
            return ()
        given = ", ".join(f"{key} (the world's {truth!r})" for key, truth in sorted(self.leaked.items()))
        return (f"the agent was given the truth as an input: {given}; that it can be decoded shows nothing",)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnvSpec:
        data = dict(data)
        for group in ("obs", "action"):
            data[group] = {k: Space(**{**v, "shape": tuple(v["shape"])}) for k, v in data[group].items()}
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class Site:
    """One address inside an agent: the same word for every agent that has one."""

    name: str  # "dynamics.deter"
    path: str  # module path inside the agent
    axes: tuple[str, ...]  # ("B", "T", "D")
    shape: tuple[int, ...]  # sizes of the axes after B and T
    cadence: Literal["sequence", "step"]  # called once per sequence, or once per time step
    select: str | int | None = None  # field of a structured output
