"""When a run has learned enough: the score of its last training episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torchmem.training.run_config import GoalConfig


class Goal:
    """Mean score of the last `episodes` training episodes, against the one that ends the run.

    kind: "success" counts a positive return as 1, any other as 0; "return" takes it as it is.
    """

    def __init__(self, config: GoalConfig, kind: str) -> None:
        self.config, self.kind = config, kind
        self.scores: deque[float] = deque(maxlen=config.episodes)

    def add(self, total: float) -> None:
        """An episode ended with this return."""
        if self.config.score is not None:
            self.scores.append(float(total > 0) if self.kind == "success" else total)

    @property
    def reached(self) -> bool:
        """Never before `episodes` of them have ended."""
        score = self.config.score
        return score is not None and len(self.scores) == self.config.episodes and self.mean >= score

    @property
    def mean(self) -> float:
        return sum(self.scores) / max(len(self.scores), 1)

    def state(self) -> list[float]:
        return list(self.scores)

    def load(self, state: Iterable[float]) -> None:
        self.scores.extend(state)
