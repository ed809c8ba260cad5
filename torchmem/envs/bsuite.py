"""Two tasks of the Behaviour Suite (Osband et al. 2019, arXiv:1908.03568), written from the paper's description.

Memory length: can information be held over `length` steps? Discounting chain: can a reward be credited over `horizon`
steps? Both end by the rules of the task (terminated), and everything about them is known exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from torchmem.envs.bsuite_config import DiscountingChainConfig, MemoryLengthConfig
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space

PERCENT = (1, 3, 10, 30, 100)  # of the horizon: when each chain pays
BONUS = 0.1


class MemoryLength(World):
    """`vector` float32 (2 + bits): the share of time left; at the last step the index of the bit that is asked for,
    else 0; at the first step the context as -1 and 1, else 0.

    The action at step `length` - 1 (counted from 0) pays 1 if it names the bit, else -1; all others pay nothing.
    `reset(options=...)` takes context (a bit, or a list of them) and query; the rest follows from the seed.
    """

    config: MemoryLengthConfig

    @classmethod
    def describe(cls, config: MemoryLengthConfig) -> EnvSpec:
        return EnvSpec(
            name="bsuite_memory_length", obs={"vector": Space((2 + config.bits,), "float32")},
            action={"action": Space((), "int64", classes=2)}, control_hz=1.0,
            truth={"context": "0 or 1 per bit", "query": "index of the bit that is asked for", "target": "0 or 1",
                   "time": "steps"},
            # A guess is as often right as wrong. An agent without memory is at chance too, unless length is 1.
            levels={"chance": 0.0, "oracle": 1.0}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        bits, chosen = self.config.bits, dict(options or {})
        refuse(self, chosen.keys() - {"context", "query"})
        rng = np.random.default_rng(seed)
        context, query = rng.integers(2, size=bits), int(rng.integers(bits))
        self._context = np.array(chosen.get("context", context), np.int64).reshape(-1)
        self._query = int(chosen.get("query", query))
        if self._context.shape != (bits,) or not np.isin(self._context, (0, 1)).all():
            raise ValueError(f"{self.env_spec.name}: context must be {bits} of 0 and 1, got {chosen['context']!r}")
        if not 0 <= self._query < bits:
            raise ValueError(f"{self.env_spec.name}: query must be in 0..{bits - 1}, got {self._query}")
        self._time = 0

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = valid(self, action)
        self._time += 1
        if self._time < self.config.length:
            return 0.0, False, False
        return (1.0 if action == self._context[self._query] else -1.0), True, False

    def _observe(self) -> Arrays:
        vector = np.zeros(2 + self.config.bits, np.float32)
        vector[0] = 1 - self._time / self.config.length
        if self._time == self.config.length - 1:
            vector[1] = self._query
        if self._time == 0:
            vector[2:] = 2 * self._context - 1
        return {"vector": vector}

    def _truth(self) -> Arrays:
        return {
            "context": self._context.copy(), "query": np.array(self._query, np.int64),
            "target": np.array(self._context[self._query], np.int64), "time": np.array(self._time, np.int64),
        }


class DiscountingChain(World):
    """`vector` float32 (2): the chosen chain, -1 before the choice, and the time as a share of the horizon.

    Chain 0 to 4 is chosen by the first action; later actions do nothing. It pays once, after the steps of `pay_steps`:
    1.1 for chain `mapping`, 1 for the others.
    """

    config: DiscountingChainConfig
    DRAWS = False

    @classmethod
    def describe(cls, config: DiscountingChainConfig) -> EnvSpec:
        return EnvSpec(
            name="bsuite_discounting_chain", obs={"vector": Space((2,), "float32")},
            action={"action": Space((), "int64", classes=len(PERCENT))}, control_hz=1.0,
            truth={"chain": "index, -1 not chosen", "mapping": "index of the chain that pays more",
                   "steps_to_reward": "steps, -1 not chosen or paid", "time": "steps"},
            levels={"chance": 1 + BONUS / len(PERCENT), "oracle": 1 + BONUS}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        refuse(self, options or ())
        self._chain, self._time = -1, 0

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = valid(self, action)
        if self._time == 0:
            self._chain = action
        self._time += 1
        pays = self._time == pay_steps(self.config.horizon)[self._chain]
        reward = (1 + BONUS * (self._chain == self.config.mapping)) if pays else 0.0
        return reward, self._time == self.config.horizon, False

    def _observe(self) -> Arrays:
        return {"vector": np.array([self._chain, self._time / self.config.horizon], np.float32)}

    def _truth(self) -> Arrays:
        left = pay_steps(self.config.horizon)[self._chain] - self._time if self._chain >= 0 else -1
        return {
            "chain": np.array(self._chain, np.int64), "mapping": np.array(self.config.mapping, np.int64),
            "steps_to_reward": np.array(left if left > 0 else -1, np.int64), "time": np.array(self._time, np.int64),
        }


def pay_steps(horizon: int) -> tuple[int, ...]:
    """After how many steps each chain pays: (1, 3, 10, 30, 100) for the paper's horizon of 100."""
    return tuple((horizon * percent + 50) // 100 for percent in PERCENT)


def valid(world: World, action: Any) -> int:
    """The action as an int. Raises ValueError where there is no such action."""
    action, spec = int(action), world.env_spec
    if not 0 <= action < (spec.action["action"].classes or 0):
        raise ValueError(f"{spec.name}: action must be in 0..{(spec.action['action'].classes or 0) - 1}, got {action}")
    return action


def refuse(world: World, options: Collection[str]) -> None:
    if options:
        raise ValueError(f"{world.env_spec.name} has no reset options {sorted(options)}")
