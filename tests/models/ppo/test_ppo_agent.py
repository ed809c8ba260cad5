"""The agent: one policy however it is run, a start state that learns, sites, scales, checkpoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchmem.models.checkpoint import load_agent, save_agent
from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import START, PPOAgent, PPOCarry
from torchmem.models.ppo.config import PPOConfig
from torchmem.types import EnvSpec, Space

MEMORY = EnvSpec(
    name="toy",
    obs={"grid": Space((2, 2), "uint8", classes=5), "speed": Space((3,), "float32")},
    action={"action": Space((), "int64", classes=4)},
    control_hz=1.0,
)
MIXED = EnvSpec(
    name="toy",
    obs={"image": Space((16, 16, 3), "uint8")},
    action={"steer": Space((2,), "float32", low=-1.0, high=1.0), "gear": Space((2,), "int64", classes=3)},
    control_hz=1.0,
)
COINRUN = EnvSpec(
    name="coinrun",
    obs={"image": Space((64, 64, 3), "uint8")},
    action={"action": Space((), "int64", classes=15)},
    control_hz=1.0,
)


def make(spec: EnvSpec = MEMORY, **kwargs) -> PPOAgent:
    torch.manual_seed(0)
    agent = PPOAgent(spec, PPOConfig(**{"units": 8, "encoder_units": 8, "image_channels": [4, 4], **kwargs}))
    with torch.no_grad():  # heads start near zero, where differences do not show
        for layer in agent.actor.out.values():
            layer.weight.normal_()  # type: ignore[operator, union-attr]
    return agent


def start_of(batch: dict[str, torch.Tensor]) -> PPOCarry:
    return PPOCarry(*(batch[START + name] for name in PPOCarry._fields))


CASES = [(MEMORY, "gru"), (MEMORY, "lstm"), (MEMORY, "mlp"), (MIXED, "gru"), (MIXED, "lstm")]
TOWERS = {"core": "mlp", "core_layer": False, "activation": "tanh", "encoder_layers": 0, "head_layers": 2}


@pytest.mark.parametrize(("spec", "core"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v.obs))
def test_acting_unrolling_and_training_are_one_policy(spec, core):
    """Resets at the first, at middle and at last steps are in the made-up columns."""
    agent = make(spec, core=core)
    batch = agent.random_batch(6, 9, seed=3)
    batch["is_first"][3, -1] = True
    first, carry = batch["is_first"], start_of(batch)
    out = agent.unroll(batch, {k: batch[k] for k in spec.action}, first, carry)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for t in range(9):
        obs = {k: batch[k][:, t] for k in spec.obs} | {"is_first": first[:, t]}
        _, carry, told = agent.policy(obs, carry, Noise.mode())
        seen.append((told["value"], agent.memory_of(carry)))
        carry = carry._replace(action=agent.action_vector({k: batch[k][:, t] for k in spec.action}))
    values, hidden = (torch.stack(x, 1) for x in zip(*seen, strict=True))
    torch.testing.assert_close(values, out.value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden, out.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tuple(carry), tuple(out.carry), rtol=1e-5, atol=1e-5)
    # Training on columns whose log-probabilities are those of this policy: all ratios are 1, all values fit.
    logp = agent.actor.logp(out.policy, {k: batch[k] for k in spec.action})
    told = agent.loss(batch | {"logp": logp, "value": out.value, "target": out.value}, Noise.mode())
    torch.testing.assert_close(told.losses["policy"], -batch["advantage"] * batch["weight"], rtol=1e-5, atol=1e-5)
    assert told.losses["value"].abs().max() < 1e-9 and told.metrics["kl"].abs() < 1e-6
    # D1: the last row of an episode still has its memory, the next row has none of it.
    torch.testing.assert_close(tuple(told.carry), tuple(out.carry), rtol=1e-5, atol=1e-5)


def test_what_was_before_a_reset_has_no_influence():
    agent = make()
    obs = {k: torch.zeros(2, *s.shape, dtype=getattr(torch, s.dtype)) for k, s in MEMORY.obs.items()}
    carry = PPOCarry(torch.tensor([[0.0] * 8, [5.0] * 8]), torch.zeros(2, 0), torch.eye(4)[:2])
    for flag, same in ((True, True), (False, False)):
        _, _, told = agent.policy({**obs, "is_first": torch.tensor([flag] * 2)}, carry, Noise.mode())
        assert torch.allclose(told["value"][0], told["value"][1], atol=1e-6) is same


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_the_start_state_learns_from_every_episode_that_opens(core):
    """D2: in each minibatch with an opening step, at whichever row, and after it has been changed by an update."""
    agent = make(core=core, value_clip=None)  # a clipped value has no gradient
    optimiser = torch.optim.SGD(agent.parameters(), 0.1)
    for seed in range(3):
        batch = agent.random_batch(4, 6, seed)
        optimiser.zero_grad()
        batch |= {"is_first": torch.zeros(4, 6, dtype=torch.bool), "weight": torch.ones(4, 6)}
        agent.loss(batch, Noise.mode()).total.backward()
        assert agent.core.start.grad is None or not agent.core.start.grad.any(), "no episode opens, so nothing to learn"
        for place in ((0, 0), (1, 3), (2, 5)):
            optimiser.zero_grad()
            first = torch.zeros(4, 6, dtype=torch.bool)
            first[place] = True
            agent.loss(batch | {"is_first": first}, Noise.mode()).total.backward()
            assert (agent.core.start.grad.abs() > 0).all()
        before = agent.core.start.detach().clone()
        optimiser.step()
        assert not torch.equal(agent.core.start, before)
    # and acting uses it
    torch.testing.assert_close(agent.initial(3).hidden[1], agent.core.start[:8])
    fixed = make(core=core, learned_start=False)
    assert not fixed.core.start.any() and "core.start" not in dict(fixed.trained())


def test_parts_of_an_update_add_up_to_the_whole():
    """D4: gradients of parts are averaged, not summed, so clipping sees the same norm."""
    from torchmem.training.processes import Processes
    from torchmem.training.rollout_learner import RolloutLearner

    results = []
    for parts in (1, 2, 4):
        agent = make(parts=parts, clip_norm=1e-3).double()
        agent.dtype = torch.float64
        batch = agent.random_batch(8, 5)
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        metrics = RolloutLearner(agent, Processes()).update(batch)
        results.append([metrics["gradient_norm"], metrics["loss/value"], *(p.detach() for p in agent.parameters())])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_losses_are_logged_with_their_sign():
    """D8: the value loss is a squared error, so what is logged is positive and falls when values get better."""
    agent = make()
    batch = agent.random_batch(4, 6)
    far = agent.loss(batch | {"target": batch["target"] + 10}, Noise.mode()).metrics
    near = agent.loss(batch, Noise.mode()).metrics
    assert far["loss/value"] > near["loss/value"] > 0 and near["entropy"] > 0
    expected = near["loss/policy"] + 0.5 * near["loss/value"] - 0.02 * near["entropy"]
    torch.testing.assert_close(near["loss/total"], expected)


@pytest.mark.parametrize("core", ["gru", "lstm", "mlp"])
def test_sites_and_their_aliases(core):
    agent = make(core=core)
    memory = agent.sites["memory"]
    assert memory.path == "core.state" and memory.shape == (8,)
    assert memory.cadence == ("sequence" if core == "mlp" else "step")
    taps = {"gru": {"reset", "update", "candidate"}, "lstm": {"write", "keep", "show", "candidate", "cell"}}
    expected = {f"core.{name}" for name in taps.get(core, set())}
    assert expected | {"encoder", "actor.out.action", "critic", "critic.out", "encoder.mlp.0.0"} <= set(agent.sites)
    for site in agent.sites.values():
        agent.get_submodule(site.path)
    image = make(MIXED)
    assert image.sites["encoder.cnn.stages.0.conv"].shape == (16, 16, 4)
    assert image.sites["encoder.cnn.stages.1"].axes == ("B*T", "H", "W", "C")


def test_read_out_is_what_the_agent_acted_on():
    for spec in (MEMORY, MIXED):
        agent = make(spec)
        batch = agent.random_batch(3, 4)
        out = agent.unroll(batch, {k: batch[k] for k in spec.action}, batch["is_first"], start_of(batch))
        told = agent.read_out(out.carry)
        torch.testing.assert_close(told["value"], out.value[:, -1])
        for key, space in spec.action.items():
            names = ("logits",) if space.discrete else ("mean", "std")
            for name, value in zip(names, out.policy[key], strict=True):
                torch.testing.assert_close(told[f"{name}.{key}"], value[:, -1])


def test_the_published_agent_has_its_size():
    """254,800 parameters: IMPALA 16, 32, 32 -> 64, GRU 64, 15 actions (simulator spec, section 1.2)."""
    agent = PPOAgent(COINRUN, PPOConfig(see_action=False))
    assert sum(p.numel() for _, p in agent.trained()) == 254_800


def test_scales_travel_with_the_checkpoint(tmp_path):
    agent = make(scale_obs=True, scale_reward=True)
    agent.encoder.scale.moments["speed"].absorb(*(torch.full(s, 3.0).double() for s in ((3,), (3,), ())))
    agent.reward_scale.absorb(*(torch.tensor(x).double() for x in (1.0, 9.0, 50.0)))
    again = load_agent(save_agent(agent, tmp_path / "agent"))
    assert isinstance(again, PPOAgent) and again.config == agent.config and again.spec.obs == agent.spec.obs
    for name, value in agent.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) and again.state_dict()[name].dtype == value.dtype, name
    batch = agent.random_batch(3, 4)
    assert torch.equal(again.loss(batch, Noise.mode()).total, agent.loss(batch, Noise.mode()).total)
    plain = make()
    plain.load_state_dict({k: v for k, v in agent.state_dict().items() if "scale" not in k})
    assert not torch.allclose(plain.loss(batch, Noise.mode()).total, again.loss(batch, Noise.mode()).total)


def test_missing_observations_stay_missing_when_scaled():
    agent = make(scale_obs=True)
    speed = torch.tensor([[1.0, -torch.inf, 2.0], [1.0, 5.0, 2.0]])
    scaled = agent.encoder.scale({"speed": speed})["speed"]
    assert scaled[0, 1] == -torch.inf and scaled.isinf().sum() == 1


def test_actions_are_fair_draws_and_the_mode_is_the_mode():
    agent = make(MIXED)
    generator = torch.Generator().manual_seed(0)
    n = 4000
    obs = {"image": torch.zeros(n, 16, 16, 3, dtype=torch.uint8), "is_first": torch.ones(n, dtype=torch.bool)}
    chosen, carry, _ = agent.policy(obs, agent.initial(n), agent.acting_noise(n, generator))
    told = agent.read_out(carry)
    for space in (0, 1):
        share = torch.bincount(chosen["gear"][:, space], minlength=3) / n
        torch.testing.assert_close(share, told["logits.gear"][0, space].softmax(-1), atol=0.03, rtol=0)
    torch.testing.assert_close(chosen["steer"].mean(0), told["mean.steer"][0], atol=0.06, rtol=0)
    torch.testing.assert_close(chosen["steer"].std(0), told["std.steer"][0], atol=0.06, rtol=0)
    mode, _, _ = agent.policy(obs, agent.initial(n), Noise.mode())
    assert torch.equal(mode["gear"][0], told["logits.gear"][0].argmax(-1))
    assert torch.equal(mode["steer"][0], told["mean.steer"][0])


@pytest.mark.parametrize("change", [{"units": 0}, {"gamma": 1.5}, {"clip": 0.0}, {"core": "rnn"}, {"target_kl": 0.0}])
def test_wrong_numbers_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(PPOConfig(), **change)


def test_two_towers_without_a_shared_layer():
    """encoder_layers=0 and core_layer=false: actor and critic read the observation itself and share no weight."""
    agent = make(**TOWERS, head_units=16)
    assert {name.split(".")[0] for name, _ in agent.trained()} == {"actor", "critic"}
    batch = agent.random_batch(4, 5)
    out = agent.unroll(batch, {k: batch[k] for k in MEMORY.action}, batch["is_first"], start_of(batch))
    assert out.hidden.shape == (4, 5, 23) and agent.memory_of(agent.initial(3)).shape == (3, 23)
    seen = torch.cat([torch.nn.functional.one_hot(batch["grid"].long(), 5).flatten(2).float(), batch["speed"]], -1)
    torch.testing.assert_close(out.hidden, seen)
    first = agent.critic.mlp[0]
    hidden = torch.tanh(seen @ first[0].weight.T + first[0].bias)  # type: ignore[index, operator, union-attr]
    torch.testing.assert_close(first(seen), hidden)
    agent.loss(batch, Noise.mode()).total.backward()
    assert all(p.grad.abs().sum() > 0 for p in agent.parameters() if p.numel() > 4)  # type: ignore[union-attr]
    assert agent.sites["memory"].shape == (23,)
    for core in ("gru", "lstm"):
        with pytest.raises(ValueError, match="core_layer must be true"):
            PPOConfig(core=core, core_layer=False)
    with pytest.raises(ValueError, match="activation must be relu or tanh"):
        PPOConfig(activation="gelu")  # type: ignore[arg-type]
