"""Recording from batched worlds: what TensorWorld plays, the same again, and after an interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.envs.tensor_world import TensorWorld
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.recording import Recording, RecordingWriter
from torchmem.surgery.model import Model
from torchmem.surgery.record import record

WORLD = {"size": 7, "view": 3, "obs": "symbolic_onehot", "max_steps": 30}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(PPOAgent(env_spec("minigrid_memory", **WORLD), PPOConfig(units=8)))


def test_every_row_is_what_the_table_shows(model, tmp_path):
    """Played again by the recorded actions, world by world and step by step."""
    n, each = 5, 3
    rec = record(model, sites="memory", episodes=n * each, envs=n, batched=True, seed=4, out=tmp_path / "r")
    assert rec.plan["batched"] and len(rec.episodes) == n * each and rec.episodes["complete"].all()
    worlds_of = rec.episodes["seed"] >> 25 & 4095  # one world's episodes come in its own order
    rows = [np.arange(rec.steps)[rec.rows(number)] for number in range(n * each)]
    whole = [np.concatenate([rows[i] for i in np.flatnonzero(worlds_of == world)]) for world in range(n)]
    worlds, action = TensorWorld("minigrid_memory", WORLD, n, split="record", seed=4), None
    kept = {name: rec.covariates[name][:] for name in ("obs.view", "reward", "is_last", "action", "pos", "outcome")}
    for t in range(min(map(len, whole))):
        data, truth = worlds.step(action)
        at = np.array([whole[row][t] for row in range(n)])
        for name, mine in (
            ("obs.view", data["view"]), ("reward", data["reward"]), ("is_last", data["is_last"]),
            ("pos", truth["pos"]), ("outcome", truth["outcome"]),
        ):  # fmt: skip
            np.testing.assert_array_equal(kept[name][at], mine.numpy(), err_msg=f"{name} at step {t}")
        action = {"action": torch.as_tensor(kept["action"][at])}


def test_interrupted_and_whole_are_the_same(model, tmp_path, monkeypatch):
    ask = {"sites": "memory", "episodes": 24, "envs": 4, "batched": True, "seed": 1}
    straight = record(model, **ask, out=tmp_path / "a")
    append, left = RecordingWriter.append, [9]

    def cut(self, *args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecordingWriter, "append", cut)
        record(model, **ask, out=tmp_path / "b")
    assert 0 < len(Recording(tmp_path / "b").episodes) < 24
    again = record(model, **ask, out=tmp_path / "b", resume=True)
    np.testing.assert_array_equal(straight.episodes, again.episodes)
    for name in straight.covariates:
        np.testing.assert_array_equal(straight.covariates[name][:], again.covariates[name][:], err_msg=name)
    np.testing.assert_array_equal(straight.activations["memory"][:], again.activations["memory"][:])


def test_what_cannot_be_batched(model, tmp_path):
    with pytest.raises(ValueError, match="leave workers=2"):
        record(model, sites="memory", batched=True, workers=2, out=tmp_path / "r")
    crafter = Model(PPOAgent(env_spec("crafter"), PPOConfig(units=8)))
    with pytest.raises(ValueError, match="crafter has no batched form"):
        record(crafter, sites="memory", batched=True, out=tmp_path / "r")
    assert not (tmp_path / "r" / "recording.json").exists()
