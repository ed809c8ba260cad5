"""What the world model expects, beside what came: a few steps observed, then imagined under the true actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from torchmem.models.dreamer.rssm import State

if TYPE_CHECKING:
    from torchmem.training.experiment import Experiment

SEQUENCES, CONTEXT = 6, 5  # shown side by side; steps observed before the model is on its own


@torch.no_grad()
def open_loop_video(x: Experiment) -> np.ndarray | None:
    """(T, 3 H, n W, 3) uint8: truth, model and error of up to 6 replayed sequences; None where the world has no image.

    The first 5 steps are the model's reconstruction, the rest its prediction. Draws from replay with a generator of its
    own, so that training goes on as if no video had been made.
    """
    key = next((k for k, space in x.spec.obs.items() if space.image and space.shape[2] == 3), None)
    if key is None or not len(x.replay):
        return None
    agent = x.agent
    batch = {k: v.to(x.device) for k, v in x.replay.peek(SEQUENCES, seed=x.clock.updates).items()}
    obs = {k: batch[k][:, 1:] for k in x.spec.obs}
    actions = agent.action_vector({k: batch[k][:, :-1] for k in x.spec.action})
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
    lead = (len(deters[0]), len(deters))
    decoded = agent.decoder(torch.stack(deters, 1).flatten(0, 1), torch.stack(stochs, 1).flatten(0, 1))
    model = decoded[key].unflatten(0, lead)
    truth = obs[key].float() / 255
    error = (model - truth + 1) / 2
    grid = torch.cat([truth, model, error], 2)  # (n, T, 3 H, W, 3)
    frames = (grid.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.concatenate(list(frames), axis=2)
