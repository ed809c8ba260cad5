"""Steps a VectorEnv with a policy and hands out complete steps: what was seen, what was done about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchmem.types import EnvSpec

# (obs, carry) -> (actions, carry, extras): all with leading n, on the policy's device
Policy = Callable[[Mapping[str, Tensor], Any], tuple[dict[str, Tensor], Any, dict[str, Tensor]]]


class LockStep(Protocol):
    """What a collector plays: a VectorEnv, or anything that steps n worlds as it does."""

    n: int
    spec: EnvSpec

    def step(
        self, actions: Mapping[str, np.ndarray] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]: ...


class Leaking:
    """Worlds for an agent that was trained on the truth: what its spec calls `leaked` is put among the observations.

    Everything else is the worlds' own. `leaking` makes one only where the agent needs it.
    """

    def __init__(self, worlds: Any, agent: EnvSpec) -> None:
        self._worlds, self._leaked = worlds, {key: (name, agent.obs[key]) for key, name in agent.leaked.items()}
        self.spec = dataclasses.replace(
            worlds.spec, obs={**worlds.spec.obs, **{key: space for key, (_, space) in self._leaked.items()}},
            leaked=agent.leaked,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worlds, name)

    def step(
        self, actions: Mapping[str, np.ndarray] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        data, truth = self._worlds.step(actions)
        fed = {key: np.array(truth[name], space.dtype).reshape(self._worlds.n, *space.shape)
               for key, (name, space) in self._leaked.items()}  # fmt: skip
        return {**data, **fed}, truth


def leaking(worlds: Any, agent: EnvSpec) -> Any:
    """`worlds`, or where the agent's spec says that it was given the truth, the same worlds with that input.

    Raises ValueError where these worlds do not know it.
    """
    if not agent.leaked:
        return worlds
    spec = getattr(worlds, "spec", None)  # pairs of worlds and worlds half-way have none
    unknown = sorted(set(agent.leaked.values()) - set(spec.truth if spec else ()))
    if unknown:
        where = spec.name if spec else type(worlds).__name__
        raise ValueError(f"this agent was given the truth {unknown[0]!r}, which {where} does not know")
    return Leaking(worlds, agent)


class Collector:
    """Holds what a collection in progress consists of: the worlds, the carry, and the actions not yet played."""

    def __init__(self, envs: LockStep, carry: Any, device: torch.device | str = "cpu") -> None:
        self.envs, self.carry, self._where = envs, carry, torch.device(device)
        self.actions: dict[str, np.ndarray] | None = None
        self.truth: dict[str, np.ndarray] = {}  # of the last step; for the experimenter only
        self.returns = np.zeros(envs.n)
        self.lengths = np.zeros(envs.n, int)
        self.finished: list[tuple[int, float, int]] = []  # (env, return, agent steps) of episodes that ended last step

    @torch.no_grad()
    def step(self, policy: Policy) -> dict[str, np.ndarray | Tensor]:
        """One lock-step: observe, act, return the step as replay stores it (n, ...); actions are zero at is_last.

        Only keys of the spec and flags reach the policy: the truth cannot.
        """
        data, self.truth = self.envs.step(self.actions)
        obs = {k: torch.from_numpy(v).to(self._where, non_blocking=True) for k, v in data.items()}
        chosen, self.carry, extras = policy(obs, self.carry)
        actions = {key: value.cpu().numpy() for key, value in chosen.items()}
        for value in actions.values():
            value[data["is_last"]] = 0
        self.actions = actions
        self._count(data)
        return {**data, **actions, **extras}

    def _count(self, data: Mapping[str, np.ndarray]) -> None:
        self.returns = np.where(data["is_first"], 0.0, self.returns) + data["reward"]
        self.lengths = np.where(data["is_first"], 0, self.lengths) + 1
        ended = np.flatnonzero(data["is_last"])
        self.finished = [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in ended]
