"""A tiny Dreamer on the bench, and sequences for it."""

from __future__ import annotations

import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.synthetic import random_values
from torchmem.surgery.model import Model

TINY = {"deter": 64, "hidden": 16, "classes": 4, "depth": 4, "units": 16, "stoch": 4, "imag_length": 3}
ROWS, STEPS = 3, 7


def dreamer() -> DreamerAgent:
    torch.manual_seed(0)
    agent = DreamerAgent(env_spec("dummy"), DreamerConfig(**TINY))
    with torch.no_grad():  # heads start at zero: give them something to say
        for name, p in agent.named_parameters():
            if p.abs().max() == 0:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    return agent


def sequence_for(agent, rows: int = ROWS, steps: int = STEPS, seed: int = 1) -> dict[str, torch.Tensor]:
    """Observations, actions and is_first (resets first, middle and last) in one dictionary, (rows, steps, ...)."""
    generator = torch.Generator().manual_seed(seed)
    spaces = {**agent.spec.obs, **agent.spec.action}
    keep = {key: random_values(space, (rows, steps), generator) for key, space in spaces.items()}
    first = torch.zeros(rows, steps, dtype=torch.bool)
    first[0, 0] = first[1 % rows, steps // 2] = first[2 % rows, -1] = True
    return {**keep, "is_first": first}


@pytest.fixture
def agent() -> DreamerAgent:
    return dreamer()


@pytest.fixture
def model(agent) -> Model:
    return Model(agent)


@pytest.fixture
def seq(agent) -> dict[str, torch.Tensor]:
    return sequence_for(agent)
