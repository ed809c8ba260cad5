"""Saliency of whole simulators, from a run folder to pictures; SmoothGrad and integrated gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.simulator import tiny
from tests.studies.test_slopes import AT, smooth
from tests.training import simulated
from torchmem import cli
from torchmem.analysis.cluster_behaviours import cluster_behaviours
from torchmem.analysis.correlate_lags import correlate_lags
from torchmem.analysis.find_directions import find_directions
from torchmem.models.checkpoint import save_agent
from torchmem.models.simulator.own_world import OwnWorld
from torchmem.recording import Recording
from torchmem.result import Provenance, load_result
from torchmem.studies.averaged_slopes import Shifted, integrated, smoothed
from torchmem.studies.dynamics_result import DynamicsResult
from torchmem.studies.fidelity import FidelityError
from torchmem.studies.saliency import differences, measure_saliency
from torchmem.studies.saliency_result import SaliencyResult
from torchmem.studies.scalars import read_scalars
from torchmem.studies.slopes import Setting, slopes


def test_copies_do_not_change_the_size_of_a_gradient_and_noise_smooths():
    net, loop, start = smooth()
    scalars = list(read_scalars(["value", "mean:0"], loop).values())
    exact = slopes(net, loop, start, scalars, AT, ["memory", "world"])
    for copies, noise in ((1, 0.5), (9, 0.0)):
        found = smoothed(net, loop, start, scalars, AT, ["memory", "world"], copies=copies, noise=noise)
        for name, grad in exact.by["total"].items():
            torch.testing.assert_close(found.by["total"][name], grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.values, exact.values)
    noisy = smoothed(net, loop, start, scalars, AT, ["memory"], copies=4, noise=0.5,
                     generator=torch.Generator().manual_seed(0))  # fmt: skip
    gap = (noisy.by["total"]["memory"] - exact.by["total"]["memory"]).abs().max()
    assert 1e-6 < gap < exact.by["total"]["memory"].abs().max()
    world = tiny.simulator(tiny.ppo()).requires_grad_(False)
    latent = world.random_latent(2, torch.Generator().manual_seed(1))
    plain = list(read_scalars(["value"], world.agent_loop).values())
    found = smoothed(world, world.agent_loop, latent, plain, 2, ["latent"], copies=3, noise=0.0)
    exact = slopes(world, world.agent_loop, latent, plain, 2, ["latent"])
    torch.testing.assert_close(found.by["total"]["latent"], exact.by["total"]["latent"])


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_integrated_gradients_are_complete(baseline):
    net, loop, start = smooth()
    scalars = list(read_scalars(["value", "reward", "unit:1"], loop).values())
    found = integrated(net, loop, start, scalars, AT, baseline=baseline, points=64)
    assert found.difference.abs().max() > 1e-3
    torch.testing.assert_close(found.gap, torch.zeros_like(found.gap), rtol=0, atol=1e-5)
    parts = found.by["obs.view"].flatten(2).sum(2)
    torch.testing.assert_close(parts, found.difference, rtol=0, atol=1e-5)


def test_with_choices_they_are_complete_along_held_actions():
    agent = tiny.ppo().double()
    agent.dtype = torch.float64
    net = tiny.simulator(agent).double().requires_grad_(False)
    told = tiny.context(tiny.VECTOR, net.agent_loop)
    told = told._replace(obs={**told.obs, "view": told.obs["view"].double()}, memory=told.memory.double())
    scalars = list(read_scalars(["value", "logp:1"], net.agent_loop).values())
    found = integrated(net, net.agent_loop, net.begin(told), scalars, 2, points=64)
    assert found.difference.abs().max() > 1e-4
    torch.testing.assert_close(found.gap, torch.zeros_like(found.gap), rtol=0, atol=1e-5)


def test_a_shift_shows_something_else_step_by_step():
    net, loop, start = smooth()
    shift = torch.zeros(3, AT + 1, 5, dtype=torch.float64)
    shift[:, 2] = 1
    scalars = list(read_scalars(["value"], loop).values())
    plain = slopes(net, loop, start, scalars, AT, ["memory"]).play
    moved = slopes(Shifted(net, {"view": shift}), loop, start, scalars, AT, ["memory"]).play
    torch.testing.assert_close(moved.obs["view"][:, :3] - plain.obs["view"][:, :3], shift[:, :3])
    assert torch.equal(moved.value[:, :2], plain.value[:, :2])
    assert not torch.equal(moved.value[:, 2:], plain.value[:, 2:])


@pytest.mark.parametrize("kind", ["ppo", "dreamer"])
def test_the_report_compares_with_finite_differences(kind):
    agent = tiny.AGENTS[kind]()
    world = tiny.simulator(agent).requires_grad_(False) if kind == "ppo" else OwnWorld(agent)
    loop = world.agent_loop if kind == "ppo" else world.loop
    with torch.no_grad():
        start = world.begin(tiny.context(tiny.VECTOR, loop, steps=world.context))
    scalars = list(read_scalars(["value", "unit:2"], loop).values())
    found = differences(world, loop, start, scalars, 0, Setting(), torch.Generator().manual_seed(0))
    if kind == "ppo":
        np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=0.01, atol=1e-4)
    assert np.isfinite(found).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run of a simulator, its recording, folder)."""
    folder = tmp_path_factory.mktemp("saliency")
    return *simulated.make_run(folder, updates=4), folder


def test_the_command_from_a_run_to_a_result(made, capsys):
    sim, recording, folder = made
    words = ["directions", str(recording), "--count", "3", "--draws", "2", "--out", str(folder / "directions")]
    assert cli.main(words) == 0 and (folder / "directions" / "scatter.png").stat().st_size > 5000
    words = ["saliency", str(sim), "--recording", str(recording), "--samples", "5", "--batch", "2", "--at", "2",
             "--scalars", "value", "chosen", "directions", "--ways", "total", "internal", "external",
             "--directions", str(folder / "directions"), "--points", "4",
             "--out", str(folder / "saliency")]  # fmt: skip
    assert cli.main(words) == 2 and "never measured" in capsys.readouterr().err
    assert cli.main([*words, "--allow"]) == 0
    found = load_result(folder / "saliency")
    assert isinstance(found, SaliencyResult)
    assert found.scalars == ("value", "chosen", *(f"direction:{k}" for k in range(3)))
    jacobian = found.slopes["total.directions"]
    assert jacobian.shape == (5, 5, 3, 3)
    np.testing.assert_allclose(jacobian[2:, :, 2], np.eye(3)[:, None].repeat(5, 1), atol=1e-5)
    for node in ("memory", "world"):
        parts = found.slopes[f"internal.{node}"] + found.slopes[f"external.{node}"]
        np.testing.assert_allclose(parts, found.slopes[f"total.{node}"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.value[0], found.agent_value[:, 2], rtol=1e-5)
    assert "CAVEAT" in found.summary() and "finite differences" in found.summary()
    assert (found.origin >= 0).all() and found.gap.shape == (5, 5)
    words = ["dynamics", str(sim), "--recording", str(recording), "--directions", str(folder / "directions"), "--allow",
             "--samples", "6", "--lags", "2", "--draws", "10", "--out", str(folder / "dynamics")]  # fmt: skip
    assert cli.main(words) == 0 and len((folder / "dynamics" / "edges.csv").read_text().splitlines()) == 1 + 3 * 2 * 6
    assert "same sign" in load_result(folder / "dynamics").summary()
    words = ["intervene", str(sim), "--recording", str(recording), "--directions", str(folder / "directions"),
             "--allow", "--samples", "4", "--swap", "0<>1", "--drop", "2", "--controls", "2", "--horizon", "4",
             "--predict", "return=+", "--out", str(folder / "intervene")]  # fmt: skip
    assert cli.main(words) == 0
    told = load_result(folder / "intervene").summary()
    assert "world: return" in told and "simulator: action 0" in told and ("come true" in told or "came true" in told)
    smoothing = {"samples": 3, "at": 1, "allow": True, "init": "random", "wrt": ["latent", "memory"]}
    again = measure_saliency(sim, copies=3, **smoothing)
    assert again.slopes["total.latent"].shape == (2, 3, 1, 4)
    mine = {"first": lambda play, t: play.turns[t].seen.obs["view"].flatten(1)[:, 0]}
    own = measure_saliency(sim, recording, samples=2, at=1, allow=True, scalars=mine)
    assert own.scalars == ("first",)


def test_an_agents_own_world_is_asked_the_same(made):
    _, recording, folder = made
    spec = Recording(recording).plan
    from torchmem.envs.make import env_spec

    agent = tiny.dreamer(env_spec(spec["env"], **spec["kwargs"]))
    save_agent(agent, folder / "dreamer")
    found = measure_saliency(folder / "dreamer", recording, samples=3, at=2, allow=True,
                             ways=["total", "internal", "external"])  # fmt: skip
    total, parts = found.slopes["total.memory"], found.slopes["internal.memory"] + found.slopes["external.memory"]
    np.testing.assert_allclose(parts, total, rtol=1e-3, atol=1e-5)
    assert total.any()


def test_a_behaviour_alone_is_asked_at_its_own_steps(made, capsys):
    sim, recording, folder = made
    rec = Recording(recording)
    found = cluster_behaviours(rec, lags=[1], count=2, draws=0)
    assert not found.stable and np.isnan(found.p), "never tested"
    kept = str(found.save(folder / "behaviours"))
    mask = found.mask(1)
    some = measure_saliency(sim, recording, samples=8, at=1, allow=True, where=mask)
    rows = rec.episodes["start"][some.origin[:, 0]] + some.origin[:, 1]
    assert mask[rows].all() and len(set(rows.tolist())) > 2
    directions = find_directions(rec, count=2, draws=0)
    words = ["dynamics", str(sim), "--recording", str(recording), "--directions", str(directions.save(folder / "two")),
             "--allow", "--samples", "4", "--lags", "1", "--draws", "5", "--behaviours", kept]  # fmt: skip
    assert cli.main([*words, "--behaviour", "1", "--out", str(folder / "story")]) == 0
    story, seen = load_result(folder / "story"), correlate_lags(rec, directions, lags=1, where=mask, draws=0)
    assert isinstance(story, DynamicsResult)
    np.testing.assert_allclose(story.correlation, seen.correlation, atol=1e-9)
    capsys.readouterr()
    for more, told in [([], "go together"), (["--behaviour", "7"], "0 to 1")]:
        assert cli.main([*words, *more, "--out", str(folder / "no")]) == 2 and told in capsys.readouterr().err
    words[3] = str(folder / "other")
    assert cli.main([*words, "--behaviour", "1", "--out", str(folder / "no")]) == 2
    assert "not of --recording" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no step"):
        measure_saliency(sim, recording, samples=2, at=1, allow=True, where=mask & False)


def test_wrong_inputs_are_told(made):
    sim, recording, _ = made
    with pytest.raises(FidelityError, match="never measured"):
        measure_saliency(sim, recording)
    for how, match in [
        ({"recording": None}, "give a recording"), ({"scalars": ["directions"]}, "torchmem directions"),
        ({"at": 3, "horizon": 2}, "horizon of 2"), ({"wrt": ["latent"]}, "latent"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            measure_saliency(sim, **{"recording": recording, "samples": 2, "allow": True, **how})


def test_pictures_saturate_and_keep_the_sign():
    grad = np.zeros((1, 1, 2, 8, 8), np.float32)
    grad[0, 0, 1, 2, 2], grad[0, 0, 1, 5, 5] = 100, -100
    found = SaliencyResult(
        simulator="s", scalars=("value",), at=1, slopes={"total.obs.image": grad}, value=np.zeros((1, 1)),
        frames=np.full((1, 2, 8, 8, 3), 200, np.uint8), action={}, agent_value=np.zeros((1, 2)),
        origin=np.zeros((1, 2), int), check=np.zeros((0, 2)), integrated={}, gap=np.zeros((0, 0)), settings={},
        provenance=Provenance(torchmem="0"),
    )  # fmt: skip
    shown = found.pictures(blur=0)
    assert shown[0, 1, 2, 2, 2] > shown[0, 1, 2, 2, 0] and shown[0, 1, 5, 5, 0] > shown[0, 1, 5, 5, 2]
    assert (shown[0, 0] == 70).all()
    with pytest.raises(ValueError, match="wrt obs"):
        found.pictures(way="internal")
