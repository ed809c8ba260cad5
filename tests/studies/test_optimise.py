"""Latent optimisation: known optima are found on sphere and plane, and nothing ever is NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.simulator import tiny
from tests.studies import planted
from tests.training import simulated
from torchmem import cli
from torchmem.models.checkpoint import save_agent
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.protocol import Start
from torchmem.models.simulator.rollout import rollout
from torchmem.result import load_result
from torchmem.studies.climb import climb, crowding
from torchmem.studies.latent_adam import LatentAdam, is_sphere
from torchmem.studies.optimise import optimise_latent
from torchmem.studies.optimise_result import OptimiseResult
from torchmem.studies.realism import FromData, FromPrior
from torchmem.studies.scalars import read_scalars
from torchmem.training.config import compose
from torchmem.training.loop import run

unit = torch.nn.functional.normalize


class PlantedStarts(planted.Simulator):
    """The planted world with a sphere of starts: six numbers, of which the first two are the memories of the cues."""

    latent_size = 6

    def __init__(self) -> None:
        self.loop = AgentLoop(planted.agent())

    def from_latent(self, latent: Tensor) -> Start:
        held = torch.cat([latent, latent.new_zeros(len(latent), planted.UNITS - 6)], -1)
        carry = self.loop.agent.initial(len(latent))._replace(hidden=planted.SMALL * held @ planted.rotation())
        empty = latent.new_zeros(len(latent), 1)
        start = planted.Carry(empty, empty[:, None])
        return Start(start, carry, torch.zeros(len(latent), dtype=torch.bool))

    def project(self, latent: Tensor) -> Tensor:
        return unit(latent, dim=-1)


def score_of(world: PlantedStarts, name: str, at: int):
    (scalar,) = read_scalars([name], world.loop).values()

    def score(latent: Tensor) -> tuple[Tensor, Tensor]:
        value = scalar(rollout(world, world.loop, world.from_latent(latent), at + 1), at)
        return value, value

    return score


def optimum(name: str, at: int) -> Tensor:
    """(6,) of the planted world, by its own arithmetic: the memories after `at` more steps, by the first ones."""
    moved = torch.tensor(planted.jacobian(at), dtype=torch.float32) * planted.KEEP
    weigh = {"value": torch.tensor([1.0, 1.0]), "mean:0": torch.tensor([1.0, -1.0])}[name]
    return unit(torch.cat([moved @ weigh, torch.zeros(4)]), dim=0)


@pytest.mark.parametrize(("name", "at"), [("value", 0), ("value", 3), ("mean:0", 2)])
def test_the_planted_optimum_is_found(name, at):
    world = PlantedStarts()
    begin = unit(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert is_sphere(world, begin)
    found = climb(score_of(world, name, at), begin, True, 60, 0.2)
    angle = torch.rad2deg(torch.arccos((found.latent @ optimum(name, at)).clamp(-1, 1)))
    assert float(angle.max()) < 2, "degrees"
    torch.testing.assert_close(found.latent.norm(dim=-1), torch.ones(5), rtol=0, atol=1e-5)
    assert (found.told >= found.trace[0]).all() and found.trace.shape == (61, 5)
    assert found.still == found.broken == 0


def test_every_point_stays_on_the_sphere_and_moves_as_far_as_told():
    adam, generator = LatentAdam(True), torch.Generator().manual_seed(0)
    x = unit(torch.randn(7, 5, generator=generator), dim=-1)
    for _ in range(300):
        there = adam.step(x, 100 * torch.randn(7, 5, generator=generator), 0.5)
        torch.testing.assert_close(there.norm(dim=-1), torch.ones(7), rtol=0, atol=1e-5)
        assert adam.first is not None
        assert (adam.first * there).sum(-1).abs().max() < 1e-3 * adam.first.norm(dim=-1).max(), "tangent"
        assert (x * there).sum(-1).arccos().max() <= math.pi / 4 + 1e-3
        x = there
    first = LatentAdam(True).step(x, torch.ones(7, 5), 0.1)
    torch.testing.assert_close((first * x).sum(-1).arccos(), torch.full((7,), 0.1), rtol=1e-2, atol=0)


def test_off_the_sphere_it_is_adam():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.Parameter(x.clone())
    reference = torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99), eps=1e-8, maximize=True)
    mine, adam = x.clone(), LatentAdam(False)
    for step in range(20):
        gradient = torch.cos(mine * (step + 1))
        theirs.grad = gradient.clone()
        reference.step()
        mine = adam.step(mine, gradient, 0.05)
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sphere", [True, False])
def test_zero_and_broken_gradients_give_no_nan(sphere):
    begin = unit(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    still = climb(lambda x: (x.sum(-1) * 0 + 2, x.sum(-1) * 0 + 2), begin, sphere, 10, 0.3)
    torch.testing.assert_close(still.latent, begin, rtol=0, atol=1e-6)
    assert still.still == 1 and still.broken == 0 and (still.told == 2).all()
    apart = climb(lambda x: (torch.ones(3), torch.ones(3)), begin, sphere, 5, 0.3)
    assert apart.still == 1 and torch.equal(apart.latent, begin)
    edge = begin.clone()
    edge[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])

    def root(x: Tensor) -> tuple[Tensor, Tensor]:  # it has no slope at the edge, as 0 / 0 has none
        value = torch.sqrt(x[:, 0].square())
        return value, value

    found = climb(root, edge, sphere, 20, 0.3)
    assert found.broken > 0
    assert torch.isfinite(found.latent).all() and torch.isfinite(found.told).all() and found.told[1:].min() > 0.5
    with pytest.raises(ValueError, match="no finite number"):
        climb(lambda x: (x.sum(-1) * torch.nan, x.sum(-1)), begin, sphere, 3, 0.1)


def test_realism_draws_the_optimum_towards_data():
    data = unit(torch.tensor([[0.0, 1.0, 0.1], [0.1, 1.0, 0.0], [0.0, 1.0, -0.1]]), dim=-1)
    begin = unit(torch.randn(6, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    random = unit(torch.randn(500, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
    judge, last = FromData.of(data, random), None
    assert float(judge.distance(random).mean()) == pytest.approx(1, abs=0.01)
    assert float(judge.distance(data).max()) < 0.05 and judge.nearest(data).tolist() == [0, 1, 2]
    for weight in (0.0, 1.0, 10.0):
        found = climb(lambda x, w=weight: (x[:, 0] - w * judge.penalty(x), x[:, 0]), begin, True, 200, 0.1)
        away = float(judge.distance(found.latent).mean())
        assert last is None or away < 0.8 * last
        last = away
    at = data[:1].clone().requires_grad_()
    judge.penalty(at).sum().backward()
    assert at.grad is not None and torch.isfinite(at.grad).all()
    prior = FromPrior(50)
    drawn = prior.distance(torch.randn(4000, 50, generator=torch.Generator().manual_seed(0)))
    assert abs(float(drawn.mean())) < 0.1 and float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_diversity_keeps_restarts_apart():
    """Of a score that only one number tells, all points of a circle are best."""
    begin = unit(torch.tensor([[0.1, 1.0, 0.0], [0.1, 1.0, 0.02], [0.1, 1.0, -0.02], [0.1, 1.0, 0.04]]), dim=-1)
    width = torch.tensor(0.5)
    alone = climb(lambda x: (-x[:, 0] ** 2, x[:, 0]), begin, True, 100, 0.1).latent
    spread = climb(lambda x: (-x[:, 0] ** 2 - crowding(x, width), x[:, 0]), begin, True, 100, 0.1).latent
    assert torch.pdist(spread).mean() > 2 * torch.pdist(alone).mean()
    assert crowding(begin[:1], width).tolist() == [0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run of a simulator, its recording, folder)."""
    folder = tmp_path_factory.mktemp("optimise")
    return *simulated.make_run(folder, updates=2), folder


def test_the_command_from_a_run_to_a_result(made, capsys):
    sim, recording, folder = made
    words = ["optimise", str(sim), "--recording", str(recording), "--target", "prob:1", "--at", "1", "2", "--restarts",
             "3", "--steps", "25", "--random", "40", "--realism", "0.01", "--diversity", "0.01", "--horizon", "4",
             "--out", str(folder / "out")]  # fmt: skip
    assert cli.main(words) == 2 and "never measured" in capsys.readouterr().err
    assert cli.main(["optimise", str(folder / "agent"), *words[2:]]) == 2  # whose world is it?
    assert "no world model that can serve as its simulator: train one" in capsys.readouterr().err
    assert cli.main([*words, "--allow"]) == 0
    found = load_result(folder / "out")
    assert isinstance(found, OptimiseResult)
    assert found.achieved.mean() > found.random.mean() and (found.achieved >= found.trace[0]).all()
    np.testing.assert_allclose(np.linalg.norm(found.latent, axis=1), 1, atol=1e-5)
    assert len(found.data) == 16 and found.agent_value.shape == (3, 4) and (found.nearest >= 0).all()
    assert (np.diff(found.achieved) <= 0).all(), "best first"
    text = found.summary()
    assert "beyond the best random start" in text and "beyond the best real start" in text and "CAVEAT" in text
    low = optimise_latent(sim, target="prob:1", minimise=True, at=2, restarts=3, steps=25, random=40, allow=True)
    assert low.achieved.mean() < low.random.mean() and (np.diff(low.achieved) >= 0).all() and not len(low.realism)
    again = optimise_latent(sim, target="prob:1", minimise=True, at=2, restarts=3, steps=25, random=40, allow=True)
    np.testing.assert_array_equal(again.latent, low.latent)


def test_a_vae_is_climbed_with_its_prior(made):
    _, recording, folder = made
    words = simulated.words(folder / "vae", folder / "agent", recording, 2, "agent.bottleneck=vae")
    run(compose(words))
    mine = {"target": "value", "at": 1, "restarts": 4, "steps": 40, "random": 40, "allow": True, "rate": 0.3}
    free = optimise_latent(folder / "vae", **mine)
    held = optimise_latent(folder / "vae", realism=2.0, **mine)
    assert "prior" in free.realism_unit and free.achieved.mean() > free.random.mean()
    assert held.realism.mean() < free.realism.mean()


def test_wrong_inputs_are_told(made):
    sim, _, folder = made
    save_agent(tiny.dreamer(), folder / "dreamer")
    for how, match in [
        ({"target": "luck"}, "no scalar 'luck'"), ({"target": "direction:1"}, "torchmem directions"),
        ({"at": 5, "horizon": 3}, "horizon of 3"), ({"realism": 1.0}, "give a recording"), ({"restarts": 0}, "above 0"),
        ({"realism_by": "prior"}, "same everywhere"), ({"init": "real"}, "give a recording"), ({"at": ()}, "from 0"),
        ({"realism_by": "data"}, "2 episodes"), ({"diversity": -1.0}, "negative"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            optimise_latent(sim, **{"allow": True, "steps": 2, "restarts": 2, "random": 4, **how})
    with pytest.raises(ValueError, match="own world model"):
        optimise_latent(folder / "dreamer", allow=True)
