"""What the world model expects, beside what came: a few steps observed, then imagined under the true actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.dreamer.rssm import State

CONTEXT = 5  # steps observed before the model is on its own


def image_key(agent: Any) -> str | None:
    """The first observation key that is a colour image, or None."""
    return next((key for key, space in agent.spec.obs.items() if space.image and space.shape[2] == 3), None)


@torch.no_grad()
def open_loop(agent: Any, batch: Mapping[str, Tensor]) -> np.ndarray:
    """Sequences as replay gives them (B, 1 + T, ...) -> frames (T, 3 H, B W, 3) uint8: truth, model, error.

    The first 5 steps are the model's reconstruction (the mode of its posterior), the rest its prediction. Error is
    (model - truth + 1) / 2: grey where they agree. Raises ValueError where the world shows no image.
    """
    key = image_key(agent)
    if key is None:
        raise ValueError(f"{agent.spec.name} shows no colour image, so there is no video to make")
    obs = {k: batch[k][:, 1:] for k in agent.spec.obs}
    actions = agent.action_vector({k: batch[k][:, :-1] for k in agent.spec.action})
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    seen = slice(0, CONTEXT)
    tokens = agent.encode({k: v[:, seen] for k, v in obs.items()})
    states, _ = agent.dynamics.observe(start, actions[:, seen], tokens, batch["is_first"][:, 1:][:, seen], None)
    deters, stochs = [*states.deter.unbind(1)], [*states.stoch.unbind(1)]
    state = State(deters[-1], stochs[-1])
    for t in range(CONTEXT, actions.shape[1]):
        state, _ = agent.dynamics.imagine_step(state, actions[:, t], None)
        deters.append(state.deter)
        stochs.append(state.stoch)
    states = State(torch.stack(deters, 1), torch.stack(stochs, 1))
    return beside(agent, key, obs[key], states.deter, states.stoch)


def beside(agent: Any, key: str, seen: Tensor, deter: Tensor, stoch: Tensor) -> np.ndarray:
    """Frames of truth, model and error: images seen (B, T, H, W, 3), and states (B, T, ...) that expected them."""
    model = agent.decoder(deter.flatten(0, 1), stoch.flatten(0, 1))[key].unflatten(0, deter.shape[:2])
    truth = seen.float() / 255
    grid = torch.cat([truth, model, (model - truth + 1) / 2], 2)  # (B, T, 3 H, W, 3)
    frames = (grid.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.concatenate(list(frames), axis=2)
