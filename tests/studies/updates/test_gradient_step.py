"""One gradient step: terms sum to the whole, losses move the modules they should, the step replays and undoes."""

from __future__ import annotations

import pytest
import torch

from tests.studies.updates.test_isolate import CUE
from tests.training.tiny import AGENT, LOOP
from torchmem.result import load_result
from torchmem.studies.updates.branch import begin, merged
from torchmem.studies.updates.gradient_step import TOTAL, isolate_step

DREAM = merged(AGENT, LOOP, "env=dummy env.image=0 env.length=7 replay.capacity=40 ratio=5".split())


@pytest.fixture(scope="module", params=["ppo", "dreamer"])
def taken(request):
    words = CUE if request.param == "ppo" else DREAM
    start = begin(words, 0)
    return request.param, start, isolate_step(start, words)


def test_terms_sum_to_the_total(taken):
    _, _, found = taken
    total = found.terms[TOTAL]
    rest = sum((delta for term, delta in found.terms.items() if term != TOTAL), start=0 * total)
    assert (rest - total).norm() <= 1e-5 * total.norm()
    assert found.shares.along[:-1].sum() == pytest.approx(1, abs=1e-4) and found.shares.along[-1] == pytest.approx(1)


def test_terms_move_what_they_should(taken):
    kind, _, found = taken
    norms = {t: dict(zip(found.shares.modules, row)) for t, row in zip(found.shares.terms, found.shares.norm)}
    if kind == "ppo":
        assert norms["value"]["actor"] == 0 and norms["policy"]["critic"] == 0 and norms["entropy"]["critic"] == 0
        assert norms["value"]["critic"] > 0 and norms["policy"]["core"] > 0 and norms["value"]["core"] > 0
    else:
        assert norms["rew"]["reward"] > 0 and norms["rew"]["decoder"] == 0 and norms["policy"]["reward"] == 0
        assert norms["policy"]["behaviour"] > 0 and norms["con"]["dynamics"] > 0 and norms["policy"]["dynamics"] == 0


def test_the_step_replays_and_undoes(taken, tmp_path):
    _, start, found = taken
    replayed = found.step.apply(start.agent)
    now = dict(found.after.agent.named_parameters())
    assert all(torch.equal(replayed[n], p) for n, p in now.items()) and found.step.norm() > 0
    undone = (-found.step).apply(replayed)
    assert all(torch.equal(undone[n], p) for n, p in start.agent.named_parameters())
    assert found.shares.step_along > 0.05  # downhill, roughly
    assert load_result(found.shares.save(tmp_path / "step")) == found.shares
    assert "of total" in found.shares.summary()
