"""Small worlds for the tests of this folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

import numpy as np

from torchmem.envs.configs import DummyConfig
from torchmem.envs.dummy import DummyWorld
from torchmem.envs.protocol import World
from torchmem.types import EnvSpec, Space

# cases for tests that take any world; none where EnvPool does not exist
PROCGEN = [("procgen", {"game": "leaper", "mode": "easy"})] if importlib.util.find_spec("envpool") else []


@dataclasses.dataclass
class TwoHandsConfig:
    """No arguments."""


class TwoHands(World):
    """A world with two action keys; remembers the sum of what both hands did."""

    Config = TwoHandsConfig

    @classmethod
    def describe(cls, config):
        return EnvSpec(
            name="two_hands", obs={"sum": Space((2,), "float32")},
            action={"left": Space((), "int64", classes=3), "right": Space((2,), "float32", low=-1, high=1)},
            control_hz=1.0, truth={"time": "steps"},
        )

    def _begin(self, seed, options):
        self.sum, self.time = np.zeros(2, np.float32), 0

    def _advance(self, action):
        self.sum = self.sum + action["left"] + action["right"]
        self.time += 1
        return 1.0, False, False

    def _observe(self):
        return {"sum": self.sum.astype(np.float32)}

    def _truth(self):
        return {"time": np.array(self.time)}


@dataclasses.dataclass
class TroubleConfig:
    """Where and how often the world fails."""

    at: int = 3  # step
    times: int = 1  # failures in all, counted in `folder`
    folder: str = ""
    die: bool = False  # end the process, rather than raise
    at_reset: bool = False


class Trouble(DummyWorld):
    """The dummy world, failing on purpose."""

    Config = TroubleConfig

    def __init__(self, config):
        self.trouble = config
        super().__init__(config)
        self.config = DummyConfig(length=6, image=0)

    @classmethod
    def describe(cls, config):
        return dataclasses.replace(DummyWorld.describe(DummyConfig(length=6, image=0)), name="trouble")

    def _fail(self):
        for turn in range(self.trouble.times):
            try:
                (Path(self.trouble.folder) / str(turn)).touch(exist_ok=False)  # worlds of two processes may race
            except FileExistsError:
                continue
            if self.trouble.die:
                os._exit(41)
            raise RuntimeError("the world broke on purpose")

    def _begin(self, seed, options):
        if self.trouble.at_reset:
            self._fail()
        super()._begin(seed, options)

    def _advance(self, action):
        if self._time + 1 == self.trouble.at:
            self._fail()
        return super()._advance(action)
