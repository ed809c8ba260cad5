"""What the world model expects, beside what came: a few steps observed, then imagined under the true actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.dreamer.open_loop import CONTEXT, beside
from torchmem.models.inputs import colour_image
from torchmem.models.r2i.dynamics import State


@torch.no_grad()
def open_loop(agent: Any, batch: Mapping[str, Tensor]) -> np.ndarray:
    """Sequences as replay gives them (B, 1 + T, ...) -> frames (T, 3 H, B W, 3) uint8: truth, model, error.

    As for Dreamer: 5 steps of the model's reconstruction, the rest its prediction. Raises ValueError where the world
    shows no image.
    """
    key = colour_image(agent.spec.obs)
    if key is None:
        raise ValueError(f"{agent.spec.name} shows no colour image, so there is no video to make")
    seen = slice(0, CONTEXT)
    actions = agent.action_vector({k: batch[k][:, :-1] for k in agent.spec.action})
    start, first = agent.start(batch)
    tokens = agent.encode({k: batch[k][:, 1:][:, seen] for k in agent.spec.obs})
    states, _ = agent.dynamics.observe(start, actions[:, seen], tokens, first[:, seen], None)
    deters, stochs = [*states.deter.unbind(1)], [*states.stoch.unbind(1)]
    state = State(deters[-1], stochs[-1], states.hidden[:, -1])
    for t in range(CONTEXT, actions.shape[1]):
        state, _ = agent.dynamics.imagine_step(state, actions[:, t], None)
        deters.append(state.deter)
        stochs.append(state.stoch)
    return beside(agent, key, batch[key][:, 1:], torch.stack(deters, 1), torch.stack(stochs, 1))
