"""Steps a VectorEnv with a policy and hands out complete steps: what was seen, what was done about it."""

from __future__ import annotations

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
