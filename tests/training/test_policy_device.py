"""Acting from a copy of the weights: stale in between, equal after a renewal, resumed exactly, nothing else moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import tiny
from tests.training.forker import Forker
from torchmem.training import device
from torchmem.training.config import compose
from torchmem.training.experiment import Experiment
from torchmem.training.processes import Processes
from torchmem.training.run_config import TrainerConfig
from torchmem.training.typed import ConfigError

R2I = (
    "agent=r2i agent.deter=16 agent.units=8 agent.ssm.layers=2 agent.ssm.states=8 agent.ssm.blocks=2 agent.stoch=4 "
    "agent.classes=4 agent.vector_units=8 agent.head_units=8 agent.imag_length=3 agent.bins=21 agent.lr=1e-2 "
    "agent.policy_layers=1 agent.value_layers=1 agent.actor_lr=1e-2"
).split()
DREAMER = [word for word in tiny.AGENT if word.startswith("agent.")]
AGENTS = {"dreamer": DREAMER, "r2i": R2I}
SPLIT = "trainer.policy_device=cpu"


def command(logdir: Path, agent: str, *more: str, steps: int = 60) -> list[str]:
    words = [w for w in tiny.words(logdir, steps=steps) if not w.startswith("agent.")]
    return [*words, *AGENTS[agent], *more]


@pytest.fixture(scope="module")
def forker():
    with Forker() as forker:
        yield forker


@pytest.fixture
def experiment(tmp_path):
    made = []

    def make(*more: str, agent: str = "dreamer") -> Experiment:
        config = compose(command(tmp_path / f"run{len(made)}", agent, *more))
        made.append(Experiment(config, Processes(), torch.device("cpu")))
        made[-1].open_replay("test")
        return made[-1]

    yield make
    for x in made:
        x.close()


def weights(agent) -> list[torch.Tensor]:
    return [value.clone() for value in agent.state_dict().values()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("agent", AGENTS)
def test_the_copy_lags_behind_and_is_renewed(experiment, agent):
    x = experiment(SPLIT, "trainer.policy_every=3", agent=agent)
    x.collect()
    assert x.actor.agent is not x.agent and same(weights(x.actor.agent), weights(x.agent))
    mine = {value.data_ptr() for value in x.agent.state_dict().values() if value.numel()}
    assert mine.isdisjoint(value.data_ptr() for value in x.actor.agent.state_dict().values() if value.numel())
    while not x.ready():
        x.collect()
    old, seen = weights(x.agent), []
    for update in range(1, 8):
        seen.append(int(x.learn()["policy_staleness"]))
        before = weights(x.actor.agent)
        x.collect()
        assert x.staleness == update % 3
        if update % 3:
            assert same(weights(x.actor.agent), before) and same(before, old)
            assert not same(before, weights(x.agent)), "the update has changed nothing"
        else:
            old = weights(x.agent)
            assert same(weights(x.actor.agent), old) and not same(before, old)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_actions_come_from_the_copy(experiment):
    x = experiment(SPLIT, "trainer.policy_every=100")
    while not x.ready():
        x.collect()
    x.learn()
    with torch.no_grad():
        for p in x.agent.parameters():
            p.fill_(float("nan"))
    x.collect()
    assert all(torch.isfinite(part).all() for part in x.collector.carry)
    x.actor.every = 1
    x.collect()
    assert not all(torch.isfinite(part).all() for part in x.collector.carry), "the copy was not renewed"


@pytest.mark.parametrize("agent", AGENTS)
def test_copied_after_every_update_the_run_is_the_same_run(forker, tmp_path, agent):
    errors = tmp_path / "stderr"
    for name, more in {"plain": [], "split": [SPLIT, "trainer.policy_every=1"], "late": [SPLIT]}.items():
        assert forker.run(command(tmp_path / name, agent, *more), errors) == 0, errors.read_text()

    def told(name: str) -> list[dict]:
        return [{k: v for k, v in row.items() if "staleness" not in k} for row in tiny.rows(tmp_path / name)]

    plain, split = tiny.outcome(tmp_path / "plain"), tiny.outcome(tmp_path / "split")
    assert split == plain and told("split") == told("plain")
    assert tiny.outcome(tmp_path / "late") != plain, "acting with old weights changed nothing"
    values = [row["train/policy_staleness"] for row in tiny.rows(tmp_path / "late") if "train/policy_staleness" in row]
    assert max(values) > 5 and min(values) == 0
    assert "acting on cpu" in errors.read_text()


@pytest.mark.parametrize("agent", AGENTS)
def test_killed_between_two_copies_it_goes_on_with_the_old_weights(forker, tmp_path, agent):
    errors, more = tmp_path / "stderr", [SPLIT, "trainer.policy_every=7"]
    straight, killed = (command(tmp_path / name, agent, *more, steps=100) for name in ("straight", "killed"))
    assert forker.run(straight, errors) == 0, errors.read_text()
    assert forker.run(killed, errors, save_at=[54], kill_at=76) < 0
    place = tiny.snapshot(tmp_path / "killed")
    kept = json.loads((place / "rank0.json").read_text())
    assert 0 < kept["staleness"] and kept["actor"]["weights"], "the snapshot is of just after a copy"
    stored, trained = load_file(place / "rank0.safetensors"), load_file(place / "agent" / "agent.safetensors")
    old = {name: value for name, value in stored.items() if "/actor/weights/" in name}
    assert any(not torch.equal(value, trained[name.rpartition("/")[2]]) for name, value in old.items())
    assert forker.run(killed, errors) == 0, errors.read_text()
    assert tiny.outcome(tmp_path / "killed") == tiny.outcome(tmp_path / "straight")
    assert tiny.rows(tmp_path / "killed") == tiny.rows(tmp_path / "straight")


@pytest.mark.parametrize(
    "more, told",
    [
        ("trainer.policy_device=cuda:7", "cuda:7 is not there; this machine has: cpu"),
        ("trainer.policy_device=gpu", "say cpu or cuda:N"),
        ("trainer.policy_every=0", "policy_every must be at least 1"),
    ],
)
def test_a_device_that_is_not_there_is_told_at_once(forker, tmp_path, more, told):
    errors = tmp_path / "stderr"
    assert forker.run(command(tmp_path / "run", "dreamer", more), errors) not in (0, 70)
    assert told in errors.read_text() and "Traceback" not in errors.read_text()


def test_ppo_refuses_a_copy(forker, tmp_path):
    errors = tmp_path / "stderr"
    words = ["agent=ppo", "env=dummy", "env.image=0", "trainer=cpu", SPLIT, f"logdir={tmp_path / 'run'}"]
    assert forker.run(words, errors) not in (0, 70)
    assert "policy_device" in errors.read_text() and "agent=ppo" in errors.read_text()


@pytest.mark.parametrize(
    "config, expected",
    [
        (TrainerConfig("cuda", "auto"), (4, 4)),
        (TrainerConfig("cuda", "auto", policy_device="cpu"), (4, 4)),
        (TrainerConfig("cuda", "auto", policy_device="cuda:1"), (3, [0, 2, 3])),
        (TrainerConfig("cuda", 2, policy_device="cuda:0"), (2, [1, 2])),
        (TrainerConfig("cpu", "auto", policy_device="cuda:3"), (1, 1)),
        (TrainerConfig("cuda", 4, policy_device="cuda:0"), "leaves 3"),
        (TrainerConfig("cuda", 1, policy_device="cuda:4"), "cuda:4 is not there"),
    ],
)
def test_training_takes_the_other_devices(monkeypatch, config, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            device.training_devices(config)
    else:
        assert device.training_devices(config) == expected
