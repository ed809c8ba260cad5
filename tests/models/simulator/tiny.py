"""The smallest agents, worlds and simulators that have every part."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.config import SimulatorConfig
from torchmem.models.simulator.model import SimulatorModel
from torchmem.models.simulator.protocol import Context
from torchmem.models.synthetic import random_values
from torchmem.types import EnvSpec, Space

CHOICE = {"action": Space((), "int64", classes=3)}
VECTOR = EnvSpec("toy", {"view": Space((5,), "float32"), "kind": Space((2,), "int64", classes=4)}, CHOICE, 10.0)
SMOOTH = EnvSpec("toy", {"view": Space((5,), "float32")}, {"action": Space((2,), "float32", low=-1, high=1)}, 10.0)
IMAGE = EnvSpec("toy", {"image": Space((64, 64, 3), "uint8")}, CHOICE, 10.0)


def ppo(spec: EnvSpec = VECTOR, **changes: Any) -> PPOAgent:
    config = {"units": 6, "encoder_units": 8, "image_units": 8, "image_channels": [2, 2, 2], "activation": "tanh"}
    torch.manual_seed(1)
    return PPOAgent(spec, PPOConfig(**{**config, **changes}))


def dreamer(spec: EnvSpec = VECTOR) -> DreamerAgent:
    torch.manual_seed(2)
    config = DreamerConfig(deter=16, hidden=8, classes=4, depth=2, units=8, stoch=3, blocks=2, bins=9, decoder_blocks=2)
    return DreamerAgent(spec, config)


def r2i(spec: EnvSpec = VECTOR) -> R2IAgent:
    torch.manual_seed(3)
    ssm = SSMConfig(layers=2, states=4, blocks=2)
    config = R2IConfig(deter=8, units=8, ssm=ssm, classes=4, depth=2, vector_units=8, head_units=8, stoch=3, bins=9)
    return R2IAgent(spec, config)


AGENTS = {"ppo": ppo, "dreamer": dreamer, "r2i": r2i}


def config(**changes: Any) -> SimulatorConfig:
    sizes = {
        "latent": 4, "deter": 8, "stoch": 3, "classes": 4, "hidden": 8, "encoder_units": 8, "head_layers": 1,
        "head_units": 8, "depth": 1, "units": 8, "vector_layers": 1, "ssm": SSMConfig(layers=2, states=4, blocks=2),
    }  # fmt: skip
    return SimulatorConfig(**{**sizes, **changes})


def simulator(agent: Any, **changes: Any) -> SimulatorModel:
    loop = AgentLoop(agent)
    torch.manual_seed(4)
    net = SimulatorModel(agent.spec, dataclasses.replace(config(**changes), guessed=loop.packing.guessed))
    net.attach(loop)
    return net


def context(spec: EnvSpec, loop: AgentLoop, rows: int = 3, steps: int = 3, seed: int = 0) -> Context:
    """Made-up steps; the agent carries something."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(rows, steps, dtype=torch.bool)
    memory = torch.randn(rows, steps, loop.packing.size, generator=generator).tanh()
    return Context(
        {key: random_values(space, (rows, steps), generator) for key, space in spec.obs.items()},
        {key: random_values(space, (rows, steps), generator) for key, space in spec.action.items()},
        first,
        memory,
    )
