"""Any world as a TorchRL environment. Imports torchrl, so nothing else in this room imports this file."""

from __future__ import annotations

from typing import Any

from torchrl.envs import EnvBase, GymWrapper

from torchmem.envs.make import make_env
from torchmem.envs.protocol import World


def as_torchrl(env: World | str, **kwargs: Any) -> EnvBase:
    """A TorchRL EnvBase over a world, or over `make_env(env, **kwargs)`.

    Discrete actions are integers (TorchRL's Categorical), observation keys those of `env_spec.obs`. The truth stays out
    of the TensorDict; it is in `info["truth"]` of the wrapped world. Raises TypeError for arguments beside a world.
    """
    if isinstance(env, World):
        if kwargs:
            raise TypeError(f"a made world takes no arguments; got {sorted(kwargs)}")
        return GymWrapper(env, categorical_action_encoding=True)
    return GymWrapper(make_env(env, **kwargs), categorical_action_encoding=True)
