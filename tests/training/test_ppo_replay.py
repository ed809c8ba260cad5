"""What an update recomputes of a rollout is what was played; with `legacy_reset` it is the original's defect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.recall import SPEC, RecallWorld
from torchmem.envs.vector import VectorEnv
from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout
from torchmem.training.rollout_learner import RolloutLearner
from torchmem.training.world_views import TensorView

N, T = 6, 9
DUMMY = {"length": 5, "vary": True, "ending": "both"}
WORLDS = {
    "vector": lambda: RecallWorld(N),
    "image": lambda: images({"image": 16, "vector": 0}),
    "both": lambda: images({"image": 16, "vector": 3}),
}


def images(kwargs: dict) -> TensorView:
    return TensorView(VectorEnv("dummy", DUMMY | kwargs, N, split="train", seed=0), torch.device("cpu"))


def make(world: str = "vector", **kwargs) -> Rollout:
    torch.manual_seed(0)
    worlds = WORLDS[world]()
    sizes = {"units": 16, "encoder_units": 16, "image_units": 16, "image_channels": [4, 4], "start_scale": 1.0}
    agent = PPOAgent(worlds.spec, PPOConfig(**{**sizes, **kwargs}))
    for layer in agent.actor.out.values():
        nn.init.normal_(layer.weight)  # heads start near zero, where differences do not show
    return Rollout(agent, worlds, T, torch.Generator().manual_seed(0))


def collected(rollout: Rollout) -> dict[str, torch.Tensor]:
    rollout.collect()
    rollout.finish(Processes())
    return rollout.columns(torch.arange(N))


def apart(agent: PPOAgent, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """How far recomputed log-probabilities and values are from the collected ones, (B, T); 0 where nothing was done."""
    with torch.no_grad():
        now = agent.recompute(batch)
        logp = agent.actor.logp(now.policy, {key: batch[key] for key in agent.spec.action})
    played = batch["weight"] > 0
    return (logp - batch["logp"]).abs() * played, (now.value - batch["value"]).abs() * played


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("core", ["gru", "lstm", "mlp"])
def test_d1_recomputed_is_collected(core, world):
    """Before any update, to 1e-5, with resets in first, middle and last rows (spec T1)."""
    rollout = make(world, core=core)
    seen = torch.zeros(3, dtype=torch.bool)
    for _ in range(5):
        batch = collected(rollout)
        first = batch["is_first"]
        seen |= torch.stack([first[:, 0].any(), first[:, 1:-1].any(), first[:, -1].any()])
        for difference in apart(rollout.agent, batch):
            assert difference.max() < 1e-5
        told = rollout.agent.loss(batch, Noise.mode())  # and the update sees just these
        assert told.metrics["kl"].abs() < 1e-6 and told.metrics["clipped"] == 0
    assert seen.all(), "resets at the first, a middle and the last row"


@pytest.mark.parametrize("world", WORLDS)
def test_d1_legacy_differs_from_the_terminal_row_on_and_nowhere_before(world):
    rollout = make(world, legacy_reset=True)
    batch = collected(rollout)  # the very first: all columns begin where the original began
    terminal = batch["ends"].float().cumsum(1) > 0
    assert terminal[:, 0].sum() < N and terminal[:, -1].all()
    played = batch["weight"] > 0
    for difference in apart(rollout.agent, batch):
        assert difference[~terminal].max() < 1e-5
    logp, value = apart(rollout.agent, batch)
    assert (torch.maximum(logp, value)[terminal & played] > 1e-5).all()
    by_row = value[batch["ends"]]
    assert (by_row > 1e-3).all(), "the terminal row itself has lost its memory"


def test_d1_legacy_is_what_the_original_computed():
    """Written again with torch.nn.GRU, as the spec has it: no closing rows, memory times 1 - done of the same step."""
    rollout = make(legacy_reset=True)
    agent = rollout.agent
    gru = nn.GRU(agent.encoder.size, 16)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(gru, f"{name}_l0").data.copy_(getattr(agent.core, name))
    for _ in range(3):
        batch = collected(rollout)
        now = agent.recompute(batch)
        start = {name: batch[f"start.{name}"] for name in ("hidden", "cell", "action")}
        with torch.no_grad():
            x, _ = agent._encode(batch, {"action": batch["action"]}, batch["is_first"], type(rollout.carry)(**start))
            for i in range(N):
                rows = torch.nonzero(batch["weight"][i] > 0).flatten()
                h = start["hidden"][i][None, None]
                for t in rows.tolist():
                    out, h = gru(x[i, t][None, None], h * (1 - batch["ends"][i, t].float()))
                    torch.testing.assert_close(now.hidden[i, t], out[0, 0], rtol=1e-5, atol=1e-6)
    assert agent.core.legacy and not make().agent.core.legacy


def test_d2_legacy_episodes_start_from_zeros_but_for_the_very_first():
    agent = make(legacy_reset=True).agent
    with torch.no_grad():
        obs = {"sign": torch.randn(2, 4), "is_first": torch.ones(2, dtype=torch.bool)}
        begun = agent.initial(2)
        assert torch.equal(begun.hidden[0], agent.core.start)
        moved = begun._replace(hidden=torch.randn(2, 16))
        zeros = begun._replace(hidden=torch.zeros(2, 16))
        told = [agent.policy(obs, carry, Noise.mode())[2]["value"] for carry in (begun, moved, zeros)]
        going_on = {**obs, "is_first": ~obs["is_first"]}
        told.append(agent.policy(going_on, begun, Noise.mode())[2]["value"])
    assert torch.equal(told[0], told[3]) and torch.equal(told[1], told[2]) and not torch.equal(told[0], told[1])


def test_d2_legacy_the_start_state_learns_once_and_then_never():
    rollout = make(legacy_reset=True)
    agent, learner = rollout.agent, RolloutLearner(rollout.agent, Processes())
    start, found = agent.core.start, []
    for _ in range(3):
        batch = collected(rollout)
        agent.loss(batch, Noise.mode()).total.backward()
        found.append(start.grad is not None and bool(start.grad.any()))
        agent.zero_grad(set_to_none=True)
        learner.update(batch)
    assert found == [True, False, False]
    fixed = make(legacy_reset=True, learned_start=False)
    assert not fixed.agent.core.start.any() and collected(fixed)["ends"].any()


def test_legacy_acting_and_unrolling_are_one_policy():
    """An imported agent is analysed as it acted; only an update has the defect of training (D1)."""
    rollout = make(legacy_reset=True)
    for _ in range(3):
        batch = collected(rollout)
        start = type(rollout.carry)(*(batch[f"start.{name}"] for name in rollout.carry._fields))
        out = rollout.agent.unroll(batch, {"action": batch["action"]}, batch["is_first"], start)
        played = batch["weight"] > 0
        torch.testing.assert_close(out.value[played], batch["value"][played], rtol=1e-5, atol=1e-5)


def test_legacy_is_for_the_gru_and_off_by_default():
    assert PPOConfig().legacy_reset is False and SPEC.obs
    with pytest.raises(ValueError, match="legacy_reset"):
        PPOConfig(core="lstm", legacy_reset=True)
    agent = PPOAgent(SPEC, PPOConfig(legacy_reset=True))
    assert torch.isfinite(agent.loss(agent.random_batch(4, 8), Noise.mode()).total)
