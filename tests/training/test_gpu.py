"""What only a CUDA device can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.synthetic import random_batch
from torchmem.training.compile import check_gradients, compile_agent
from torchmem.training.learner import Learner
from torchmem.training.processes import Processes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = {"deter": 512, "hidden": 64, "classes": 4, "depth": 4, "units": 64}


@pytest.fixture
def agent() -> DreamerAgent:
    torch.manual_seed(0)
    agent = DreamerAgent(env_spec("dummy"), DreamerConfig(**SMALL)).to("cuda")
    agent.dtype = torch.bfloat16
    return agent


def test_an_update_never_waits_for_the_device(agent):
    learner = Learner(agent, 4, 8, 0, Processes())
    batch = random_batch(agent, 4, 8)
    learner.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    learner.check()


def test_compiled_updates_with_cuda_graphs(agent):
    learner = Learner(agent, 4, 8, 0, Processes())
    batch = random_batch(agent, 4, 8)
    loss, _ = compile_agent(agent)
    report = check_gradients(agent, loss, batch, agent.training_noise(4, 8, learner.generator))
    assert report.graph_breaks == 0
    learner.loss = loss
    for _ in range(5):
        out = learner.update(batch)
    assert torch.isfinite(out.metrics["loss/total"])
