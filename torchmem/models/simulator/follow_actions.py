"""A simulator under the actions that were really taken: what it expects, beside what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.inputs import colour_image
from torchmem.models.simulator.protocol import Start
from torchmem.models.simulator.window import Window, cut_window


def follow_actions(
    simulator: Any, start: Start, vectors: Tensor, draws: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Float observations (B, T, ...), reward and probability of the end (B, T), from `start` on; nothing real is seen.

    vectors (B, T, A): the action vector after each step; the last is not used. draws (B, T, S, K) or None.
    """
    seen = simulator.look(start.world)
    steps = [seen]
    for t in range(vectors.shape[1] - 1):
        seen = simulator.step(seen.carry, vectors[:, t], None if draws is None else draws[:, t])
        steps.append(seen)
    obs = {key: torch.stack([step.obs[key] for step in steps], 1) for key in seen.obs}
    return obs, torch.stack([step.reward for step in steps], 1), torch.stack([step.done for step in steps], 1)


def opens(window: Window) -> Tensor:
    """(B, T) bool: is_first of the simulated steps, which only the first of them can be."""
    later = torch.zeros_like(window.weight[:, 1:], dtype=torch.bool)
    return torch.cat([window.first.unsqueeze(1), later], 1)


@torch.no_grad()
def beside_truth(simulator: Any, batch: Mapping[str, Tensor]) -> np.ndarray:
    """Rows (B, C - 1 + T, ...) as replay gives them -> frames (T, 3 H, B W, 3) uint8: truth, simulator, error.

    Error is (simulator - truth + 1) / 2: grey where they agree. Steps beyond the end of an episode are black. Raises
    ValueError where the world shows no image.
    """
    key = colour_image(simulator.spec.obs)
    if key is None:
        raise ValueError(f"{simulator.spec.name} shows no colour image, so there is no video to make")
    window = cut_window(batch, simulator.spec, simulator.context)
    vectors = simulator.loop.action_vector(window.actions)
    obs, _, _ = follow_actions(simulator, simulator.begin(window.context), vectors)
    truth, guess = window.obs[key].float() / 255, obs[key] / 255
    grid = torch.cat([truth, guess, (guess - truth + 1) / 2], 2) * window.weight[..., None, None, None]
    frames = (grid.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.concatenate(list(frames), axis=2)
