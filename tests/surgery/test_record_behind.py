"""Recording while the writer lags: episodes wait on the tape, none is lost, and not too many wait."""

from __future__ import annotations

import itertools

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


@pytest.mark.parametrize("every", [0, 2], ids=["always", "now and then"])
def test_a_writer_that_is_busy_gets_the_same(model, tmp_path, monkeypatch, every):
    """Now and then free for one episode, it leaves others on the tape, whose steps must stay."""
    straight, asked = record(model, **ASK, out=tmp_path / "a"), itertools.count(1)
    monkeypatch.setattr(RecordingWriter, "busy", property(lambda self: not every or next(asked) % every == 0))
    late = record(model, **ASK, out=tmp_path / "b")
    assert late.finished
    np.testing.assert_array_equal(straight.episodes, late.episodes)
    for name in straight.covariates:
        np.testing.assert_array_equal(straight.covariates[name][:], late.covariates[name][:], err_msg=name)
    np.testing.assert_array_equal(straight.activations["memory"][:], late.activations["memory"][:])


def test_what_waits_is_kept_when_play_is_interrupted_and_is_not_too_much(model, tmp_path, monkeypatch):
    monkeypatch.setattr(RecordingWriter, "busy", property(lambda self: True))
    step, append, appended, waiting = module._Session._step, RecordingWriter.append, [], []

    def counted(self, *args, **kwargs):
        appended.append(1)
        append(self, *args, **kwargs)

    def stopped(self, named):
        waiting.append(len(self.finished))
        step(self, named)
        if self.tape.step >= 640 and self.finished:
            whole.append(len(appended) + len(self.finished))
            raise KeyboardInterrupt

    whole: list[int] = []
    monkeypatch.setattr(RecordingWriter, "append", counted)
    monkeypatch.setattr(module._Session, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        record(model, **{**ASK, "episodes": 4000}, out=tmp_path / "c")
    kept = Recording(tmp_path / "c")
    assert len(kept.episodes) == whole[0] and kept.episodes["complete"].all()
    assert 0 < max(waiting) <= module.MOST * ASK["envs"]
