"""Collecting activations while training: the files say what they should, and the run is the same run."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from tests.training import tiny
from torchmem.training import command
from torchmem.training.config import compose
from torchmem.training.tap_writer import TapWriter
from torchmem.training.typed import ConfigError


def test_collecting_changes_nothing_of_the_run_and_may_begin_on_resume(tmp_path, straight):
    collect = ("log.collect=[memory,dynamics.p*,imagined.behaviour.value]", "log.collect_every=2")
    folder = tmp_path / "run"
    assert command.main(tiny.words(folder, steps=40)) == 0 and not (folder / "taps").exists()
    assert command.main(tiny.words(folder, *collect)) == 0
    assert tiny.outcome(folder) == straight
    files = sorted((folder / "taps").iterdir())
    assert [file.name for file in files] == [f"{number:012d}.npz" for number in (10, 12, 14)]
    first, last = (dict(np.load(file)) for file in (files[0], files[-1]))
    assert first["memory"].shape == (4, 4, 32) and first["dynamics.posterior.norm"].shape == (4, 4, 8)
    assert first["imagined.behaviour.value"].shape == (4, 4, 3 + 1, 21)  # the start and three steps
    assert first["batch/action"].shape[:2] == first["batch/is_first"].shape == (4, 4)
    assert first["batch/is_first"].dtype == bool and first["batch/reward"].dtype == np.float32
    assert not np.array_equal(first["memory"], last["memory"])


@pytest.mark.parametrize(
    ("sites", "answer"),
    [("dynamics.detr", "nearest: dynamics.deter"), ("behaviour.policy.mlp", "the loss does not compute")],
)
def test_what_cannot_be_collected_is_refused_before_anything_runs(tmp_path, capfd, sites: str, answer: str):
    assert command.main(tiny.words(tmp_path / "run", f"log.collect=[{sites}]")) != 0
    said = "".join(capfd.readouterr())
    assert answer in said and "Traceback" not in said


def test_ppo_refuses_instead_of_writing_nothing():
    with pytest.raises(ConfigError, match=r"log\.collect is not offered for agent=ppo.*torchmem record"):
        compose(["agent=ppo", "env=dummy", "log.collect=[memory]"])


def test_half_precision_is_written_as_float32_and_the_context_is_left_out(tmp_path):
    writer = TapWriter(tmp_path / "taps", 2, ["reward"])
    taps = {"memory": torch.full((1, 2, 3), 1.5, dtype=torch.bfloat16, requires_grad=True)}
    assert writer.push(1, taps, {}) is None and not (tmp_path / "taps").exists()
    file = writer.push(2, taps, {"reward": torch.arange(3.0).unsqueeze(0)})
    found = np.load(file)
    assert found["memory"].dtype == np.float32 and (found["memory"] == 1.5).all()
    assert found["batch/reward"].tolist() == [[1.0, 2.0]]


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"could not write .*000000000001\.npz"):
        TapWriter(tmp_path, 1, []).push(1, {}, {})
    assert not [*tmp_path.iterdir()]
