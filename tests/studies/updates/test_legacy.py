"""Old recorded runs: files that agree are read, others refused; the recorded means come out again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tests.fixtures import UPDATES, needs_updates
from torchmem.result import load_result
from torchmem.studies.updates.legacy import WEIGHTS, LegacyRunError, import_run
from torchmem.studies.updates.legacy_replay import replay


@pytest.fixture(scope="module")
def folder():
    return UPDATES[0].parent


@needs_updates
def test_the_files_of_a_recorded_run_agree(folder):
    run = import_run(folder)
    table = json.loads((folder / "updates.json").read_text())
    theirs = torch.tensor(table["action_net.weight"], dtype=torch.float64)
    assert (run.update.value("actor.out.action.weight") - theirs).abs().max() <= 1e-7
    assert len(run.update.names) == len(table)
    sub = (-run.update).apply(run.agents["pre_update"])
    for name, value in run.agents["sub_update"].named_parameters():
        assert (sub[name] - value).abs().max() <= 1e-6
    means = run.recorded_means()
    assert means["init"] == pytest.approx((-2.9328, -0.0278), abs=5e-5)
    assert means["salvage"] == pytest.approx((-0.1925, -0.1844), abs=5e-5)


@pytest.mark.slow
@needs_updates
def test_the_recorded_means_come_out_again(folder, tmp_path):
    """Bar: fuel within +-0.006 and totals, with the leak, within +-0.05 (the untrained policy: its sampling error).

    Without the leak the totals are off by far more than that.
    """
    found = replay(import_run(folder), steps=20_000, legacy_shaping_leak=True)
    assert (found.steps >= 20_000).all() and found.phases == WEIGHTS
    off = np.abs(found.mean - found.recorded)
    assert (off[:, 1] <= 0.006).all(), found.summary()
    assert off[0, 0] <= 3 * np.sqrt(2) * found.error[0, 0], found.summary()
    assert (off[1:, 0] <= 0.05).all(), found.summary()
    assert (np.abs(found.plain - found.recorded[:, 0])[1:] >= 0.1).all(), found.summary()
    assert load_result(found.save(tmp_path / "replay")) == found


@needs_updates
@pytest.mark.parametrize(("file", "text"), [("updates.json", "updates.json"), ("init_weights.json", "init_weights")])
def test_files_that_contradict_each_other_are_refused(folder, tmp_path, file, text):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run").chmod(0o755)
    changed = json.loads((folder / file).read_text())
    changed["value_net.bias"] = [changed["value_net.bias"][0] + 1e-3]
    (tmp_path / "run" / file).chmod(0o644)
    (tmp_path / "run" / file).write_text(json.dumps(changed))
    with pytest.raises(LegacyRunError, match=text):
        import_run(tmp_path / "run")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(LegacyRunError, match=r"metadata\.json is missing"):
        import_run(tmp_path)
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(LegacyRunError, match="lacks FIRST_WRAPPER"):
        import_run(tmp_path)
