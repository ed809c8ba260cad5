"""`train.py agent=ppo`: the same sitting, snapshots, logs and evaluation as any agent; resumed is uninterrupted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import torchmem
from tests.training import tiny
from torchmem.training import command
from torchmem.training.config import compose
from torchmem.training.evaluate import evaluate
from torchmem.training.experiment import Experiment
from torchmem.training.goal import Goal
from torchmem.training.rollout_experiment import RolloutExperiment
from torchmem.training.rollout_learner import RolloutLearner
from torchmem.training.run_config import GoalConfig
from torchmem.training.sitting import EXPERIMENTS

LOOP = (
    "agent=ppo agent.units=8 agent.encoder_units=8 envs=4 batch=2 length=5 ratio=2 trainer=cpu trainer.threads=1 "
    "trainer.matmul=default workers=0 eval.episodes=4 eval.every_steps=0 log.every_s=1e-6 log.sinks=[] save.every_s=0"
).split()
DUMMY = "env=dummy env.image=0 env.length=7 env.vary=true env.ending=both".split()
CONTINUOUS = [*DUMMY, "env.continuous=true", "agent.scale_obs=true", "agent.scale_reward=true", "agent.core=lstm"]
IMAGES = "env=dummy env.image=16 env.length=7 agent.image_channels=[4,4] agent.core=mlp".split()
BATCHED = "env=minigrid_memory env.size=7 env.max_steps=9 env.backend=batched".split()
PROCGEN = "env=procgen env.game=starpilot env.mode=extreme agent.image_channels=[4,4]".split()  # dies soon


def words(logdir: Path, *more: str, world: list[str], steps: int = 80) -> list[str]:
    both = [*LOOP, *world, f"steps={steps}", f"logdir={logdir}", *more]
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in both).items()]


def outcome(logdir: Path) -> dict:
    """Weights, optimiser, worlds, carry, random states of the newest snapshot; no times."""
    place = tiny.snapshot(logdir)
    files = sorted(place.glob("**/*.safetensors"))
    assert len(files) == 3
    shared = json.loads((place / "shared.json").read_text())
    del shared["watermark"], shared["clock"]["wall_s"]
    return {str(f.relative_to(place)): tiny.digest(f) for f in files} | {"shared": shared, "id": place.name}


RECALL = [*BATCHED, "agent.recall=0.1", "agent.recall_width=20"]
WORLDS = {"dummy": DUMMY, "continuous": CONTINUOUS, "images": IMAGES, "batched": BATCHED, "recall": RECALL}
if importlib.util.find_spec("envpool"):
    WORLDS |= {"procgen": PROCGEN, "procgen_pool": [*PROCGEN, "env.backend=pool"]}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_two_sittings_are_one(tmp_path, world):
    assert command.main(words(tmp_path / "straight", world=world)) == 0
    assert command.main(words(tmp_path / "twice", world=world, steps=40)) == 0
    assert tiny.snapshot(tmp_path / "twice").name == "000000000040-000000008"
    assert command.main(words(tmp_path / "twice", world=world)) == 0
    assert outcome(tmp_path / "twice") == outcome(tmp_path / "straight")
    rows = [r for r in tiny.rows(tmp_path / "straight") if "train/loss/policy" in r]
    assert len(rows) == 4 and rows[-1]["agent_steps"] == 80 and rows[-1]["updates"] == 16
    assert rows[-1]["replay_ratio"] == 2, "each step is gone through twice"
    assert {"train/kl", "train/entropy", "train/clipped", "train/gradient_norm"} <= set(rows[-1])
    agent = torchmem.load(tmp_path / "straight")
    assert agent.config.name == "ppo"


def test_a_run_ends_at_its_goal_and_stays_there(tmp_path):
    goal = ["goal.score=-1e9", "goal.episodes=9"]
    assert command.main(words(tmp_path / "run", *goal, world=DUMMY, steps=10_000)) == 0
    rows = tiny.rows(tmp_path / "run")
    last = next(r for r in rows if "eval/score" in r)
    assert last["episodes"] >= 9 and last["agent_steps"] < 200, "as soon as there are nine episodes"
    assert command.main(words(tmp_path / "run", *goal, world=DUMMY, steps=10_000)) == 0
    assert tiny.rows(tmp_path / "run")[-1]["agent_steps"] == last["agent_steps"], "resumed: still reached"
    never = ["goal.score=1e9", "goal.episodes=1"]
    assert command.main(words(tmp_path / "never", *never, world=DUMMY)) == 0
    assert tiny.rows(tmp_path / "never")[-1]["agent_steps"] == 80


def test_a_goal_counts_whole_windows_and_successes():
    goal = Goal(GoalConfig(0.5, 4), "success")
    for total in (0.9, 0.2, 0.0):
        goal.add(total)
    assert not goal.reached, "three of four episodes"
    goal.add(-1.0)
    assert goal.reached and goal.mean == 0.5
    again = Goal(GoalConfig(0.5, 4), "success")
    again.load(goal.state())
    goal.add(0.0)
    assert again.reached and not goal.reached


def test_evaluation_is_on_episodes_that_training_never_sees(tmp_path):
    """D7, D9: means are means, and the seeds of evaluation are others; tensors and single worlds are judged alike."""
    assert command.main(words(tmp_path / "run", world=BATCHED)) == 0
    row = next(r for r in tiny.rows(tmp_path / "run") if "eval/score" in r)
    assert row["eval/episodes"] == 4 and 0 <= row["eval/score"] <= 1
    assert any("eval_no_memory/score" in r for r in tiny.rows(tmp_path / "run"))
    kwargs = compose(words(tmp_path / "run", world=BATCHED)).env_kwargs | {"max_steps": 40}
    agent = torchmem.load(tmp_path / "run")
    scores = [
        evaluate(agent, "minigrid_memory", kwargs, 300, seed=s, split=split, envs=30).lengths.tolist()
        for s, split in ((0, "eval"), (0, "eval"), (1, "eval"), (0, "train"))
    ]
    assert scores[0] == scores[1] and scores[0] != scores[2] and scores[0] != scores[3]
    single = evaluate(agent, "minigrid_memory", kwargs | {"backend": "minigrid"}, 300, envs=30)
    assert sum(single.lengths) / 300 == pytest.approx(sum(scores[0]) / 300, rel=0.15)


def test_agents_are_kept_every_so_many_steps(tmp_path):
    """At the first rollout that reaches each multiple, under its number."""
    more = ("save.agents_every=30", "eval.episodes=1", "eval.no_memory=false")
    assert command.main(words(tmp_path / "run", *more, world=DUMMY)) == 0
    kept = sorted((tmp_path / "run" / "ladder").iterdir())
    assert [int(folder.name) for folder in kept] == [30, 60]
    assert torchmem.load(kept[0]).config.name == "ppo"


def test_a_falling_rate_starts_full_and_is_never_zero(tmp_path, monkeypatch):
    """Over 4 rollouts: 1, 3/4, 1/2, 1/4 of it."""
    seen = []
    update = RolloutLearner.update

    def noted(self, batch, progress):
        seen.append(progress)
        return update(self, batch, progress)

    monkeypatch.setattr(RolloutLearner, "update", noted)
    assert command.main(words(tmp_path / "run", "agent.schedule=linear", "eval.episodes=1", world=DUMMY)) == 0
    assert seen == [0.0] * 4 + [0.25] * 4 + [0.5] * 4 + [0.75] * 4


WRONG = {
    "batch=3": "envs=4 columns cannot be cut into minibatches of batch=3",
    "ratio=1.5": "a whole number of times",
    "agent.parts=3": "agent.parts=3",
    "replay.capacity=100": "keeps none",
    "compile=full": "compile=off",
    "trainer.precision=bfloat16": "trainer.precision=float32",
    "agent.clip=0": "clip must be above 0",
    "size=12m": "size=12m has no line for agent=ppo",
}


@pytest.mark.parametrize("word", WRONG)
def test_what_ppo_cannot_do_is_refused_by_name(tmp_path, capfd, word):
    assert command.main(words(tmp_path / "run", word, world=DUMMY)) == 2
    assert WRONG[word] in capfd.readouterr().err
    assert not (tmp_path / "run" / "ckpt").exists()


def test_the_agent_chooses_its_loop_and_its_numbers():
    config = compose(["agent=ppo", "env=dummy"])
    assert (config.envs, config.batch, config.length, config.ratio, config.groups["size"]) == (256, 32, 32, 4, "small")
    assert compose(["agent=ppo", "env=dummy", "envs=8", "batch=4"]).envs == 8
    assert compose(["preset=ppo_memory"]).agent.name == "ppo"
    assert compose(["env=dummy"]).envs == 16, "the numbers of ppo are its own"
    assert EXPERIMENTS["dreamer"] is Experiment and EXPERIMENTS["ppo"] is RolloutExperiment
