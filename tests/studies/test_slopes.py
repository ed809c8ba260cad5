"""Many gradients from one rollout: the same as one by one, ways add up exactly, finite differences agree (T8, T9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.analysis.recordings import Memory
from tests.models.simulator import tiny
from torchmem.analysis.find_directions import find_directions
from torchmem.models.simulator.own_world import OwnWorld
from torchmem.models.simulator.protocol import Rollout, Start
from torchmem.models.simulator.rollout import rollout
from torchmem.studies.scalars import read_scalars
from torchmem.studies.slopes import Setting, memory_field, slopes

WRT = ("memory", "carry", "world", "action", "obs.view")
AT = 3


def smooth() -> tuple:
    """float64, continuous actions, one class per latent: nothing jumps."""
    agent = tiny.ppo(tiny.SMOOTH).double()
    agent.dtype = torch.float64
    net = tiny.simulator(agent, stoch=1, classes=1).double().requires_grad_(False)
    told = tiny.context(tiny.SMOOTH, net.agent_loop)
    told = told._replace(obs={"view": told.obs["view"].double()}, memory=told.memory.double())
    with torch.no_grad():
        return net, net.agent_loop, net.begin(told)


def smooth_directions(size: int = 6, seed: int = 0, method: str = "pca"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, size)) @ rng.normal(size=(size, size)) + 1
    return find_directions(Memory({"memory": x}, {}, np.arange(200) // 20), count=4, method=method, draws=0)


def test_total_is_internal_plus_external_by_every_node():
    net, loop, start = smooth()
    names = ["value", "mean:0", "reward", "unit:2", "direction:1"]
    scalars = list(read_scalars(names, loop, smooth_directions()).values())
    found = slopes(net, loop, start, scalars, AT, WRT, ("total", "internal", "external"))
    for name in WRT:
        total, internal, external = (found.by[way][name] for way in ("total", "internal", "external"))
        torch.testing.assert_close(internal + external, total, rtol=0, atol=1e-10)
        assert total[:, :, : AT + 1].abs().sum() > 1e-6
        if name != "action":
            assert internal.abs().max() > 1e-6
        if name != "world":
            assert external.abs().max() > 1e-8
    assert not found.by["internal"]["action"].any()
    only = slopes(net, loop, start, scalars, AT, ["memory"], ["external"])
    assert torch.equal(only.by["external"]["memory"], found.by["external"]["memory"])


@pytest.mark.parametrize("name", ["memory", "world", "obs.view", "action"])
def test_finite_differences_agree(name):
    """A shift is added to what stands at step 1, and the rollout goes on from there."""
    net, loop, start = smooth()
    names = ["value", "mean:1", "reward"]
    scalars = read_scalars(names, loop)
    found = slopes(net, loop, start, list(scalars.values()), AT, [name])
    grad = found.by["total"][name][:, :, 1]
    way = torch.randn(grad.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved(size: float) -> torch.Tensor:
        class World:
            def __getattr__(self, key):
                return getattr(net, key)

            def look(self, carry):
                self.t = 0
                return net.look(carry)

            def step(self, carry, action, draw):
                self.t += 1
                if name == "action" and self.t == 2:
                    action = action + size * way
                seen = net.step(carry, action, draw)
                if self.t == 1 and name == "obs.view":
                    seen = seen._replace(obs={"view": seen.obs["view"] + size * way})
                if self.t == 1 and name == "world":
                    deter = seen.carry.deter + size * way[:, : seen.carry.deter.shape[1]]
                    stoch = seen.carry.stoch + (size * way[:, seen.carry.deter.shape[1] :]).reshape(
                        seen.carry.stoch.shape
                    )
                    seen = net.look(seen.carry._replace(deter=deter, stoch=stoch))
                return seen

        class Edit:
            t = -1

            def __call__(self, before, after):
                self.t += 1
                return after._replace(hidden=after.hidden + size * way) if self.t == 1 and name == "memory" else after

        with torch.no_grad():
            play = rollout(World(), loop, start, AT + 1, edit=Edit(), early=True)
            return torch.stack([scalar(play, AT).sum() for scalar in scalars.values()])

    step = 1e-6
    slope = (moved(step) - moved(-step)) / (2 * step)
    torch.testing.assert_close(slope, (grad * way).flatten(1).sum(1), rtol=1e-4, atol=1e-9)
    assert slope.abs().min() > 1e-7


@pytest.mark.parametrize("method", ["pca", "ica"])
def test_at_no_lag_a_direction_depends_on_itself_alone_and_nothing_later_matters(method):
    net, loop, start = smooth()
    directions = smooth_directions(method=method)
    scalars = list(read_scalars(["directions"], loop, directions).values())
    found = slopes(net, loop, start, scalars, 2, ["memory"], how=Setting(horizon=5))
    jacobian = directions.push(found.by["total"]["memory"].numpy())  # (K, B, S, K)
    np.testing.assert_allclose(jacobian[:, :, 2], np.eye(4)[:, None].repeat(3, 1), atol=1e-10)
    assert not jacobian[:, :, 3:].any() and np.abs(jacobian[:, :, :2]).min() > 0


@pytest.mark.parametrize("kind", ["ppo", "dreamer", "r2i"])
def test_batched_and_one_by_one_agree_for_every_kind_of_simulator(kind):
    """Also: nothing that the scalars do not reach is more than zero, and rows do not mix."""
    agent = tiny.AGENTS[kind]()
    if kind == "ppo":
        world = tiny.simulator(agent).requires_grad_(False)
        loop = world.agent_loop
    else:
        loop = tiny.AgentLoop(agent)
        world = OwnWorld(agent, loop)
    told = tiny.context(tiny.VECTOR, loop, steps=world.context)
    with torch.no_grad():
        start = world.begin(told)
    names = ["value", "chosen", "logp:0+2", "odds:1", "entropy", "reward", "done", "unit:3", "value_change"]
    scalars = list(read_scalars(names, loop).values())
    one, many = (
        slopes(world, loop, start, scalars, 2, WRT, ("total", "internal", "external"), Setting(batched=batched))
        for batched in (False, True)
    )
    for way, nodes in one.by.items():
        for name, grad in nodes.items():
            torch.testing.assert_close(grad, many.by[way][name], rtol=1e-4, atol=1e-6, msg=f"{way} {name}")
    torch.testing.assert_close(
        one.by["internal"]["memory"] + one.by["external"]["memory"], one.by["total"]["memory"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(one.values[0], one.play.value[:, 2])
    rows = [
        slopes(world, loop, Start(*(_row(part, i) for part in start)), scalars, 2, ["memory"]).by["total"]["memory"]
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(rows, 1), one.by["total"]["memory"], rtol=1e-3, atol=1e-5)


def _row(value, i):
    if isinstance(value, torch.Tensor):
        return value[i : i + 1]
    return type(value)(*(_row(part, i) for part in value))


def test_gradients_by_the_latent_start_and_by_own_functions():
    net = tiny.simulator(tiny.ppo()).requires_grad_(False)
    latent = net.random_latent(3, torch.Generator().manual_seed(0))

    def picture(play: Rollout, t: int) -> torch.Tensor:
        return (play.turns[t].seen.obs["view"] ** 2).sum(-1)

    found = slopes(net, net.agent_loop, latent, [picture], 2, ["latent", "memory"])
    assert found.by["total"]["latent"].shape == (1, 3, 1, 4) and found.by["total"]["latent"].any()


def test_wrong_names_are_told():
    net = tiny.simulator(tiny.ppo()).requires_grad_(False)
    loop = net.agent_loop
    start = net.begin(tiny.context(tiny.VECTOR, loop))
    scalars = list(read_scalars(["value"], loop).values())
    for wrt, ways, match in [("obs.vew", ["total"], "obs.view"), ("memory", ["around"], "no way"),
                             ("latent", ["total"], "latent")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            slopes(net, loop, start, scalars, 1, [wrt], ways)
    for name, match in [("logp:9", "0 to 2"), ("valu", "no scalar"), ("direction:1", "torchmem directions"),
                        ("mean:0", "continuous"), ("logit:0+1", "one action"), ("unit:x", "0 to 5")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            read_scalars([name], loop)
    with pytest.raises(ValueError, match="same agent"):
        foreign = read_scalars(["direction:0"], loop, smooth_directions(9))
        slopes(net, loop, start, list(foreign.values()), 1, ["memory"])
    assert memory_field(tiny.dreamer()) == "deter" and memory_field(tiny.r2i()) == "hidden"
