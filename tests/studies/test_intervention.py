"""The intervention study on a hand-built agent: what it must find is known (circuits spec 14.8)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.studies.scripted import READ, UNREAD, ScriptedAgent
from tests.surgery.conftest import dreamer
from torchmem.result import load_result
from torchmem.studies.cue_runs import make_pairs, play_runs
from torchmem.studies.folder import StudyError
from torchmem.studies.intervention import study_intervention
from torchmem.studies.interventions import Scene, halves
from torchmem.studies.moments import Moment
from torchmem.studies.unit_ranks import auc, d_prime, order_of, rank_units
from torchmem.surgery.items import TraceError
from torchmem.surgery.model import Model

PAIRS = 40


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(ScriptedAgent())


@pytest.fixture(scope="module")
def pairs(model):
    return make_pairs(model, PAIRS, steps=30)


@pytest.fixture(scope="module")
def scenes(model, pairs):
    return [Scene.at(model, "memory", pairs, rows, pairs.moment[rows]) for rows in halves(pairs)]


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, study_intervention(model, folder, pairs=PAIRS, steps=30)


def test_pairs_differ_in_the_cue_alone(model, pairs):
    assert (pairs.base.outcome == 1).all() and pairs.useful.all() and not pairs.unlike.any()
    base, source = pairs.base, pairs.source
    assert (base.kinds != source.kinds).all()
    pose = [runs.truth["agent_pos"] if "agent_pos" in runs.truth else runs.truth["pos"] for runs in (base, source)]
    assert torch.equal(pose[0][base.within], pose[1][base.within])
    hidden = base.within & ~base.truth["cue_visible"].bool()
    assert torch.equal(base.data["view"][hidden], source.data["view"][hidden])
    shown = base.within & base.truth["cue_visible"].bool()
    assert (base.data["view"][shown] != source.data["view"][shown]).any(-1).all()
    for row in range(PAIRS):  # t*: neither in sight, and a choice at the next step
        t = int(pairs.moment[row])
        now, then = base.truth["choice_visible"][row, t], base.truth["choice_visible"][row, t + 1]
        assert not base.truth["cue_visible"][row, t] and not now and then


def test_going_on_from_the_middle_is_what_happened(model, pairs):
    """Every step of the run from any moment: same end, after as many steps."""
    base = pairs.base
    for start in (0, 2, 4):
        moment = Moment(base, torch.arange(PAIRS), torch.full((PAIRS,), start))
        (ended,) = moment.play(model, [{}], steps=30)
        assert torch.equal(ended.outcome, base.outcome) and torch.equal(ended.steps, base.last - start)
        logits = moment.force(model, [{}], steps=3)[0]
        out = model.unroll(base.sequence(model.agent), noise="mode")
        torch.testing.assert_close(logits, out.policy["action"][0][:, start : start + 3])


def test_only_the_changed_rows_change(model, scenes):
    """Changes share a pass; each must act on its own copy."""
    _, test = scenes
    swap = {"memory": lambda there, step: test.there}
    alone = test.base.play(model, [swap], steps=test.patience)[0]
    first, second, third = test.base.play(model, [{}, swap, {}], steps=test.patience)
    assert torch.equal(second.state, alone.state)
    assert torch.equal(first.state, third.state) and not (first.state == second.state).any()


def test_ends_of_the_normalised_metric(model, scenes):
    _, test = scenes
    assert test.decision.found.all()
    for values, wanted in ((test.here, 0.0), (test.there, 1.0)):
        moved, whole = test.decision.moved(
            test.base.force(model, [{"memory": lambda there, step, values=values: values}], steps=3)[0]
        )
        assert moved.mean() / whole.mean() == pytest.approx(wanted, abs=1e-6)


def test_integrated_gradients_add_up(model, scenes):
    fit, _ = scenes
    scores = rank_units(model, "memory", fit.base, fit.source, fit.decision, points=32)
    assert scores["integrated"].sum() == pytest.approx(1.0, abs=0.02)
    assert scores["exact"][list(READ)] == pytest.approx([0.7, 0.3], abs=0.02)
    others = [u for u in range(8) if u not in READ]
    assert np.abs(scores["exact"][others]).max() < 1e-6 and np.abs(scores["integrated"][others]).max() < 1e-6
    assert set(order_of(scores["exact"])[:2]) == set(READ)
    assert set(order_of(scores["d_prime"])[:3]) == {*READ, UNREAD}  # d' cannot tell what is read


def test_swaps_and_controls(study):
    _, parts = study
    rows = parts["interventions"].rows
    rate = {name: parts["interventions"].rate(name)[0] for name in rows}
    for name in ("swap", "whole state", "class mean", "shift by class means", "swap in mean difference"):
        assert rate[name] == 1.0, name
    for name in ("same cue", "unchanged"):
        assert rate[name] == 0.0 and rows[name]["kept"] == rows[name]["episodes"], name
    assert rows["swap"]["moved"] == pytest.approx(1, abs=1e-5) and rows["unchanged"]["moved"] == 0
    assert rows["swap"]["kl_source"] < 1e-6 < rows["unchanged"]["kl_source"]
    assert rows["unchanged"]["kl_base"] < 1e-6 and rows["unchanged"]["extra"] == 0
    assert rate["swap in 1 pair directions"] == 1.0 and rows["zero"]["flipped"] < rows["zero"]["episodes"]


def test_units_and_sparsity(study):
    _, parts = study
    curves, held = parts["units"], parts["sparsity"]
    assert curves.k90["exact"] == curves.k90["integrated"] == 1  # 0.7 of the preference turns it
    assert curves.k90["random"] > 1 and curves.flips["worst"][2] == 0  # 4 worst of 8
    assert curves.moved["exact"][0] == pytest.approx(0.7, abs=0.02)
    assert set(np.flatnonzero(held.held)) == {*READ, UNREAD}
    assert held.measures["participation ratio"][0] == pytest.approx(3, abs=0.1)
    assert (held.lasts[[*READ, UNREAD]] == len(held.over_time)).all()


def test_the_folder_is_complete_and_goes_on(model, study, monkeypatch):
    folder, parts = study
    for name in parts:
        assert load_result(folder / name) == parts[name] and (folder / f"{name}.csv").is_file()
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 3 and "same cue" in page
    monkeypatch.setattr("torchmem.studies.intervention.make_pairs", None)  # nothing is played again
    again = study_intervention(model, folder, pairs=PAIRS, steps=30)
    assert again["units"] == parts["units"]
    with pytest.raises(StudyError, match="pairs was 40, is 41"):
        study_intervention(model, folder, pairs=41, steps=30)
    assert json.loads((folder / "study.json").read_text())["pairs"] == 40


def test_an_agent_without_memory_is_refused():
    agent = ScriptedAgent()
    with torch.no_grad():
        agent.read.zero_()
    with pytest.raises(TraceError, match=r"none of \d+ untouched"):
        make_pairs(Model(agent), 8, steps=8)
    with pytest.raises(TraceError, match="no cue"):
        make_pairs(Model(dreamer()), 8)


def test_scores_of_units_by_hand():
    kinds = torch.tensor([0, 0, 0, 1, 1, 1])
    values = torch.tensor([[0.0, 1, 5], [1, 2, 5], [2, 3, 5], [4, 1, 5], [5, 2, 5], [6, 3, 5]])
    spread = (2 / 3) ** 0.5
    assert d_prime(values, kinds).tolist() == pytest.approx([4 / spread, 0, 0])
    assert auc(values, kinds).tolist() == pytest.approx([1, 0, 0])


def test_forced_runs_take_the_given_actions(model, pairs):
    again = play_runs(model, pairs.cues, pairs.base.kinds.tolist(), steps=30, seed=0, forced=pairs.base.actions)
    assert torch.equal(again.data["view"][again.within], pairs.base.data["view"][pairs.base.within])
    assert torch.equal(again.last, pairs.base.last)
