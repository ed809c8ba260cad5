"""What a simulator gets right on held-out windows, step by step, beside three controls.

    simulated   the simulator under the actions really taken; it sees nothing real after the start
    copy        the last real frame of the context, shown again and again: what a simulator must beat
    seen        the simulator drawing steps it is shown: what its eyes and its brush alone cost

For each the frozen agent looks at the frames, from what it really carried, and does what it really did; what it then
remembers, values and wants is compared with the same agent on the real frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.follow_actions import follow_actions, opens
from torchmem.models.simulator.observations import to_float
from torchmem.models.simulator.protocol import RolloutNoise
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.models.simulator.window import Window, cut_window
from torchmem.types import Space

Measures = dict[str, np.ndarray]  # name -> (N, H)
VIEWS = ("simulated", "copy", "seen")


@torch.no_grad()
def measure_windows(simulator: Any, loop: AgentLoop, batch: Mapping[str, Tensor], seed: int) -> Measures:
    """Of windows (N, C - 1 + H, ...): `weight`, and <what>.<view> for observation, memory, kl, agree, value (and
    reward, end where a view tells them), all (N, H); closed.* of `closed_loop`."""
    window = cut_window(batch, simulator.spec, simulator.context)
    dtype = torch.float32
    real = to_float(window.obs, simulator.spec.obs, dtype)
    vectors = loop.action_vector(window.actions).to(dtype)
    obs, reward, done = follow_actions(simulator, simulator.begin(window.context), vectors)
    shown = {
        "simulated": obs,
        "copy": {key: value[:, :1].expand_as(value) for key, value in real.items()},
        "seen": simulator.reconstruct(window),
    }
    out = {"weight": window.weight}
    mind = _Mind(loop, window, seed)
    truth = mind.of(real)
    for view, frames in shown.items():
        out[f"observation.{view}"] = observation_error(frames, real, simulator.spec.obs)
        out |= {f"{what}.{view}": value for what, value in mind.compare(mind.of(frames), truth).items()}
    out |= {
        "reward.simulated": (reward - window.reward).square(),
        "reward.copy": (window.reward[:, :1] - window.reward).square(),
        "end.simulated": (done - window.terminal).square(),
        "end.copy": (window.terminal[:, :1] - window.terminal).square(),
        "done": done,
        "terminal": window.terminal,
    }
    out |= closed_loop(simulator, loop, window, seed)
    return {name: value.float().cpu().numpy() for name, value in out.items()}


def observation_error(guess: Mapping[str, Tensor], real: Mapping[str, Tensor], spaces: Mapping[str, Space]) -> Tensor:
    """(N, H): squared error per number, over all keys; pixels in [0, 1], integers as one-hot, floats as they are."""
    total, count = torch.zeros(()), 0
    for key, space in spaces.items():
        scale = 255 if space.image else 1
        error = ((guess[key] - real[key]) / scale).square().flatten(2)
        total, count = total + error.sum(-1), count + error.shape[-1]
    return total / count


@dataclasses.dataclass
class _Seen:
    memory: Tensor
    value: Tensor
    policy: dict[str, tuple[Tensor, ...]]


class _Mind:
    """The frozen agent along frames, from what it carried, with one and the same noise."""

    def __init__(self, loop: AgentLoop, window: Window, seed: int) -> None:
        self.loop, self.window, self.first = loop, window, opens(window)
        self.before = loop.packing.unpack(window.context.memory[:, -2])
        generator = torch.Generator(loop.agent.device).manual_seed(seed)
        self.noise: Noise = loop.agent.sequence_noise(*window.weight.shape, generator)

    def of(self, frames: Mapping[str, Tensor]) -> _Seen:
        return _Seen(*self.loop.sequence(frames, self.window.actions, self.first, self.before, self.noise))

    def compare(self, guess: _Seen, truth: _Seen) -> dict[str, Tensor]:
        """Each (N, H): memory (squared distance), value (absolute), kl (nats, of the policies), agree (same mode)."""
        kl, agree = torch.zeros(self.window.weight.shape), torch.ones(self.window.weight.shape)
        for key, space in self.loop.spaces.items():
            if space.discrete:
                p, q = (torch.log_softmax(seen.policy[key][0], -1) for seen in (truth, guess))
                kl = kl + (p.exp() * (p - q)).flatten(2).sum(-1).cpu()
                same = (
                    (p.argmax(-1) == q.argmax(-1)).flatten(2).all(-1) if space.shape else p.argmax(-1) == q.argmax(-1)
                )
                agree = agree * same.float().cpu()
            else:
                (m, s), (n, r) = truth.policy[key], guess.policy[key]
                part = (r / s).log() + (s.square() + (m - n).square()) / (2 * r.square()) - 0.5
                kl = kl + part.flatten(2).sum(-1).cpu()
                agree = agree * ((m - n).abs() < s).flatten(2).all(-1).float().cpu()
        return {
            "memory": (guess.memory - truth.memory).square().sum(-1),
            "value": (guess.value - truth.value).abs(),
            "kl": kl,
            "agree": agree,
        }


def closed_loop(simulator: Any, loop: AgentLoop, window: Window, seed: int) -> dict[str, Tensor]:
    """What the agent meets when it acts in the simulator by itself (sampled), beside what it met: each (N, 1).

    closed.return: rewards after the first step, each counted as far as the episode is still open. closed.end:
    probability that it ends for good within the window. real.* are what was recorded.
    """
    rows, steps = window.weight.shape
    generator = torch.Generator(loop.agent.device).manual_seed(seed + 1)
    noise: RolloutNoise = rollout_noise(simulator, loop, rows, steps, generator)
    found = rollout(simulator, loop, simulator.begin(window.context, noise.start), steps, noise)
    stays = torch.cumprod(1 - found.done, 1)
    alive = torch.cat([torch.ones_like(stays[:, :1]), stays[:, :-1]], 1)
    real_reward = window.reward * window.weight
    return {
        "closed.return": (found.reward * alive)[:, 1:].sum(1, keepdim=True),
        "real.return": real_reward[:, 1:].sum(1, keepdim=True),
        "closed.end": 1 - stays[:, -1:],
        "real.end": (window.terminal * window.weight).amax(1, keepdim=True),
    }


@torch.no_grad()
def latent_realism(simulator: Any, real: Mapping[str, Tensor], latents: Tensor, seed: int) -> dict[str, float]:
    """How far first frames lie from the nearest real one (root mean squared error per number), as medians.

    random: of starts drawn at random; encoded: of starts made from real context; real: of one real frame to the next
    nearest. real[key] (N, ...) float; latents (N, L) of the same windows.
    """
    generator = torch.Generator(simulator.device).manual_seed(seed)
    drawn = simulator.random_latent(len(latents), generator)
    spaces = simulator.spec.obs

    def flat(obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([(obs[k] / (255 if s.image else 1)).flatten(1) for k, s in spaces.items()], -1)

    frames, width = flat(real), flat(real).shape[1]
    among = torch.cdist(frames, frames)
    among.fill_diagonal_(torch.inf)
    found = {"real": among.amin(1)}
    for name, latent in (("encoded", latents), ("random", drawn)):
        shown = flat(simulator.look(simulator.from_latent(latent).world).obs)
        found[name] = torch.cdist(shown, frames).amin(1)
    return {name: float(value.median() / width**0.5) for name, value in found.items()}
