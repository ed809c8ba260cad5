"""Honest clocks: env steps, agent steps, updates and the replay ratio are four different numbers.

agent step   one decision of one env: n envs in lock-step make n at once, opening steps after a reset included.
env step     one tick of the world: agent steps x action repeat.
update       one optimiser step.
replay ratio replayed steps / collected agent steps, as it really came out (the config's `ratio` is what was asked for).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Timer = Callable[[], float]


@dataclasses.dataclass
class Clock:
    """Counters of one run, all of them summed over resumes."""

    action_repeat: int = 1  # env steps per agent step, from EnvSpec
    agent_steps: int = 0
    updates: int = 0
    episodes: int = 0  # finished episodes
    replayed_steps: int = 0  # batch x length of every update
    timer: Timer = time.monotonic

    def __post_init__(self) -> None:
        self._before_s = 0.0
        self._start = self.timer()

    @property
    def env_steps(self) -> int:
        return self.agent_steps * self.action_repeat

    @property
    def replay_ratio(self) -> float:
        return self.replayed_steps / self.agent_steps if self.agent_steps else 0.0

    @property
    def wall_s(self) -> float:
        """Seconds of running, without the time between sittings."""
        return self._before_s + self.timer() - self._start

    def collected(self, agent_steps: int, episodes: int = 0) -> None:
        self.agent_steps += int(agent_steps)  # numpy's integers overflow, and JSON refuses them
        self.episodes += int(episodes)

    def updated(self, replayed_steps: int) -> None:
        self.updates += 1
        self.replayed_steps += int(replayed_steps)

    def row(self) -> dict[str, int | float]:
        """What stands on every row of the log."""
        return {
            "env_steps": self.env_steps,
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "replay_ratio": round(self.replay_ratio, 6),
            "wall_s": round(self.wall_s, 3),
        }

    def state_dict(self) -> dict[str, int | float]:
        counters = ("agent_steps", "updates", "episodes", "replayed_steps", "action_repeat")
        return {**{k: getattr(self, k) for k in counters}, "wall_s": self.wall_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the saved run counted env steps differently."""
        if int(state["action_repeat"]) != self.action_repeat:
            raise ValueError(
                f"action repeat {state['action_repeat']} in the saved run, {self.action_repeat} in this one"
            )
        for name in ("agent_steps", "updates", "episodes", "replayed_steps"):
            setattr(self, name, int(state[name]))
        self._before_s, self._start = float(state["wall_s"]), self.timer()


class Ratio:
    """Updates that are due: ratio / (batch * length) per agent step over all envs, the fraction carried over.

    The first call trains once and starts the count, as in the original (embodied/run/train.py); call it only once
    replay is ready. Counted in exact fractions, so that no drift separates a resumed run from an uninterrupted one.
    """

    def __init__(self, ratio: float, batch: int, length: int) -> None:
        if ratio < 0 or batch < 1 or length < 1:
            raise ValueError(f"ratio must be >= 0 and batch, length >= 1, got {ratio}, {batch}, {length}")
        self.per_step = Fraction(str(ratio)) / (batch * length)
        self._start: int | None = None  # agent step of the first eligible call
        self._done = 0  # updates granted since then, the first one not counted

    def due(self, agent_steps: int) -> int:
        """How many updates to make now that `agent_steps` have been collected in total."""
        if not self.per_step:
            return 0
        if self._start is None:
            self._start, self._done = agent_steps, 0
            return 1
        total = math.floor((agent_steps - self._start) * self.per_step)
        due, self._done = total - self._done, total
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"per_step": str(self.per_step), "start": self._start, "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any], agent_steps: int) -> None:
        """Take up the saved credit; under another ratio (an allowed config change) count anew from `agent_steps`."""
        if Fraction(state["per_step"]) == self.per_step or state["start"] is None:
            self._start, self._done = state["start"], int(state["done"])
        else:
            self._start, self._done = agent_steps, 0


class Every:
    """True once per `steps` counted (at multiples, never caught up twice) or once per `seconds`; 0 or None means never.

    Seconds are for logs and saves only: what depends on them is not reproducible.
    """

    def __init__(
        self, *, steps: int | None = None, seconds: float | None = None, timer: Timer = time.monotonic
    ) -> None:
        if steps and seconds:
            raise ValueError("give steps or seconds, not both")
        self._steps, self._seconds, self._timer = steps or 0, seconds or 0.0, timer
        self._last_step, self._last_time = 0, timer()

    def __call__(self, step: int = 0) -> bool:
        if self._steps:
            fires = step // self._steps > self._last_step // self._steps
            self._last_step = max(step, self._last_step)
            return fires
        if self._seconds and self._timer() - self._last_time >= self._seconds:
            self._last_time = self._timer()
            return True
        return False

    def state_dict(self) -> dict[str, int]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last_step, self._last_time = int(state["last_step"]), self._timer()


class Eta:
    """Seconds left, from the pace of the last `window_s` seconds: warm-up and compilation soon stop counting."""

    def __init__(self, total: int, window_s: float = 120.0, timer: Timer = time.monotonic) -> None:
        self._total, self._window_s, self._timer = total, window_s, timer
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, done: int) -> None:
        now = self._timer()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._window_s:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """Steps per second in the window; 0.0 before two updates."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        (t0, n0), (t1, n1) = self._seen[0], self._seen[-1]
        return (n1 - n0) / (t1 - t0)

    @property
    def left_s(self) -> float:
        """inf while the pace is not known."""
        return max(self._total - self._seen[-1][1], 0) / self.per_s if self.per_s else math.inf

    def __str__(self) -> str:
        return duration(self.left_s)


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s", "7 h 12 min", "2 d 03 h", or "unknown"."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
