"""Simulated rollouts under an edit: the matched pair of those without."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.simulator import tiny
from tests.training import simulated
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.studies.direction_edits import named_edits
from torchmem.studies.simulate import simulate
from torchmem.surgery.edits import Project
from torchmem.surgery.model import load
from torchmem.surgery.record import record


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    home = tmp_path_factory.mktemp("edited")
    agent = save_agent(tiny.dreamer(env_spec("minigrid_memory", **simulated.WORLD)), home / "agent")
    return agent, record(load(agent), episodes=6, envs=3, out=home / "recording")


def directions(rec):
    from torchmem.analysis.find_directions import find_directions

    return find_directions(rec, "memory", method="pca", count=3, draws=0)


def test_an_edit_changes_what_it_names_and_starts_alike(played, tmp_path):
    agent, rec = played
    found = directions(rec)
    how = {"recording": rec.path, "samples": 4, "horizon": 5, "seed": 2, "allow": True}
    plain = simulate(agent, tmp_path / "plain", **how)
    held = simulate(agent, tmp_path / "held", edits=named_edits(found, [], [], ["1=0.5"]), **how)
    for name in ("from_episode", "from_step"):
        assert np.array_equal(plain.covariates[name][:], held.covariates[name][:])
    first = plain.step == 0
    assert np.array_equal(plain.covariates["obs.view"][:][first], held.covariates["obs.view"][:][first])
    amounts = [found.scores(one.activations["memory"][:])[:, 1] for one in (plain, held)]
    np.testing.assert_allclose(amounts[1], 0.5, atol=1e-4)
    assert np.ptp(amounts[0]) > 1e-2
    assert len(held.provenance.edits) == 1 and not plain.provenance.edits


def test_no_words_no_edits_and_wrong_ones_are_told(played, tmp_path):
    agent, rec = played
    assert named_edits(None, [], [], []) == []
    with pytest.raises(ValueError, match="give the folder that torchmem directions wrote"):
        named_edits(None, [], [1], [])
    with pytest.raises(ValueError, match="edited at the site memory, not at"):
        edit = Project("core", np.eye(3, 16))
        simulate(agent, tmp_path / "no", recording=rec.path, samples=1, edits=[edit], allow=True)
