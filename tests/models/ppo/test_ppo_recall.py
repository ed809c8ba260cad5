"""Recall: what an episode has shown, nothing of the one before, nothing that is still to come."""

from __future__ import annotations

import pytest
import torch

from torchmem.envs.tensor_world import TensorWorld
from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.ppo.recall import Recall
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout
from torchmem.types import EnvSpec, Space

OBS = {"image": Space((8, 8, 3), "uint8"), "view": Space((6,), "float32", low=0.0, high=1.0)}


def spec(**obs: Space) -> EnvSpec:
    return EnvSpec("x", obs, {"action": Space((), "int64", classes=2)}, 1.0, {}, "success")


def test_history_is_of_this_episode_and_of_the_past():
    recall = Recall(4, OBS, width=2)
    view = torch.zeros(1, 5, 6)
    view[0, 1, 2] = view[0, 2, 5] = view[0, 4, 4] = 1  # features 0, 1 and 0 of some cell
    first = torch.tensor([[False, False, False, True, False]])
    shown = recall.history({"view": view}, first, torch.tensor([[0.0, 1.0]]))
    assert shown.tolist() == [[[0, 1], [1, 1], [1, 1], [0, 0], [1, 0]]]
    apart = Recall(4, OBS, width=None).history({"view": view}, first, torch.zeros(1, 6))
    assert apart.sum(-1).tolist() == [[0, 1, 2, 0, 1]], "without a width every number counts by itself"


def test_an_untrained_head_knows_nothing_and_gradient_reaches_memory():
    agent = PPOAgent(spec(view=OBS["view"]), PPOConfig(recall=0.5, recall_width=3, units=8, encoder_units=8))
    batch = agent.random_batch(4, 6)
    out = agent.loss(batch, Noise.mode())
    torch.testing.assert_close(out.losses["recall"], torch.full((4, 6), 3 * torch.log(torch.tensor(2.0)).item()))
    parts = out.metrics
    total = parts["loss/policy"] + 0.5 * parts["loss/value"] + 0.02 * parts["loss/entropy"] + 0.5 * parts["loss/recall"]
    torch.testing.assert_close(out.total, total)
    torch.nn.init.ones_(agent.recall.out.weight)
    agent.loss(batch, Noise.mode()).losses["recall"].sum().backward()
    assert agent.core.weight_hh.grad.abs().sum() > 0 and agent.critic.out.weight.grad is None


def test_it_goes_on_from_rollout_to_rollout():
    worlds = TensorWorld("minigrid_memory", {"size": 7, "view": 3, "obs": "symbolic_onehot", "max_steps": 11}, 5)
    agent = PPOAgent(worlds.spec, PPOConfig(recall=0.1, recall_width=20, units=8, encoder_units=8))
    rollout, parts = Rollout(agent, worlds, 4, torch.Generator().manual_seed(0)), []
    for _ in range(6):
        rollout.collect()
        rollout.finish(Processes())
        parts.append({k: v.clone() for k, v in rollout.columns(torch.arange(5)).items()})
    whole = {key: torch.cat([part[key] for part in parts], 1) for key in ("view", "is_first", "shown")}
    assert whole["is_first"][:, 1:].any(), "episodes end within"
    once = agent.recall.history(whole, whole["is_first"], torch.zeros(5, 20))
    assert torch.equal(once, whole["shown"])


@pytest.mark.parametrize(
    ("obs", "width", "message"),
    [
        ({"view": Space((6,), "float32", low=-1.0, high=1.0)}, None, "observations in 0..1; 'view' is in -1.0..1.0"),
        ({"view": OBS["view"]}, 4, "recall_width=4 does not divide the 6 numbers"),
        ({"image": OBS["image"]}, None, "needs a vector observation"),
    ],
)
def test_what_it_cannot_name_is_refused(obs, width, message):
    with pytest.raises(ValueError, match=message):
        Recall(4, obs, width)
