"""Worlds with one defect each, and the checks that must find it."""

from __future__ import annotations

import dataclasses

import numpy as np

from torchmem.envs.configs import DummyConfig
from torchmem.envs.dummy import DummyWorld
from torchmem.envs.vector import VectorEnv


@dataclasses.dataclass
class SmallConfig(DummyConfig):
    """A dummy world without image."""

    length: int = 7
    image: int = 0


class Sound(DummyWorld):
    """The dummy world under another name."""

    Config = SmallConfig

    @classmethod
    def describe(cls, config):
        return dataclasses.replace(super().describe(config), name=f"tests.verify.broken_worlds:{cls.__name__}")


class LeaksAtOnce(Sound):
    def _observe(self):
        return {**super()._observe(), "place": np.array(self._place)}


class LeaksLater(Sound):
    """The first observation, which World checks itself, is in order."""

    def _observe(self):
        return {**super()._observe(), **({"place": np.array(self._place)} if self._time else {})}


class IgnoresSeed(Sound):
    def _begin(self, seed, options):
        super()._begin(0, options)


class DrawsNothingButSaysNotSo(Sound):
    DRAWS = False


class DrawsFromOutside(Sound):
    """Its episode comes from the global generator."""

    def _begin(self, seed, options):
        super()._begin(int(np.random.randint(2**31)), options)  # noqa: NPY002


class RemembersEpisodes(Sound):
    """Each episode starts where the one before ended."""

    def _begin(self, seed, options):
        place = getattr(self, "_place", None)
        super()._begin(seed, options)
        self._place = self._place if place is None else place


class WrongType(Sound):
    def _observe(self):
        return {"vector": super()._observe()["vector"].astype(np.float64 if self._time > 2 else np.float32)}


class OutOfRange(Sound):
    """Declares its vector in [0, 1] and shows the time, uncut, every now and then."""

    @classmethod
    def describe(cls, config):
        spec = super().describe(config)
        return dataclasses.replace(spec, obs={"vector": dataclasses.replace(spec.obs["vector"], low=0.0, high=0.5)})


class ForgetsArguments(Sound):
    """Its spec does not name the arguments that it was made with."""

    @classmethod
    def describe(cls, config):
        return dataclasses.replace(super().describe(config), kwargs={"length": config.length + 1})


class RestoresElsewhere(Sound):
    """Says that it restored its state, and opens another episode."""

    def set_state(self, state):
        self.reset(seed=12345)


WORLDS = {
    LeaksAtOnce: {"random play"},
    LeaksLater: {"truth apart", "spec: observations", "random play"},
    IgnoresSeed: {"seeds: different"},
    DrawsNothingButSaysNotSo: {"seeds: different"},
    DrawsFromOutside: {"seeds: same", "seeds: history", "snapshot", "arrays kept"},
    RemembersEpisodes: {"seeds: history"},
    WrongType: {"spec: observations"},
    OutOfRange: {"spec: observations"},
    ForgetsArguments: {"spec: made again"},
    RestoresElsewhere: {"snapshot"},
}


class Wrapped:
    """Worlds in lock-step with a defect of the stepping itself."""

    def __init__(self, n, split, seed):
        self.worlds = VectorEnv("dummy", {"length": 5, "image": 0}, n, split=split, seed=seed)
        self.n, self.spec = n, self.worlds.spec

    def step(self, actions):
        return self.worlds.step(actions)


class NoFirstAfterLast(Wrapped):
    started = False

    def step(self, actions):
        data, truth = super().step(actions)
        data["is_first"] = data["is_first"] & (not self.started)
        self.started = True
        return data, truth


class FirstAtWill(Wrapped):
    def step(self, actions):
        data, truth = super().step(actions)
        data["is_first"][0] = True
        return data, truth


class RewardAtFirst(Wrapped):
    def step(self, actions):
        data, truth = super().step(actions)
        data["reward"][data["is_first"]] = 1
        return data, truth


class TerminalInside(Wrapped):
    def step(self, actions):
        data, truth = super().step(actions)
        data["is_terminal"] = ~data["is_last"]
        return data, truth


class OneBuffer(Wrapped):
    """Hands out the same array again and again."""

    buffer = None

    def step(self, actions):
        data, truth = super().step(actions)
        self.buffer = data["vector"].copy() if self.buffer is None else self.buffer
        self.buffer[...] = data["vector"]
        return {**data, "vector": self.buffer}, truth


class TruthIsItsState(Wrapped):
    """Its episode ends when the truth says so; the caller holds that array."""

    def __init__(self, n, split, seed):
        super().__init__(n, split, seed)
        self.time = np.zeros(n)

    def step(self, actions):
        data, truth = super().step(actions)
        data["vector"][:, 0] = self.time
        self.time += 1
        return data, {**truth, "time": self.time}


class TruthUnderAnObservation(Wrapped):
    def step(self, actions):
        data, truth = super().step(actions)
        return data, {**truth, "place": data["vector"][:, 1]}


class TruthBesideObservations(Wrapped):
    def step(self, actions):
        data, truth = super().step(actions)
        return {**data, "place": truth["place"]}, truth


STEPPING = {
    NoFirstAfterLast: {"flags", "snapshot"},  # what it holds itself is in no snapshot
    FirstAtWill: {"flags"},
    RewardAtFirst: {"flags"},
    TerminalInside: {"flags"},
    OneBuffer: {"arrays kept"},
    TruthIsItsState: {"arrays kept", "snapshot"},
    TruthUnderAnObservation: {"truth apart"},
    TruthBesideObservations: {"truth apart", "spec: observations"},
}
