"""A perfect simulator is found perfect, a copier no better than copying, and analyses may ask which it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.simulator import tiny
from tests.training import simulated
from torchmem import cli
from torchmem.models.simulator.observations import to_float
from torchmem.models.simulator.protocol import Start, Stepped
from torchmem.models.simulator.window import MEMORY, Window, cut_window
from torchmem.recording import Recording
from torchmem.result import load_result
from torchmem.studies.fidelity import FidelityError, calibrate, require_fidelity, summarise
from torchmem.studies.fidelity_measures import measure_windows
from torchmem.studies.fidelity_result import FidelityResult
from torchmem.studies.simulate import between, simulate

ROWS, STEPS = 24, 6


class Oracle:
    """Shows what was recorded (or the first frame for ever): its carry is the number of the step."""

    def __init__(self, window: Window, loop: tiny.AgentLoop, copier: bool) -> None:
        self.window, self.loop, self.copier = window, loop, copier
        self.spec, self.context, self.device = tiny.VECTOR, 3, torch.device("cpu")
        self.real = to_float(window.obs, tiny.VECTOR.obs, torch.float32)

    def world_noise(self, batch, horizon, generator):
        return None, None

    def begin(self, context, draw=None):
        before = self.loop.packing.unpack(context.memory[:, -2])
        return Start(torch.zeros(len(context.is_first), dtype=torch.long), before, context.is_first[:, -1])

    def look(self, carry):
        t = 0 if self.copier else int(carry[0])
        obs = {key: value[:, t] for key, value in self.real.items()}
        return Stepped(carry, obs, self.window.reward[:, t], self.window.terminal[:, t])

    def step(self, carry, action, draw):
        return self.look(carry + 1)

    def state_of(self, carry):
        return carry.float().unsqueeze(1)

    def reconstruct(self, window):
        return self.real


def measured(copier: bool) -> dict[str, np.ndarray]:
    loop = tiny.AgentLoop(tiny.ppo())
    with torch.no_grad():
        for p in loop.agent.parameters():
            p.mul_(3)  # a policy that cares
    net = tiny.simulator(tiny.ppo())
    batch = net.random_batch(ROWS, STEPS + 1)
    batch["is_first"][:, 1:] = False
    batch["is_first"][::3, 6] = True
    batch["is_terminal"][:] = False
    batch["is_terminal"][::3, 5] = True
    window = cut_window(batch, tiny.VECTOR, 3)
    return measure_windows(Oracle(window, loop, copier), loop, batch, seed=0)


def result(copier: bool, tmp_path: Path | None = None) -> FidelityResult:
    from torchmem.result import Provenance

    known = {"simulator": "s", "weights": "w", "recording": "r", "provenance": Provenance.here()}
    return summarise(measured(copier), np.arange(ROWS) // 2, STEPS, 4, 1.0, {}, 0, **known)


def test_a_perfect_simulator_has_no_error_and_passes():
    found = result(copier=False)
    for what in ("observation", "memory", "kl", "value", "reward", "end"):
        np.testing.assert_allclose(found.mean[f"{what}.simulated"], 0, atol=1e-6, err_msg=what)
        assert found.mean[f"{what}.copy"][1:].max() > 1e-4 and found.mean[f"{what}.copy"][0] < 1e-6
    assert (found.mean["agree.simulated"] == 1).all() and (found.mean["agree.copy"][1:] < 1).any()
    assert found.passed and max(found.ratio["observation"]) < 1e-6
    np.testing.assert_allclose(found.closed["closed.end"], found.closed["real.end"], atol=1e-6)
    np.testing.assert_allclose(found.closed["closed.return"], found.closed["real.return"], rtol=1e-4)


def test_a_copier_is_as_good_as_copying_and_fails():
    found = result(copier=True)
    for what in ("observation", "memory", "kl"):
        np.testing.assert_allclose(found.ratio[what], 1, atol=1e-5)
    assert found.failed == ["observation", "memory", "kl"]
    assert "FAILED on observation, memory, kl" in found.summary()


def test_steps_beyond_the_end_are_not_counted():
    found = measured(copier=False)
    assert found["weight"].sum() == ROWS * STEPS - ROWS / 3 * 2
    everything = result(copier=True).mean["observation.simulated"]
    kept = (found["weight"] > 0)[:, 5]
    value = measured(copier=True)["observation.simulated"]
    assert everything[5] == pytest.approx(value[kept, 5].mean(), rel=1e-6)


def test_calibration():
    predicted = np.array([0.05, 0.1, 0.95, 1.0])
    np.testing.assert_allclose(calibrate(predicted, np.array([0, 1, 1, 1])), [[0.075, 0.5, 2], [0.975, 1, 2]])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run of a simulator, its agent, its recording)."""
    folder = tmp_path_factory.mktemp("fidelity")
    agent = simulated.make_agent(folder)
    recording = simulated.make_recording(folder, agent).path
    words = [*simulated.SIZES, *simulated.LOOP, f"steps={4 * simulated.STRIDE}"]
    command = ["simulator", "train", str(recording), "--agent", str(agent), "--out", str(folder / "run")]
    assert cli.main([*command, "--set", *words]) == 0
    assert cli.main([*command, "--set", *words, "agent.lr=1"]) == 2, "another configuration in the same folder"
    return folder / "run", agent, recording


def test_the_report_is_asked_before_anything_is_concluded(made, tmp_path, capsys):
    sim, _, recording = made
    with pytest.raises(FidelityError, match="never measured: run torchmem simulator report"):
        require_fidelity(sim)
    assert require_fidelity(sim, allow=True) is None
    words = ["simulator", "report", str(sim), "--recording", str(recording), "--horizon", "5", "--gate", "3"]
    assert cli.main(words) == 1, "four updates are not enough"
    assert "FAILED" in capsys.readouterr().out
    found = load_result(sim / "fidelity")
    assert isinstance(found, FidelityResult) and found.levels >= 2 and found.windows >= 8
    assert (sim / "fidelity" / "measures.png").stat().st_size > 10_000
    assert (sim / "fidelity" / "report.html").read_text().count("<img") == 1
    with pytest.raises(FidelityError, match="no better than copying the last frame"):
        require_fidelity(sim)
    assert require_fidelity(sim, allow=True) == found
    good = dataclasses.replace(found, ratio={name: np.array([0.1, 0.0, 0.2]) for name in found.ratio})
    good.save(sim / "fidelity", overwrite=True)
    assert require_fidelity(sim) == good
    dataclasses.replace(good, weights="0" * 64).save(sim / "fidelity", overwrite=True)
    with pytest.raises(FidelityError, match="of other weights"):
        require_fidelity(sim)
    good.save(sim / "fidelity", overwrite=True)
    assert cli.main([*words, "--gate", "5"]) == 2
    assert "gate=5 must be within" in capsys.readouterr().err


def read(rec: Recording) -> dict[str, np.ndarray]:
    return {name: rec.column(name)[:] for name in (*rec.activations, *rec.covariates)}


@pytest.mark.parametrize(
    "how",
    [{"init": "real"}, {"init": "real", "guess": True}, {"init": "random", "world_noise": True, "action_noise": True},
     {"init": "interpolate"}, {"init": "random", "samples": 1}, {"init": "real", "actions": [2]}],
    ids=["real", "guess", "random", "interpolate", "one", "actions"],
)  # fmt: skip
def test_simulated_recordings_are_whole_and_the_same_again(made, tmp_path, how):
    sim, _, recording = made
    how = {"samples": 5, "horizon": 4, "seed": 3, "allow": True, "recording": recording, **how}
    rec = simulate(sim, tmp_path / "a", **how)
    count = how["samples"]
    assert rec.finished and rec.steps == 4 * count and len(rec.episodes) == count
    found, again = read(rec), read(simulate(sim, tmp_path / "b", **{**how, "batch": 32}))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert found["obs.view"].shape == (4 * count, 180) and found["world"].shape == (4 * count, 8 + 6)
    assert found["memory"].shape == (4 * count, 6) and found["latent"].shape == (4 * count, 4)
    assert (found["from_episode"] >= 0).all() == (how["init"] == "real")
    np.testing.assert_allclose(np.linalg.norm(found["latent"], axis=1), 1, rtol=1e-5)
    if "actions" in how:
        assert (found["action"] == 2).all()
    if count > 1:
        other = read(simulate(sim, tmp_path / "c", **{**how, "seed": 4}))
        assert not np.array_equal(found["latent"], other["latent"])
    assert rec.provenance.caveats == ("simulated, by a simulator that failed its gate",) or (
        rec.provenance.caveats in (("simulated",), ("simulated, fidelity never measured",))
    )


def test_interpolation_goes_in_equal_angles():
    net = tiny.simulator(tiny.ppo())
    a, b = net.random_latent(2, torch.Generator().manual_seed(1)).split(1)
    path = between(net, a, b, 7)
    torch.testing.assert_close(path[:1], a)
    torch.testing.assert_close(path[-1:], b)
    turns = torch.arccos((path[1:] * path[:-1]).sum(-1))
    torch.testing.assert_close(turns, turns.mean().expand(6), rtol=1e-4, atol=1e-5)


def test_another_agent_acts_in_the_same_world(made, tmp_path):
    sim, _, recording = made
    spec = json.loads((sim / "env_spec.json").read_text())
    from torchmem.models.checkpoint import spec_from

    other = tiny.ppo(spec_from(spec), units=9)
    rec = simulate(sim, tmp_path / "out", recording=recording, samples=3, horizon=3, agent=other, allow=True)
    assert rec.activations["memory"].shape == (9, 9)
    with pytest.raises(ValueError, match="differ in the obs"):
        simulate(sim, tmp_path / "no", recording=recording, agent=tiny.ppo(), allow=True)


def test_the_command_plays_and_refuses(made, tmp_path, capsys):
    sim, agent, recording = made
    words = ["simulate", str(sim), "--allow", "--recording", str(recording), "--samples", "2", "--horizon", "3"]
    assert cli.main([*words, "--out", str(tmp_path / "a"), "--actions", "1"]) == 0
    assert "2 episodes, 6 steps" in capsys.readouterr().out
    assert cli.main([*words, "--out", str(tmp_path / "b"), "--agent", str(agent)]) == 0, "named, its own agent fits too"
    assert cli.main([*words, "--out", str(tmp_path / "c"), "--gif", str(tmp_path / "film.gif")]) == 2
    assert "shows no colour image" in capsys.readouterr().err


def test_wrong_wishes_are_told(made, tmp_path):
    sim, agent, recording = made
    out = tmp_path / "out"
    for how, told in (
        ({"init": "dream"}, "init must be one of"),
        ({"init": "real"}, "give a recording"),
        ({"init": "random", "samples": 0}, "at least 1"),
        ({"init": "random", "actions": [7]}, "action 7 is not among the 3"),
        ({"init": "random", "actions": [1, 2], "horizon": 3}, "2 actions for horizon=3"),
        ({"init": "random", "sees": "latent"}, "leave it at frames"),
    ):
        with pytest.raises(ValueError, match=told):
            simulate(sim, out, allow=True, **how)
    with pytest.raises(ValueError, match="holds no world model"):
        simulate(agent, out, init="real", recording=recording, allow=True)
    (out / "x").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        simulate(sim, out, init="random", allow=True)


def test_a_dreamer_is_measured_and_simulated_in_its_own_world(tmp_path):
    from torchmem.envs.make import env_spec
    from torchmem.models.checkpoint import save_agent
    from torchmem.studies.fidelity import measure_fidelity
    from torchmem.surgery.model import load
    from torchmem.surgery.record import record

    agent = save_agent(tiny.dreamer(env_spec("minigrid_memory", **simulated.WORLD)), tmp_path / "agent")
    rec = record(load(agent), episodes=6, envs=3, out=tmp_path / "recording")
    found = measure_fidelity(agent, rec.path, horizon=4, gate=2)
    assert found.levels == 6 and not found.realism and not found.passed
    for sees in ("frames", "latent"):
        made = simulate(agent, tmp_path / sees, recording=rec.path, samples=3, horizon=4, sees=sees, allow=True)
        assert made.activations["memory"].shape == (12, 16) and "latent" not in made.activations
    assert MEMORY not in made.covariates


def test_training_measures_at_its_end_if_asked(made, tmp_path, capsys):
    _, agent, recording = made
    words = ["simulator", "train", str(recording), "--agent", str(agent), "--out", str(tmp_path / "run")]
    words += ["--set", *simulated.SIZES, *simulated.LOOP, f"steps={simulated.STRIDE}"]
    assert cli.main([*words, "--report", "horizon=5", "gates=3"]) == 2
    assert "--report gates=3: write NAME=N, with a name of horizon, gate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*words, "--report", "horizon=5", "gate=3"]) == 0, "trained and measured, though it failed"
    found = load_result(tmp_path / "run" / "fidelity")
    assert (found.horizon, found.gate, found.passed) == (5, 3, False)
    with pytest.raises(FidelityError, match="no better than copying"):
        require_fidelity(tmp_path / "run" / "ckpt")
