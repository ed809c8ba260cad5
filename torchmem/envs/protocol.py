"""World: what every environment of torchmem is. A gymnasium.Env that keeps the truth apart and can be restored.

A subclass fills in five methods (describe, _begin, _advance, _observe, _truth) and is then resettable by one integer,
restorable in the middle of an episode, and usable from gymnasium, TorchRL and VectorEnv. See docs/add_an_env.md.
"""

from __future__ import annotations

import abc
import copy
import zlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from torchmem.types import EnvSpec, Space

Arrays = dict[str, np.ndarray]


class RestoreError(RuntimeError):
    """A saved episode could not be continued exactly."""


class World(gymnasium.Env, abc.ABC):
    """One environment. `reset` and `step` are gymnasium's; `info["truth"]` holds the keys of `env_spec.truth`.

    An action is a number or array when the only action key is "action", else a dict. Everything random in an episode
    follows from its reset seed, so that seed + actions make the episode again.
    """

    Config: type  # dataclass of its arguments; worlds listed in make.CONFIGS need not set it
    env_spec: EnvSpec
    DRAWS = True  # False: nothing is drawn, so that every seed opens the same episode
    metadata = {"render_modes": []}

    def __init__(self, config: Any) -> None:
        self.config = config
        self.env_spec = self.describe(config)
        self.observation_space = gymnasium.spaces.Dict({k: gym_space(s) for k, s in self.env_spec.obs.items()})
        spaces = {k: gym_space(s) for k, s in self.env_spec.action.items()}
        self._plain_action = list(spaces) == ["action"]
        self.action_space = spaces["action"] if self._plain_action else gymnasium.spaces.Dict(spaces)
        self._checked = False
        self._open = False
        self._seed = 0
        self._options: dict[str, Any] | None = None
        self._actions: list[Any] = []

    @classmethod
    def draws(cls, config: Any) -> bool:
        """DRAWS, where the config has no say in it."""
        return cls.DRAWS

    # What a subclass fills in -------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def describe(cls, config: Any) -> EnvSpec:
        """The spec that a world with this config has; must not start a simulator."""

    @abc.abstractmethod
    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        """Open the episode that `seed` and `options` determine, whatever ran before."""

    @abc.abstractmethod
    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        """One world step -> (reward, terminated, truncated). Must not render: replays skip `_observe`."""

    @abc.abstractmethod
    def _observe(self) -> Arrays:
        """What the agent sees now: the keys, shapes and dtypes of `env_spec.obs`."""

    @abc.abstractmethod
    def _truth(self) -> Arrays:
        """What only the experimenter may know now: the keys of `env_spec.truth`, arrays of fixed shape."""

    # gymnasium ----------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Open an episode. seed None: the next one of this world's own generator. -> (observation, {"truth": ...})."""
        super().reset(seed=seed)
        self._open = False
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._seed, self._options, self._actions = int(seed), dict(options) if options else None, []
        self._begin(self._seed, self._options)
        self._open = True
        obs, truth = self._observe(), self._truth()
        if not self._checked:
            check_keys(self.env_spec, obs, truth)
            self._checked = True
        return obs, {"truth": truth}

    def step(self, action: Any) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """One agent step (`action_repeat` world steps, rewards summed). Raises RuntimeError when no episode is open."""
        if not self._open:
            raise RuntimeError(f"{self.env_spec.name}: no open episode; call reset() first")
        reward, terminated, truncated = self._repeat(action)
        self._actions.append(copy.deepcopy(action) if isinstance(action, (dict, np.ndarray)) else action)
        self._open = not (terminated or truncated)
        return self._observe(), reward, terminated, truncated, {"truth": self._truth()}

    # Restoring ----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """The open episode as a flat dict of JSON values and arrays: enough for `set_state` to continue exactly.

        This one saves reset seed and actions. A world that can save less may override both methods.
        """
        if not self._open:
            raise RuntimeError(f"{self.env_spec.name}: no open episode to save")
        state: dict[str, Any] = {"seed": self._seed, "options": self._options, "check": checksum(self._truth())}
        for key, space in self.env_spec.action.items():
            rows = [a if self._plain_action else a[key] for a in self._actions]
            state[f"actions.{key}"] = np.array(rows, space.dtype).reshape(len(rows), *space.shape)
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue the saved episode. Raises RestoreError if the truth then differs from what was saved."""
        arrays = {key: state[f"actions.{key}"] for key in self.env_spec.action}
        actions = (
            list(arrays["action"]) if self._plain_action
            else [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
        )
        self._open = False
        self._seed, self._options = int(state["seed"]), state["options"]
        self._begin(self._seed, self._options)
        for step, action in enumerate(actions):
            _, terminated, truncated = self._repeat(action)
            if terminated or truncated:
                raise RestoreError(f"the saved episode ended at step {step + 1} of {len(actions)}")
        if checksum(self._truth()) != state["check"]:
            raise RestoreError(f"after {len(actions)} replayed steps the world differs from the saved one")
        self._actions, self._open = actions, True

    def _repeat(self, action: Any) -> tuple[float, bool, bool]:
        total = 0.0
        for _ in range(self.env_spec.action_repeat):
            reward, terminated, truncated = self._advance(action)
            total += reward
            if terminated or truncated:
                break
        return total, terminated, truncated


def gym_space(space: Space) -> gymnasium.Space:
    """The gymnasium space of a key. A scalar choice is Discrete, an array of choices MultiDiscrete, the rest Box."""
    if space.dtype == "bool":
        return gymnasium.spaces.Box(0, 1, space.shape, np.bool_)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if space.discrete and not space.shape:
        return gymnasium.spaces.Discrete(int(space.classes or 2), dtype=np.dtype(space.dtype))
    if space.discrete:
        return gymnasium.spaces.MultiDiscrete(np.full(space.shape, space.classes), dtype=np.dtype(space.dtype))
    if space.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, space.shape, np.uint8)
    return gymnasium.spaces.Box(space.low, space.high, space.shape, np.dtype(space.dtype))


def check_keys(spec: EnvSpec, obs: Mapping[str, Any], truth: Mapping[str, Any]) -> None:
    """Raise ValueError where a world does not emit what its spec promises."""
    if set(obs) != set(spec.obs):
        raise ValueError(f"{spec.name} emits observations {sorted(obs)}, its spec says {sorted(spec.obs)}")
    if set(truth) != set(spec.truth):
        raise ValueError(f"{spec.name} emits truth {sorted(truth)}, its spec says {sorted(spec.truth)}")
    for key, space in spec.obs.items():
        value = np.asarray(obs[key])
        if value.shape != space.shape or value.dtype != np.dtype(space.dtype):
            raise ValueError(f"{spec.name}: {key} is {value.dtype}{list(value.shape)}, its spec says "
                             f"{space.dtype}{list(space.shape)}")


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """A 32-bit fingerprint of named arrays."""
    total = 0
    for key in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[key]).tobytes(), zlib.crc32(key.encode(), total))
    return total
