"""Arguments of the two bsuite tasks, cheap to import."""

from __future__ import annotations

import dataclasses

from torchmem.envs.configs import check
from torchmem.options import option


@dataclasses.dataclass
class MemoryLengthConfig:
    """bsuite's memory length: see a context bit, wait, and name it when asked."""

    length: int = option(10, "Agent steps per episode: context at the first, question at the last.")
    bits: int = option(1, "Context bits; the question says which one to name.")

    def __post_init__(self) -> None:
        check(self.length >= 1, self, "length", "at least 1")
        check(self.bits >= 1, self, "bits", "at least 1")


@dataclasses.dataclass
class DiscountingChainConfig:
    """bsuite's discounting chain: the first action chooses when the reward comes; one chain pays 10 % more."""

    mapping: int = option(0, "Which of the five chains pays 1.1 (the others pay 1), 0 the soonest to 4 the latest.")
    horizon: int = option(100, "Agent steps per episode; the chains pay after 1, 3, 10, 30 and 100 % of them.")

    def __post_init__(self) -> None:
        check(0 <= self.mapping <= 4, self, "mapping", "in 0..4")
        check(self.horizon >= 50, self, "horizon", "at least 50, or the first two chains pay at the same step")
