"""A small recurrent agent that has learned the scripted one's ways: something to find circuits in, within seconds."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.studies.scripted import KEY, KINDS, ScriptedAgent
from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.ppo.cores import Memory
from torchmem.studies.mask_play import full_play
from torchmem.surgery.model import Model


@functools.cache
def cloned(seed: int = 0, steps: int = 200, keep: tuple[int, ...] = ()) -> PPOAgent:
    """Supervised on 64 episodes that wander now and then. Do not change its weights.

    It also learns to name the cue from its memory, by a head that is thrown away: without that it takes minutes. keep:
    numbers of steps after which a copy of the weights goes to `agent.ladder`.
    """
    teacher = Model(ScriptedAgent())
    torch.manual_seed(seed)
    agent = PPOAgent(teacher.spec, PPOConfig(units=16, encoder_units=16, head_layers=1, head_units=16))
    batch, counts = full_play(teacher, 64, steps=24, wander=0.05, seed=3)
    obs, actions, first = {"view": batch["view"]}, {"action": batch["action"]}, batch["is_first"]
    with torch.no_grad():
        wanted = teacher.agent.unroll(obs, actions, first, teacher.initial(len(counts)), Noise.mode())
        best = wanted.policy["action"][0].argmax(-1)
    cue = batch["view"].view(*counts.shape, 3, 3, KINDS)[:, 0, 0, 2, KEY].long()[:, None].expand(counts.shape)
    named = nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*agent.parameters(), *named.parameters()], lr=1e-2)
    ladder = {}
    for step in range(steps + 1):
        if step in keep:
            ladder[step] = {name: value.clone() for name, value in agent.state_dict().items()}
        if step == steps:
            break
        start = agent.initial(len(counts))
        hidden, _ = agent.core(agent._encode(obs, actions, first, start)[0], first, Memory(start.hidden, start.cell))
        acting, naming = (
            F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none").view(counts.shape)
            for x, y in ((agent.actor(hidden)["action"][0], best), (named(hidden), cue))
        )
        optimizer.zero_grad()
        ((acting * counts).sum() + naming[counts > 0].mean()).backward()
        optimizer.step()
    agent.ladder = ladder  # type: ignore[assignment]
    return agent
