"""Recording while the writer lags: episodes wait on the tape, none is lost, and not too many wait."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.recording import Recording, RecordingWriter
from torchmem.surgery import record as module
from torchmem.surgery.model import Model
from torchmem.surgery.record import record

ASK = {"sites": "memory", "episodes": 40, "envs": 4, "batched": True, "seed": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    world = {"size": 7, "view": 3, "obs": "symbolic_onehot", "max_steps": 90}
    return Model(PPOAgent(env_spec("minigrid_memory", **world), PPOConfig(units=8)))


def test_a_writer_that_is_always_busy_gets_the_same(model, tmp_path, monkeypatch):
    straight = record(model, **ASK, out=tmp_path / "a")
    monkeypatch.setattr(RecordingWriter, "busy", property(lambda self: True))
    late = record(model, **ASK, out=tmp_path / "b")
    assert late.finished
    np.testing.assert_array_equal(straight.episodes, late.episodes)
    for name in straight.covariates:
        np.testing.assert_array_equal(straight.covariates[name][:], late.covariates[name][:], err_msg=name)
    np.testing.assert_array_equal(straight.activations["memory"][:], late.activations["memory"][:])


def test_what_waits_is_kept_when_play_is_interrupted_and_is_not_too_much(model, tmp_path, monkeypatch):
    monkeypatch.setattr(RecordingWriter, "busy", property(lambda self: True))
    step, waiting = module._Session._step, []

    def stopped(self, named):
        step(self, named)
        waiting.append(len(self.finished))
        if self.tape.step == 640:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Session, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        record(model, **{**ASK, "episodes": 4000}, out=tmp_path / "c")
    kept = Recording(tmp_path / "c")
    assert len(kept.episodes) >= waiting[-1] > 0 and kept.episodes["complete"].all()
    assert max(waiting) <= module.MOST * 4 + 64 * 4  # a block may end many at once
