"""Worlds of arrays seen as worlds of tensors, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.procgen_pool import ProcgenPool
from torchmem.envs.seeds import Split
from torchmem.envs.vector import VectorEnv

Tensors = dict[str, Tensor]


class TensorView:
    """A VectorEnv or a pool that takes and gives tensors on `device`; truth stays as arrays."""

    def __init__(self, worlds: VectorEnv | ProcgenPool, device: torch.device) -> None:
        self.worlds, self._where = worlds, device
        self.n, self.spec = worlds.n, worlds.spec
        self.state_dict, self.load_state_dict, self.close = worlds.state_dict, worlds.load_state_dict, worlds.close

    def step(self, actions: Tensors | None) -> tuple[Tensors, Any]:
        arrays = None if actions is None else {key: value.cpu().numpy() for key, value in actions.items()}
        data, truth = self.worlds.step(arrays)
        return {key: torch.from_numpy(value).to(self._where) for key, value in data.items()}, truth


class ArrayView:
    """A TensorWorld that takes and gives arrays, as VectorEnv does."""

    def __init__(self, worlds: Any) -> None:
        self.worlds, self.n, self.spec = worlds, worlds.n, worlds.spec
        self.restarted = np.zeros(worlds.n, bool)  # never

    def step(self, actions: Mapping[str, np.ndarray] | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        tensors = None if actions is None else {key: torch.from_numpy(value) for key, value in actions.items()}
        data, truth = self.worlds.step(tensors)
        return arrays(data), arrays(truth)

    def __enter__(self) -> ArrayView:
        return self

    def __exit__(self, *_: object) -> None:
        self.worlds.close()


def arrays(data: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in data.items()}


def batched(kwargs: Mapping[str, Any]) -> bool:
    """Whether a world's arguments ask for all its copies at once, as tensors."""
    return kwargs.get("backend") == "batched"


def has_batched_form(name: str) -> bool:
    """Whether a world, by its config name, can be stepped as tensors."""
    from torchmem.envs.tensor_world import FAMILIES  # here: other worlds do not need minigrid

    return name in FAMILIES


def array_worlds(
    name: str, kwargs: Mapping[str, Any], n: int, *, split: Split, seed: int, workers: int = 0
) -> VectorEnv | ProcgenPool | ArrayView:
    """n worlds that speak arrays; batched ones where their arguments ask for it."""
    if batched(kwargs):
        from torchmem.envs.tensor_world import TensorWorld  # here: other worlds do not need minigrid

        return ArrayView(TensorWorld(name, kwargs, n, split=split, seed=seed))
    return stepped_worlds(name, kwargs, n, split=split, seed=seed, workers=workers)


def stepped_worlds(
    name: str, kwargs: Mapping[str, Any], n: int, *, split: Split, seed: int, workers: int = 0,
    on_error: Literal["restart", "raise"] = "raise",
) -> VectorEnv | ProcgenPool:
    """n worlds that a simulator steps: all at once in EnvPool where `backend=pool`, else in this process or workers."""
    if kwargs.get("backend") == "pool":
        return ProcgenPool(name, kwargs, n, split=split, seed=seed)
    return VectorEnv(name, kwargs, n, split=split, seed=seed, workers=workers, on_error=on_error)
