"""TensorVector: a TensorWorld where a VectorEnv is expected, arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchmem.envs.protocol import Arrays
from torchmem.envs.seeds import Split
from torchmem.envs.tensor_world import TensorWorld


class TensorVector:
    """n copies of one MiniGrid memory world, stepped at once. `step`, states and errors are VectorEnv's.

    Starts come from TensorWorld's own random sequence: the reset seeds of the gymnasium world do not open them.
    """

    def __init__(self, name: str, kwargs: Mapping[str, Any] | None, n: int, *, split: Split, seed: int) -> None:
        self._world = TensorWorld(name, kwargs, n, split=split, seed=seed)
        self.name, self.kwargs, self.n = self._world.name, self._world.kwargs, n
        self.spec = self._world.spec

    def step(self, actions: Mapping[str, np.ndarray] | None) -> tuple[Arrays, Arrays]:
        """(data, truth), arrays that lead with n."""
        given = None if actions is None else {key: torch.as_tensor(value) for key, value in actions.items()}
        data, truth = self._world.step(given)
        return {k: v.numpy() for k, v in data.items()}, {k: v.numpy() for k, v in truth.items()}

    def state_dict(self) -> dict[str, Any]:
        return self._world.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        return self._world.load_state_dict(state)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> TensorVector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
