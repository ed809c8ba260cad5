"""patch_paths tells the planted agent's ways apart: the latch at the next step, the answer at this one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.surgery.conftest import sequence_for
from tests.surgery.planted import GO_STEPS, LENGTH, MINUS, PLUS, planted, trials
from tests.surgery.test_every_agent import ppo, r2i
from torchmem.result import load_result
from torchmem.surgery.items import TraceError
from torchmem.surgery.model import Model, UnknownSite
from torchmem.surgery.patch import logit_difference, patch_sweep
from torchmem.surgery.patch_paths import patch_paths

N = 8
METRIC = logit_difference(PLUS, MINUS, slice(-GO_STEPS, None))
READERS = ["cell.recurrent", "actor", "critic"]


def pairs():
    one = torch.ones(N)
    return trials(N, seed=3, cue=one).batch, trials(N, seed=3, cue=-one).batch


@pytest.fixture(scope="module", params=["denoise", "noise"])
def found(request):
    return patch_paths(Model(planted()), *pairs(), METRIC, receivers=READERS, direction=request.param, rows=3 * N)


def test_before_the_answer_all_goes_by_the_recurrence_and_in_the_end_all_by_the_actor(found):
    before, go = np.arange(2, LENGTH - GO_STEPS), np.arange(LENGTH - GO_STEPS, LENGTH)
    np.testing.assert_allclose(found.paths["cell.recurrent"][before], 1, atol=0.03)
    np.testing.assert_allclose(found.paths["actor"][before], 0, atol=1e-6)
    # while it answers, each step's logits are a fourth of the metric, the rest is what is still to come
    np.testing.assert_allclose(found.paths["actor"][go], 1 / GO_STEPS, atol=0.02)
    np.testing.assert_allclose(found.paths["cell.recurrent"][go], [3 / 4, 2 / 4, 1 / 4, 0], atol=0.03)
    assert found.paths["critic"].tolist() == [0] * LENGTH  # the value is no part of the behaviour


def test_the_whole_is_what_patching_gives_and_nothing_goes_past_all_readers(found):
    sweep = patch_sweep(Model(planted()), *pairs(), METRIC, methods=("exact",))
    np.testing.assert_allclose(found.whole, sweep.effects[f"{found.direction}/exact/memory"], atol=1e-6)
    assert found.past.tolist() == [0] * LENGTH
    np.testing.assert_allclose(found.paths["cell.recurrent"] + found.paths["actor"], found.whole, atol=0.03)


def test_a_reader_that_is_left_out_is_what_goes_past():
    found = patch_paths(Model(planted()), *pairs(), METRIC, receivers=["actor"], steps=(5, -1))
    assert found.steps == (5, LENGTH - 1)
    assert found.past[0] == pytest.approx(1, abs=0.03) and found.past[1] == 0
    assert found.paths["actor"][0] == 0 and found.paths["actor"][1] == pytest.approx(1 / GO_STEPS, abs=0.02)


def test_how_many_cells_share_a_pass_changes_nothing_and_a_result_comes_back(found, tmp_path):
    alone = patch_paths(Model(planted()), *pairs(), METRIC, receivers=READERS, direction=found.direction, rows=1)
    for name in READERS:
        np.testing.assert_allclose(alone.paths[name], found.paths[name], atol=1e-6)
    assert load_result(found.save(tmp_path / "paths")) == found
    assert "cell.recurrent: 1.0" in found.summary() and len(found.table()["step"]) == LENGTH


@pytest.mark.parametrize(("make", "readers"), [
    (lambda: ppo("gru", "dummy"), ["core.update", "core.reset", "core.candidate", "actor.mlp.0", "critic.mlp.0"]),
    (lambda: r2i("full"), ["dynamics.stoch", "behaviour.policy.mlp.0", "behaviour.value.mlp.0"]),
])  # fmt: skip
def test_on_agents_every_path_is_between_nothing_and_everything_that_is_patched(make, readers):
    """At the last step only the actor can matter; the metric's own site as a receiver has the whole effect."""
    agent = make()
    model, length = Model(agent), 6
    clean, corrupted = (sequence_for(agent, 4, length, seed) for seed in (0, 1))
    first = torch.zeros(4, length, dtype=torch.bool)
    first[:, 0] = True
    clean["is_first"] = corrupted["is_first"] = first
    corrupted |= {key: clean[key] for key in agent.spec.action}
    metric = logit_difference(0, 1, -1)
    reader = next(name for name in readers if "mlp.0" in name and ("actor" in name or "policy" in name))
    found = patch_paths(model, clean, corrupted, metric, receivers=readers, steps=(2, length - 1))
    assert found.paths[reader][0] == 0  # at step 2 the actor's own answer is not what is measured
    assert found.paths[reader][1] == pytest.approx(found.whole[1], abs=1e-5) and abs(found.whole[1]) > 1e-3
    assert found.past[1] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_a_path_is_told():
    with pytest.raises(TraceError, match="receivers of memory must be other sites"):
        patch_paths(Model(planted()), *pairs(), METRIC, receivers=["memory"])
    with pytest.raises(UnknownSite, match=r"no site 'cell\.recurent'"):
        patch_paths(Model(planted()), *pairs(), METRIC, receivers=["cell.recurent"])
    with pytest.raises(TraceError, match="nothing to patch back"):
        patch_paths(Model(planted(shuffled=True)), *pairs(), METRIC, receivers=["actor"])
