"""The compiled loss is the eager loss, and says so only after looking."""

from __future__ import annotations

import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.protocol import LossOut
from torchmem.models.synthetic import random_batch
from torchmem.training.compile import CompileError, check_gradients, compile_agent, recompiles, wanted

TINY = {"deter": 16, "hidden": 8, "classes": 4, "units": 8, "stoch": 2, "imag_length": 1, "blocks": 2, "bins": 15}


@pytest.fixture
def agent() -> DreamerAgent:
    torch.manual_seed(0)
    return DreamerAgent(env_spec("dummy", image=0), DreamerConfig(**TINY))


def test_auto_compiles_on_cuda_only():
    assert not wanted("auto", torch.device("cpu")) and wanted("auto", torch.device("cuda"))
    assert wanted("full", torch.device("cpu")) and not wanted("off", torch.device("cuda"))


def test_compiled_loss_is_one_graph_with_the_eager_gradients(agent):
    torch._dynamo.reset()
    loss, _ = compile_agent(agent)
    batch, noise = random_batch(agent, 2, 2), agent.training_noise(2, 2, torch.Generator().manual_seed(0))
    report = check_gradients(agent, loss, batch, noise)
    assert report.graph_breaks == 0 and report.worst_gradient < 1e-3
    assert all(p.grad is None for p in agent.parameters())
    other = agent.training_noise(2, 2, torch.Generator().manual_seed(1))
    new = random_batch(agent, 2, 2, seed=1)
    torch.testing.assert_close(loss(new, other).total, agent.loss(new, other).total, rtol=1e-5, atol=1e-5)
    assert recompiles() == 0


def test_a_wrong_gradient_is_refused_by_name(agent):
    def wrong(batch, noise) -> LossOut:
        out = agent.loss(batch, noise)
        out.total = out.total + agent.reward.out.bias[0]
        return out

    batch, noise = random_batch(agent, 2, 2), agent.training_noise(2, 2, None)
    with pytest.raises(CompileError, match=r"reward\.out\.bias.*compile=off"):
        check_gradients(agent, wrong, batch, noise)
