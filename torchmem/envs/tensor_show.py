"""What a table world shows: its different observations, encoded once, and its truth, packed so that few lookups do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.minigrid_views import encode
from torchmem.envs.tensor_tables import Tables


def shown(config: Any, tables: Tables) -> dict[str, np.ndarray]:
    """The observation keys of every different view: (U, ...) of the spec's shapes and dtypes."""
    rows = [encode(config.obs, view) for view in tables.views]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@dataclasses.dataclass(frozen=True)
class Column:
    """Truth keys of one dtype, side by side: a lookup of `rows` serves them all."""

    table: Tensor  # (N, width)
    keys: tuple[tuple[str, int, int, tuple[int, ...]], ...]  # name, first column, width, shape

    def rows(self, state: Tensor) -> dict[str, Tensor]:
        """state: int64 (n) -> key -> (n, *shape)."""
        found = self.table.index_select(0, state)
        return {
            key: found[:, first : first + width].reshape(-1, *shape) if shape else found[:, first]
            for key, first, width, shape in self.keys
        }


def columns(tables: Tables, actions: int, device: torch.device | str) -> list[Column]:
    """The truth that follows from the state alone."""
    facts = [layout.facts() for layout in tables.layouts]
    per_state: dict[str, np.ndarray] = {
        key: np.stack([fact[key] for fact in facts])[tables.layout] for key in facts[0]
    }
    optimal = np.zeros((len(tables.end), actions), np.uint8)
    optimal[:, :3] = tables.best
    per_state |= {
        "pos": tables.poses[:, :2].astype(np.float32),
        "heading": (tables.poses[:, 2] * np.pi / 2).astype(np.float32),
        "distance_to_success": tables.distance.astype(np.int64),
        "optimal_actions": optimal,
    }
    packed = []
    for dtype in {str(array.dtype): None for array in per_state.values()}:
        keys, parts, first = [], [], 0
        for key, array in per_state.items():
            if str(array.dtype) == dtype:
                flat = array.reshape(len(array), -1)
                keys.append((key, first, flat.shape[1], array.shape[1:]))
                parts.append(flat)
                first += flat.shape[1]
        packed.append(Column(torch.as_tensor(np.concatenate(parts, 1), device=device), tuple(keys)))
    return packed
