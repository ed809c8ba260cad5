"""A simulator trains through the agents' loop: it stops, goes on and refuses like them, and leaves its agent alone."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import simulated, tiny
from torchmem.models.checkpoint import CheckpointError, load, save_agent
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.files import FROZEN, load_simulator
from torchmem.models.simulator.window import MEMORY, cut_window
from torchmem.recording import Recording
from torchmem.training.config import ConfigError, compose
from torchmem.training.loop import run
from torchmem.training.recorded import levels_of, read_rows, split_levels, spread_places, windows_at
from torchmem.training.simulator_experiment import SimulatorExperiment

Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """(agent folder, recording folder)."""
    folder = tmp_path_factory.mktemp("simulated")
    agent = simulated.make_agent(folder)
    return agent, simulated.make_recording(folder, agent).path


def train(made: Made, logdir: Path, updates: int, *more: str) -> None:
    run(compose(simulated.words(logdir, *made, updates, *more)))


def test_the_agents_pass_is_what_was_recorded(made):
    """Alignment (T5): carried rows are the recorded memory, step for step."""
    rec, loop = Recording(made[1]), AgentLoop(load(made[0]))
    for episode, rows in enumerate(read_rows(rec, loop, range(5))):
        at = rec.rows(episode)
        np.testing.assert_allclose(rows[MEMORY][:, :6], rec.activations["memory"][at], atol=1e-5)
        assert np.array_equal(rows[MEMORY][:, 6:].argmax(1), rec.covariates["action"][at])


def test_levels_are_on_one_side(made):
    rec = Recording(made[1])
    training, held_out = split_levels(rec, 0.3)
    names = levels_of(rec)
    assert sorted(training + held_out) == list(range(16)) and held_out
    assert not {names[i] for i in training} & {names[i] for i in held_out}
    more = split_levels(rec, 0.6)[1]
    assert set(held_out) <= set(more), "a larger share holds out what a smaller one does"
    with pytest.raises(ConfigError, match="none of them held out"):
        split_levels(rec, 1e-9)


def test_windows_show_an_episode_where_it_is(made):
    rec, loop = Recording(made[1]), AgentLoop(load(made[0]))
    rows = list(read_rows(rec, loop, [0, 1]))
    length = len(rows[0]["reward"])
    batch = windows_at(rows, [(0, 0), (0, 4), (0, length - 2)], context=3, steps=5)
    assert batch["view"].shape[:2] == (3, 7)
    assert torch.equal(batch["view"][1], torch.from_numpy(rows[0]["view"][2:9]))
    assert torch.equal(batch["view"][0, 2:], torch.from_numpy(rows[0]["view"][:5])) and not batch["view"][0, :2].any()
    window = cut_window(batch, loop.agent.spec, 3)
    assert window.first.tolist() == [True, False, False]
    assert window.weight[2].tolist() == [1, 1, 0, 0, 0] and window.weight[:2].all()
    places = spread_places(rows, 3, 5, seed=0)
    assert places == spread_places(rows, 3, 5, seed=0) != spread_places(rows, 3, 5, seed=1)
    assert all(first <= len(rows[episode]["reward"]) - 2 for episode, first in places)


def test_a_run_trains_the_simulator_and_not_its_agent(made, tmp_path):
    logdir = tmp_path / "run"
    train(made, logdir, 6)
    frozen = logdir / FROZEN / "agent.safetensors"
    assert frozen.read_bytes() == (made[0] / "agent.safetensors").read_bytes()
    rows = tiny.rows(logdir)
    last = rows[-1]
    assert last["updates"] == 6 and last["agent_steps"] == 6 * simulated.STRIDE
    assert {"held_out/loss/total", "held_out/loss/memory"} <= set(last)
    assert any("train/loss/kl" in row for row in rows)
    world, loop, home = load_simulator(logdir)
    assert home.parent == tiny.snapshot(logdir) and world.loop is loop
    assert not any(p.requires_grad for p in [*world.parameters(), *loop.agent.parameters()])
    with pytest.raises(CheckpointError, match="is a simulator, it does not act"):
        load(logdir)
    with pytest.raises(CheckpointError, match="simulator without its agent"):
        load_simulator(save_agent(world, tmp_path / "alone"))


def test_replay_holds_the_training_levels_and_nothing_else(made, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    save = SimulatorExperiment.save

    def spy(self, extra):
        seen.update(steps=self.replay.steps, held=self.held_out, rows=self.replay.peek(1, 0))
        return save(self, extra)

    monkeypatch.setattr(SimulatorExperiment, "save", spy)
    train(made, tmp_path / "run", 1)
    rec = Recording(made[1])
    training, held_out = split_levels(rec, 0.3)
    assert seen["held"] == held_out
    assert seen["steps"] == rec.episodes["length"][training].sum()
    assert seen["rows"][MEMORY].shape == (1, 6, 9), "what the agent carried, after every step"


@pytest.mark.parametrize("kind", ["rssm", "s5"])
def test_a_run_in_two_sittings_is_the_run_in_one(made, tmp_path, kind):
    more = (f"agent.transition={kind}", "agent.ssm.layers=1", "agent.ssm.states=4", "agent.ssm.blocks=2")
    one, two = tmp_path / "one", tmp_path / "two"
    train(made, one, 6, *more)
    train(made, two, 3, *more)
    train(made, two, 6, *more)
    assert outcome(one) == outcome(two)


def outcome(logdir: Path) -> dict[str, Any]:
    found = tiny.outcome(logdir)
    assert found["shared"]["source"]["episodes"] == 16
    return found


def test_ctrl_c_saves_and_the_same_command_goes_on(made, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    train(made, one, 6)
    learn, calls = SimulatorExperiment.learn, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return learn(self)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatorExperiment, "learn", interrupted)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGINT)):
            train(made, two, 6)
    assert len(calls) == 2
    train(made, two, 6)
    assert outcome(one) == outcome(two)


def test_wrong_inputs_are_told(made, tmp_path):
    agent, recording = made
    with pytest.raises(ConfigError, match=r"env.path=RECORDING env.agent=RUN"):
        train(made, tmp_path / "a", 1, "env.agent=")
    with pytest.raises(ConfigError, match="not from env=dummy"):
        run(compose(["agent=simulator", "env=dummy", f"logdir={tmp_path / 'z'}", *simulated.LOOP]))
    with pytest.raises(ConfigError, match=r"env.agent: no agent in"):
        train((tmp_path, recording), tmp_path / "b", 1)
    with pytest.raises(ConfigError, match=r"env.path: "):
        train((agent, tmp_path), tmp_path / "c", 1)
    with pytest.raises(ConfigError, match="none of them held out"):
        train(made, tmp_path / "d", 1, "agent.held_out=1e-9")
    with pytest.raises(ConfigError, match="vision=shared"):
        train(made, tmp_path / "e", 1, "agent.vision=irl")
    with pytest.raises(ConfigError, match="set length=3 or more"):
        train(made, tmp_path / "f", 1, "length=2")
    with pytest.raises(ConfigError, match="less than one sequence"):
        train(made, tmp_path / "g", 1, "length=400")


def test_another_recording_in_its_place_is_refused(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made[1], copy)
    train((made[0], copy), tmp_path / "run", 1)
    shutil.rmtree(copy)
    simulated.make_recording(tmp_path, made[0], episodes=12).path.rename(copy)
    with pytest.raises(ConfigError, match="not the recording this run began with"):
        train((made[0], copy), tmp_path / "run", 2)


def test_a_recording_without_observations_is_refused(made, tmp_path):
    from torchmem.surgery.model import load as load_model
    from torchmem.surgery.record import record

    record(load_model(made[0]), episodes=4, envs=2, out=tmp_path / "blind", observations=False)
    with pytest.raises(ConfigError, match=r"lacks obs.view: record without --no-observations"):
        train((made[0], tmp_path / "blind"), tmp_path / "run", 1)
