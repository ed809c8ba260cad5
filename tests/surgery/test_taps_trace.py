"""Taps of the loss are, bit for bit, what a trace of the same sequence shows."""

from __future__ import annotations

import torch

from torchmem.models.dreamer.agent import DreamerCarry
from torchmem.models.synthetic import random_batch
from torchmem.models.taps import Tapped

SITES = ["dynamics.deter", "dynamics.stoch", "dynamics.core.update", "dynamics.posterior", "encoder", "dynamics.prior"]


def test_taps_equal_the_traced_values(agent, model):
    batch, noise = random_batch(agent, 3, 6), agent.training_noise(3, 6, torch.Generator().manual_seed(0))
    taps = Tapped(agent, SITES).loss(batch, noise).taps
    state = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    carry = DreamerCarry(*state, agent.action_vector({k: batch[k][:, 0] for k in agent.spec.action}))
    rest = {key: batch[key][:, 1:] for key in (*agent.spec.obs, *agent.spec.action, "is_first")}
    with model.trace(rest, carry=carry, noise=noise, grad=True, raw=False):  # with gradient: the kernels of the loss
        seen = {name: model.site(name).save() for name in SITES}
    for name in SITES:
        assert torch.equal(taps[name], seen[name].detach()), name
