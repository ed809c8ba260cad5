"""The argument list of LunarLander, cheap to import."""

from __future__ import annotations

import dataclasses
import math

from torchmem.envs.configs import check
from torchmem.options import option


@dataclasses.dataclass
class LunarLanderConfig:
    """LunarLander-v3 of gymnasium: land between two flags; each term of its reward has a weight of its own."""

    continuous: bool = option(False, "Act with (main engine, side engines) in [-1, 1] in place of one of 4 choices.")
    gravity: float = option(-10.0, "Acceleration downwards, above -12 and below 0.")
    wind: bool = option(False, "Push and turn the lander in the air by a wind that is not shown.")
    wind_power: float = option(15.0, "Largest force of the wind, 0 to 20.")
    turbulence_power: float = option(1.5, "Largest torque of the wind, 0 to 2.")
    max_steps: int = option(1000, "Agent steps before truncation.")
    reward_distance: float = option(1.0, "Weight of coming closer to the pad.")
    reward_speed: float = option(1.0, "Weight of slowing down.")
    reward_tilt: float = option(1.0, "Weight of standing upright.")
    reward_legs: float = option(1.0, "Weight of legs that touch the ground.")
    reward_fuel: float = option(1.0, "Weight of fuel: -0.3 a step of the main engine, -0.03 of a side engine.")
    reward_end: float = option(1.0, "Weight of the last step: 100 for coming to rest, -100 for a crash or flying away.")
    terms: list[str] = option(
        [], "Your own terms, as package.module:function or 0.5*package.module:function; see envs/lunar_lander.py.")

    def __post_init__(self) -> None:
        check(-12 < self.gravity < 0, self, "gravity", "above -12 and below 0")
        check(0 <= self.wind_power <= 20, self, "wind_power", "in 0..20")
        check(0 <= self.turbulence_power <= 2, self, "turbulence_power", "in 0..2")
        check(self.max_steps >= 1, self, "max_steps", "at least 1")
        for field in dataclasses.fields(self):
            if field.name.startswith("reward_"):
                check(math.isfinite(getattr(self, field.name)), self, field.name, "a finite number")
