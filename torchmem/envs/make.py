"""From a name to a world: `make_env("minigrid_memory", size=11)`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import gymnasium

from torchmem.envs.bsuite_config import DiscountingChainConfig, MemoryLengthConfig
from torchmem.envs.configs import (
    DummyConfig,
    MemoryMazeConfig,
    MinigridFourRoomConfig,
    MinigridMemoryConfig,
    MinigridSwitchingConfig,
)
from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.lunar_lander_config import LunarLanderConfig
from torchmem.envs.popgym_config import IDS as POPGYM_IDS
from torchmem.envs.popgym_config import PopGymConfig
from torchmem.envs.procgen_config import IDS as PROCGEN_IDS
from torchmem.envs.procgen_config import ProcgenConfig
from torchmem.envs.protocol import World
from torchmem.types import EnvSpec

# name -> its arguments. The configuration group `env` is built from this table.
CONFIGS: dict[str, type] = {
    "dummy": DummyConfig,
    "minigrid_memory": MinigridMemoryConfig,
    "minigrid_switching": MinigridSwitchingConfig,
    "minigrid_four_room": MinigridFourRoomConfig,
    "memory_maze": MemoryMazeConfig,
    "popgym": PopGymConfig,
    "bsuite_memory_length": MemoryLengthConfig,
    "bsuite_discounting_chain": DiscountingChainConfig,
    "crafter": CrafterConfig,
    "lunar_lander": LunarLanderConfig,
    "procgen": ProcgenConfig,
}
# name -> its class, as text: a simulator is imported by the process that runs it and by no other.
WORLDS: dict[str, str] = {
    "dummy": "torchmem.envs.dummy:DummyWorld",
    "minigrid_memory": "torchmem.envs.minigrid_memory:MinigridMemory",
    "minigrid_switching": "torchmem.envs.minigrid_switching:MinigridSwitching",
    "minigrid_four_room": "torchmem.envs.minigrid_four_room:MinigridFourRoom",
    "memory_maze": "torchmem.envs.memory_maze:MemoryMaze",
    "popgym": "torchmem.envs.popgym:PopGym",
    "bsuite_memory_length": "torchmem.envs.bsuite:MemoryLength",
    "bsuite_discounting_chain": "torchmem.envs.bsuite:DiscountingChain",
    "crafter": "torchmem.envs.crafter:Crafter",
    "lunar_lander": "torchmem.envs.lunar_lander:LunarLander",
    "procgen": "torchmem.envs.procgen:Procgen",
}
# gymnasium id -> (name, arguments that differ from the defaults)
IDS: dict[str, tuple[str, dict[str, Any]]] = {
    "torchmem/Dummy-v0": ("dummy", {}),
    "torchmem/Memory-v0": ("minigrid_memory", {}),
    **{f"torchmem/MemoryS{s}-v0": ("minigrid_memory", {"size": s}) for s in (7, 9, 11, 13, 15, 17)},
    **{
        f"torchmem/MemoryS{s}Random-v0": ("minigrid_memory", {"size": s, "random_length": True})
        for s in (7, 9, 11, 13, 15, 17)
    },
    "torchmem/SwitchingMemory-v0": ("minigrid_switching", {}),
    **{f"torchmem/SwitchingMemoryS{s}-v0": ("minigrid_switching", {"size": s}) for s in (11, 13, 17)},
    "torchmem/FourRoomMemory-v0": ("minigrid_four_room", {}),
    **{f"torchmem/FourRoomMemoryS{s}-v0": ("minigrid_four_room", {"size": s}) for s in (9, 11, 13, 17)},
    **{f"torchmem/MemoryMaze-{s}x{s}-v0": ("memory_maze", {"size": s}) for s in (9, 11, 13, 15)},
    **POPGYM_IDS,
    "torchmem/BsuiteMemoryLength-v0": ("bsuite_memory_length", {}),
    "torchmem/BsuiteDiscountingChain-v0": ("bsuite_discounting_chain", {}),
    "torchmem/Crafter-v0": ("crafter", {}),
    "torchmem/LunarLander-v0": ("lunar_lander", {}),
    "torchmem/LunarLanderContinuous-v0": ("lunar_lander", {"continuous": True}),
    **PROCGEN_IDS,
}


def make_env(name: str, **kwargs: Any) -> World:
    """A world by its config name, by its gymnasium id, or by "package.module:Class" for one of your own.

    kwargs: the fields of its dataclass, which is `CONFIGS[name]`, or `Class.Config` for one of your own.
    Raises ValueError for an unknown name or argument (naming the nearest valid one) or a value out of range, and
    whatever the world raises where its simulator is missing.
    """
    name, config = make_config(name, **kwargs)
    return world_class(name)(config)


def env_spec(name: str, **kwargs: Any) -> EnvSpec:
    """The spec of the world `make_env(name, **kwargs)` would make, without making it."""
    name, config = make_config(name, **kwargs)
    return world_class(name).describe(config)


def make_config(name: str, **kwargs: Any) -> tuple[str, Any]:
    """(config name, filled dataclass). Raises ValueError naming the nearest valid name or argument."""
    if name in IDS:
        name, preset = IDS[name]
        kwargs = {**preset, **kwargs}
    if name not in CONFIGS and ":" not in name:
        raise ValueError(f"unknown env {name!r}{nearest(name, [*CONFIGS, *IDS])}; valid: {', '.join(CONFIGS)}")
    kind = CONFIGS[name] if name in CONFIGS else world_class(name).Config
    fields = [f.name for f in dataclasses.fields(kind)]
    for key in kwargs:
        if key not in fields:
            raise ValueError(f"env {name!r} has no argument {key!r}{nearest(key, fields)}; valid: {', '.join(fields)}")
    return name, kind(**kwargs)


def world_class(name: str) -> type[World]:
    """The class behind a config name or "package.module:Class"; imports its module."""
    module, attribute = WORLDS.get(name, name).split(":")
    return getattr(importlib.import_module(module), attribute)


def register() -> None:
    """Make `gymnasium.make(id)` know the worlds of `IDS`. Called when `torchmem.envs` is imported; safe to repeat."""
    for id_, (name, preset) in IDS.items():
        if id_ not in gymnasium.registry:
            # The environment ends its episodes itself and checks its own output: gymnasium's wrappers only cost time.
            gymnasium.register(
                id_, entry_point="torchmem.envs.make:make_env", kwargs={"name": name, **preset},
                disable_env_checker=True, order_enforce=False,
            )


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'x'?", or nothing where nothing is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
