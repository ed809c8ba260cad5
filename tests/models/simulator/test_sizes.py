"""The preset is the original's network, weight for weight (spec simulator.md, appendix D, T6)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.models.simulator import tiny
from torchmem.models.simulator.model import SimulatorModel
from torchmem.models.simulator.network import ContextGRU
from torchmem.training.config import compose
from torchmem.types import EnvSpec, Space

COINRUN = EnvSpec(
    "procgen", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int64", classes=15)}, control_hz=15.0
)


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameter_counts_of_the_preset_are_the_originals():
    config = dataclasses.replace(compose(["preset=irl_rssm"]).agent, guessed=64)
    with torch.device("meta"):
        net = SimulatorModel(COINRUN, config)
    assert net.to_carry is not None
    found = {
        "encoder": count(net.encoder),
        "env converter": count(net.to_state),
        "agent-h converter": count(net.to_carry),
        "action converter": count(net.to_action),
        "image encoder": count(net.embed),
        "transition": count(net.transition),
        "decoder": count(net.decoder, net.reward, net.terminal),
    }
    assert found == {
        "encoder": 5_852_096,
        "env converter": 2_079_872,
        "agent-h converter": 27_904,
        "action converter": 15_351,
        "image encoder": 690_144,
        "transition": 7_471_552,
        "decoder": 12_565_045,
    }
    assert count(net) == sum(found.values()) == 28_701_964


def test_the_preset_has_the_originals_weights_and_windows():
    run = compose(["preset=irl_rssm"])
    scales = dataclasses.asdict(run.agent.scales)
    told = {"image": 1, "reward": 1, "terminal": 1, "memory": 1, "kl": 12, "update": 0.5, "repulsion": 100, "start": 1}
    assert {key: scales[key] for key in told} == told
    assert (run.agent.balance, run.agent.lr, run.agent.clip) == (0.8, 5e-4, 100)
    assert 1 + run.length == 34 and run.length + 2 - run.agent.context == 32


@pytest.mark.parametrize("vision", ["irl", "shared"])
def test_images_come_out_as_they_go_in(vision):
    net = tiny.simulator(tiny.ppo(tiny.IMAGE), vision=vision, mults=[1, 1, 1, 1])
    start = net.begin(tiny.context(tiny.IMAGE, net.agent_loop))
    with torch.no_grad():
        seen = net.look(start.world)
    assert seen.obs["image"].shape == (3, 64, 64, 3) and seen.reward.shape == seen.done.shape == (3,)
    assert 0 <= float(seen.obs["image"].min()) and float(seen.obs["image"].max()) <= 255
    assert float(seen.obs["image"].std()) > 0, "a constant picture hides a dead decoder"


def test_starts_lie_on_the_sphere():
    net = tiny.simulator(tiny.ppo())
    latent = net.encode(tiny.context(tiny.VECTOR, net.agent_loop))
    torch.testing.assert_close(latent.norm(dim=-1), torch.ones(3))
    drawn = net.random_latent(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(5))


def test_the_gru_written_out_is_the_librarys():
    gru = torch.nn.GRU(5, 4, batch_first=True)
    x = torch.randn(3, 6, 5)
    mine = ContextGRU(5, 4)
    mine.load_state_dict({name.removesuffix("_l0"): value for name, value in gru.state_dict().items()})
    torch.testing.assert_close(mine(x), gru(x)[0][:, -1])


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="vision=shared"):
        tiny.simulator(tiny.ppo(), vision="irl")
    net = tiny.simulator(tiny.ppo())
    with pytest.raises(ValueError, match="guesses 6 numbers"):
        net.attach(tiny.AgentLoop(tiny.ppo(units=7)))
    with pytest.raises(ValueError, match="differ in the obs"):
        net.attach(tiny.AgentLoop(tiny.ppo(tiny.IMAGE)))
    with pytest.raises(ValueError, match="context must be at least 2"):
        tiny.config(context=1)
    with pytest.raises(ValueError, match="set length=3 or more"):
        net.steps(2)
