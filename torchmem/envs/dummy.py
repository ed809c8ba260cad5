"""A world with nothing to learn but the clock: its reward is a known function of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.configs import DummyConfig
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space


class DummyWorld(World):
    """Reward at world step t = 1, 2, ... is t / length, whatever the action.

    An episode of T steps so returns T (T + 1) / (2 length).

    Observations: `vector` = (t / length, place, noise...) and `image`, grey as time goes by with a bright column at
    `place`. `place` in [0, 1) moves with the actions and the noise comes from the episode's generator, so a restored
    episode that lost its actions or its random state shows it. Truth: `time` (steps), `place`.
    """

    config: DummyConfig

    @classmethod
    def describe(cls, config: DummyConfig) -> EnvSpec:
        obs: dict[str, Space] = {}
        if config.image:
            obs["image"] = Space((config.image, config.image, 3), "uint8")
        if config.vector:
            obs["vector"] = Space((config.vector,), "float32")
        action = (
            Space((config.actions,), "float32", low=-1.0, high=1.0) if config.continuous
            else Space((), "int64", classes=config.actions)
        )
        # With a fixed length every policy earns the same, so chance and oracle are one number.
        level = (config.length + 1) / 2
        return EnvSpec(
            name="dummy", obs=obs, action={"action": action}, control_hz=1.0, action_repeat=config.action_repeat,
            truth={"time": "steps", "place": "image widths"},
            levels={} if config.vary else {"chance": level, "oracle": level}, kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        self._rng = np.random.default_rng(seed)
        length = self.config.length
        self._end = int(self._rng.integers((length + 1) // 2, length + 1)) if self.config.vary else length
        self._terminates = self.config.ending == "terminated" or (self.config.ending == "both" and seed % 2 == 0)
        self._time, self._place = 0, float(self._rng.random())
        self._noise = self._rng.random(max(self.config.vector - 2, 0), np.float32)

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        self._time += 1
        push = float(np.sum(action)) if self.config.continuous else float(action)
        self._place = (self._place + 0.1 * push) % 1.0
        self._noise = self._rng.random(max(self.config.vector - 2, 0), np.float32)
        done = self._time >= self._end
        return self._time / self.config.length, done and self._terminates, done and not self._terminates

    def _observe(self) -> Arrays:
        obs: Arrays = {}
        if side := self.config.image:
            image = np.full((side, side, 3), 200 * self._time // self.config.length, np.uint8)
            image[:, int(self._place * side)] = 255
            obs["image"] = image
        if self.config.vector:
            obs["vector"] = np.array([self._time / self.config.length, self._place, *self._noise], np.float32)
        return obs

    def _truth(self) -> Arrays:
        return {"time": np.array(self._time, np.int64), "place": np.array(self._place)}
