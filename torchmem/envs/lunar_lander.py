"""LunarLander-v3 of gymnasium (Box2D), with a reward whose terms are shown and can be weighed, left out or added to.

The stock reward of a step is the sum of six terms (gymnasium 1.4, box2d/lunar_lander.py):

    distance, speed, tilt    100 x what distance from the pad, speed and tilt lost since the step before
    legs                     10 for each leg that came down, -10 for each that lifted off
    fuel                     -0.3 x power of the main engine, -0.03 x power of a side engine
    end                      100 at rest, -100 after a crash or out of sight; the other terms of that step are 0

A term of your own is a function `f(before: Motion, action, after: Motion) -> float`, named in `terms`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from torchmem.envs.lunar_lander_config import LunarLanderConfig
from torchmem.envs.protocol import Arrays, World
from torchmem.types import EnvSpec, Space

TERMS = ("distance", "speed", "tilt", "legs", "fuel", "end")
# What the stock task shows, in units of its own: a half screen (10 m across, 6.67 m up) and 50 steps a second.
HALF_WIDTH, HALF_HEIGHT, FPS = 10.0, 20.0 / 3, 50
# solved: gymnasium's documentation. chance: uniformly random actions, 500 episodes on the eval seeds of env 0, standard
# error 5.0 (discrete) and 5.6 (continuous).
LEVELS = {False: {"chance": -184.0, "solved": 200.0}, True: {"chance": -208.9, "solved": 200.0}}


def stock_task() -> Any:
    """The class of gymnasium's task. Loads Box2D, which the spec does not need."""
    try:
        with warnings.catch_warnings():  # Box2D 2.3.10 warns from C while it loads; as an error that kills the process
            warnings.simplefilter("ignore", DeprecationWarning)
            from gymnasium.envs.box2d.lunar_lander import LunarLander as Stock
    except ImportError as error:  # gymnasium's DependencyNotInstalled is one
        raise ImportError(f"env lunar_lander needs Box2D: pip install Box2D ({error})") from error
    return Stock


class Motion(NamedTuple):
    """The lander at one step, as the stock task counts: positions and speeds in half screens, angle in rad."""

    x: float  # 0 over the pad, 1 at the right border
    y: float  # 0 where the legs stand on the pad
    vx: float
    vy: float
    angle: float  # rad, anticlockwise
    spin: float  # rad per 0.4 s
    left: bool  # the left leg touches the ground
    right: bool


Term = Callable[[Motion, Any, Motion], float]


class LunarLander(World):
    """Land softly between the flags. With all weights 1 and no own terms the reward is the stock one, bit for bit."""

    config: LunarLanderConfig

    def __init__(self, config: LunarLanderConfig) -> None:
        super().__init__(config)
        self._sim = stock_task()(
            continuous=config.continuous, gravity=config.gravity, enable_wind=config.wind,
            wind_power=config.wind_power, turbulence_power=config.turbulence_power,
        )
        weights = {name: getattr(config, f"reward_{name}") for name in TERMS}
        self._off = [(i, w - 1) for i, w in enumerate(weights.values()) if w != 1]  # from the stock sum
        self._own = [own_term(text) for text in config.terms]

    @classmethod
    def describe(cls, config: LunarLanderConfig) -> EnvSpec:
        stock = dataclasses.replace(config, continuous=False) == LunarLanderConfig()
        action = (
            Space((2,), "float32", low=-1.0, high=1.0) if config.continuous else Space((), "int64", classes=4)
        )
        truth = {
            "pos": "m from the pad, right and up", "vel": "m/s", "angle": "rad", "spin": "rad/s",
            "legs": "1 = touches the ground, left and right",
            "terms": f"reward by {', '.join([*TERMS, *config.terms])}",
        }
        return EnvSpec(
            name="lunar_lander", obs={"vector": Space((8,), "float32")}, action={"action": action},
            control_hz=float(FPS), truth=truth, levels=LEVELS[config.continuous] if stock else {},
            kwargs=dataclasses.asdict(config),
        )

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        if options:
            raise ValueError(f"lunar_lander has no reset options; got {sorted(options)}")
        self._vector, _ = self._sim.reset(seed=seed)
        self._motion = self._look()
        self._terms = [0.0] * (len(TERMS) + len(self._own))
        self._time = 0

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        if not self.config.continuous:
            action = int(action)
            if not 0 <= action < 4:
                raise ValueError(f"lunar_lander: action must be in 0..3, got {action}")
        before = self._motion
        self._vector, reward, terminated, _, _ = self._sim.step(action)
        self._motion = after = self._look()
        self._time += 1
        stock = (0.0,) * 5 + (float(reward),) if terminated else stock_terms(before, self._powers(action), after)
        own = [weight * float(term(before, action, after)) for weight, term in self._own]
        self._terms = [*stock, *own]
        reward = float(reward) + sum(off * stock[i] for i, off in self._off) + sum(own)
        return reward, terminated, not terminated and self._time >= self.config.max_steps

    def _observe(self) -> Arrays:
        return {"vector": self._vector.copy()}

    def _truth(self) -> Arrays:
        m = self._motion
        return {
            "pos": np.array([m.x * HALF_WIDTH, m.y * HALF_HEIGHT]),
            "vel": np.array([m.vx * FPS / HALF_WIDTH, m.vy * FPS / HALF_HEIGHT]),
            "angle": np.array(m.angle),
            "spin": np.array(m.spin * FPS / 20),
            "legs": np.array([m.left, m.right]),
            "terms": np.array(self._terms),
        }

    def _look(self) -> Motion:
        """The numbers that the stock task rounds to float32 to show them: its reward is made of these."""
        sim = self._sim
        body = sim.lander
        place, speed = body.position, body.linearVelocity
        left, right = sim.legs
        return Motion(
            (place.x - HALF_WIDTH) / HALF_WIDTH, (place.y - (sim.helipad_y + 18 / 30)) / HALF_HEIGHT,
            speed.x * HALF_WIDTH / FPS, speed.y * HALF_HEIGHT / FPS,
            body.angle, 20.0 * body.angularVelocity / FPS, left.ground_contact, right.ground_contact,
        )

    def _powers(self, action: Any) -> tuple[float, float]:
        """Power of main and side engine in [0, 1]."""
        if not self.config.continuous:
            return float(action == 2), float(action in (1, 3))
        main, side = (min(max(float(a), -1.0), 1.0) for a in action)
        return (main + 1) / 2 if main > 0 else 0.0, abs(side) if abs(side) > 0.5 else 0.0

    def close(self) -> None:
        self._sim.close()


def stock_terms(before: Motion, powers: tuple[float, float], after: Motion) -> tuple[float, ...]:
    """The terms of a step that goes on, in the order of TERMS."""
    return (
        100 * (math.hypot(before.x, before.y) - math.hypot(after.x, after.y)),
        100 * (math.hypot(before.vx, before.vy) - math.hypot(after.vx, after.vy)),
        100 * (abs(before.angle) - abs(after.angle)),
        10.0 * (after.left + after.right - before.left - before.right),
        -0.3 * powers[0] - 0.03 * powers[1],
        0.0,
    )


def own_term(text: str) -> tuple[float, Term]:
    """Weight and function of "package.module:function" or "0.5*package.module:function". Raises ValueError."""
    weight, star, place = text.rpartition("*")
    module, colon, name = place.partition(":")
    try:
        if not colon:
            raise ValueError("it has no colon")
        term = getattr(importlib.import_module(module), name)
        if not callable(term):
            raise ValueError(f"{name} is no function")
        return float(weight) if star else 1.0, cast(Term, term)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"env.terms: {text!r} is not package.module:function or 0.5*package.module:function: {error}") from error
