"""The circuit and editing studies end to end, on a small agent in a real world."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.studies.cloned import cloned
from tests.studies.scripted import ScriptedAgent
from torchmem import cli
from torchmem.models.checkpoint import load, save_agent
from torchmem.result import load_result
from torchmem.studies.behaviour_edits import EDITS, EditSet, edits_of
from torchmem.studies.circuit_anatomy import anatomy, degrees
from torchmem.studies.circuits import chosen, other_worlds, shuffled, untrained
from torchmem.studies.mask_play import full_play, play_score
from torchmem.surgery.model import Model
from torchmem.surgery.weight_mask import WeightMask

QUICK = ["--alphas", "3e-3", "1", "--seeds", "2", "--rows", "32", "--episodes", "60", "--steps", "14",
         "--fit-steps", "80", "--rate", "0.15", "--singles", "5"]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    found = Model(cloned())
    assert play_score(found, episodes=100, steps=24)["score"] == 1.0
    return found


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuits")
    save_agent(cloned(), folder / "agent")
    assert cli.main(["study", "circuits", str(folder / "agent"), "--out", str(folder / "out"), *QUICK]) == 0
    return folder


def test_the_circuit_stands_beside_its_controls(run):
    result = load_result(run / "out" / "circuit")
    rows = result.rows
    assert rows["full"]["score"] == 1.0 and rows["circuit"]["score"] >= 0.98
    assert result.kept < 0.5 * result.sizes["maskable"]
    assert rows["complement"]["kept"] + result.kept == rows["full"]["kept"]
    for name in ("magnitude", "attribution", "random 0", "untrained", "shuffled", "shuffled, best of this size"):
        assert rows[name].keys() == rows["full"].keys(), name  # success, lost, correct in every row
    assert rows["magnitude"]["kept"] == rows["untrained, highest of this size"]["kept"] == result.kept
    assert result.alpha == 3e-3 and result.front["1"][1] < 0.6  # too dear a price leaves nothing that works
    searches = [load_result(run / "out" / f"search_{alpha}").seconds for alpha in ("0.003", "1")]
    assert min(searches) > 0 and result.minutes == pytest.approx(sum(searches) / 120)  # also when gone on with later
    assert result.stability["iou"] > 2 * result.stability["chance"]
    assert result.sizes["maskable"] < result.sizes["acting path"] < result.sizes["agent"]
    assert set(result.anatomy) >= {"reset, input", "candidate, recurrent"}
    kept = sum(k for part, (k, _) in result.anatomy.items())
    assert kept == result.roles["core"][0]  # every weight of the core is of one gate
    assert result.elsewhere.keys() == {"size 9", "size 11"} and len(result.minimality) == 5
    assert (run / "out" / "circuit.csv").read_text().startswith("mask,kept,score,low,high,lost,correct,return,starts")
    assert (run / "out" / "report.html").read_text().count("<img") >= 5


def test_the_saved_circuit_acts_as_reported(run):
    model = Model(load(run / "agent"))
    mask = WeightMask.load(run / "out" / "circuit.safetensors", model.agent)
    with model.edited([mask]):
        told = play_score(model, episodes=60, steps=14, seed=2_000)
    row = load_result(run / "out" / "circuit").rows["circuit"]
    assert {k: told[k] for k in told} == {k: row[k] for k in told}


def test_finished_searches_are_not_done_again(run, monkeypatch):
    monkeypatch.setattr("torchmem.studies.circuits.fit_mask", None)
    assert cli.main(["study", "circuits", str(run / "agent"), "--out", str(run / "out"), *QUICK]) == 0
    assert cli.main(["study", "circuits", str(run / "agent"), "--out", str(run / "out"), *QUICK, "--rows", "9"]) == 2


def test_editing_from_the_command_line(run, capsys):
    circuit = str(run / "out" / "circuit.safetensors")
    words = ["study", "editing", str(run / "agent"), "--out", str(run / "edits"), "--circuit", circuit,
             "--edits", "flip_key_only", "--rates", "2e-2", "--examples", "16", "--kept", "16", "--episodes", "60",
             "--steps", "14", "--most", "100", "--sweep", "8"]  # fmt: skip
    assert cli.main(words) == 0 and "flip_key_only" in capsys.readouterr().out
    rows = load_result(run / "edits" / "flip_key_only").rows
    assert rows["none"]["edit"] == 0.0 and rows["none"]["keep"] == 1.0 and rows["none"]["weights"] == 0
    assert rows["full"]["edit"] >= 0.9 and rows["circuit"]["edit"] >= 0.9 and rows["circuit"]["keep"] >= 0.9
    assert all(row["restored"] == 1.0 for row in rows.values())
    assert rows["random"]["weights"] == rows["sparse"]["weights"] == rows["circuit"]["weights"]
    assert rows["last layer"]["weights"] == 3 * 16 and rows["circuit core"]["weights"] < rows["circuit"]["weights"]
    change = run / "edits" / "changes" / "flip_key_only_circuit.safetensors"
    assert change.is_file()
    assert cli.main([*words[:-2], "--edits", "fly"]) == 2 and "no edit 'fly'" in capsys.readouterr().err


def test_what_an_edit_asks_for():
    """The scripted agent answers the cue: with the edit's own episodes the judge must see exactly that."""
    model = Model(ScriptedAgent())
    for name, wanted, kept in (("anti_match", 0.0, None), ("flip_key_only", 0.0, 1.0), ("always_up", 0.5, None)):
        episodes = EditSet.draw(model.spec, EDITS["minigrid_memory"][name], 64, seed=0)
        told = episodes.judge(model, 24)
        assert told["edit"] == pytest.approx(wanted, abs=0.2) and told["lost"] == 0.0
        assert math.isnan(told["keep"]) if kept is None else told["keep"] == kept
    bed = EditSet.draw(model.spec, EDITS["minigrid_memory"]["anti_match"], 8, seed=0).bed(model, True, 24)
    assert bed is not None and bed.agreement(bed.full) == 1.0
    greedy = bed.full["action"][0].argmax(-1)
    differs = ((greedy != bed.actions["action"]) & (bed.weights > 0)).any(1)
    assert differs.all()  # in each episode something else is asked for, at the choice alone
    assert ((greedy != bed.actions["action"]) & (bed.weights > 0)).sum(1).max() <= 3


def test_edits_of_every_world():
    from torchmem.envs.make import env_spec

    assert set(edits_of(env_spec("minigrid_switching", size=9))) == {"obey_first_cue"}
    assert set(edits_of(env_spec("minigrid_switching", size=9, mode="rule"))) == {"invert_rule"}
    four = env_spec("minigrid_four_room", size=9)
    assert set(edits_of(four)) == {"next_corner"}
    for spec in (env_spec("minigrid_switching", size=9), env_spec("minigrid_switching", size=9, mode="rule"), four):
        (edit,) = edits_of(spec).values()
        episodes = EditSet.draw(spec, edit, 16, seed=0)
        assert episodes.applies.any()
        unlike = [o != w for o, w in zip(episodes.options, episodes.wanted)]
        assert unlike == episodes.applies.tolist()
    with pytest.raises(ValueError, match="no edit for dummy"):
        edits_of(env_spec("dummy"))


def test_episodes_of_a_search_are_balanced_and_whole():
    model = Model(ScriptedAgent())
    batch, counts = full_play(model, 64, steps=40, wander=0.2, seed=1)
    assert batch["is_first"].shape == counts.shape and batch["is_first"][:, 0].all()
    assert counts.sum().item() == pytest.approx(1.0, rel=1e-4)  # half for what comes before a choice is seen
    assert ((counts > 0).sum(1) >= 4).all()
    with torch.no_grad():
        out = model.agent.unroll({"view": batch["view"]}, {}, batch["is_first"], model.initial(len(counts)))
    greedy = out.policy["action"][0].argmax(-1)
    share = ((greedy != batch["action"]) & (counts > 0)).sum() / (counts > 0).sum()
    assert 0.05 < share < 0.25  # of 20 % random actions, one in three is the greedy one


def test_control_networks_have_nothing_of_the_trained_one(model):
    own = dict(model.agent.named_parameters())
    mixed, fresh = shuffled(model, 0), untrained(model, 0)
    for name, p in mixed.agent.named_parameters():
        assert torch.equal(p.flatten().sort().values, own[name].flatten().sort().values), name
    assert play_score(mixed, episodes=50, steps=24)["score"] <= 0.6
    assert play_score(fresh, episodes=50, steps=24)["score"] <= 0.6
    assert torch.equal(dict(fresh.agent.named_parameters())["core.weight_hh"],
                       dict(untrained(model, 0).agent.named_parameters())["core.weight_hh"])  # fmt: skip


def test_the_smallest_good_mask_is_chosen():
    class Found:
        def __init__(self, score: float, kept: int) -> None:
            self.scores, self.kept = {"full": {"score": 1.0}, "circuit": {"score": score}}, kept

    assert chosen({1.0: Found(1.0, 50), 2.0: Found(0.99, 20), 3.0: Found(0.9, 5)}) == 2.0
    assert chosen({1.0: Found(0.7, 50), 2.0: Found(0.8, 20)}) == 2.0
    assert list(other_worlds(cloned().spec)) == ["size 9", "size 11"]


def test_parts_of_a_block_gru():
    mask = np.zeros((2, 6, 5), bool)  # two blocks of 2 units: reset, candidate, update rows each
    mask[0, 2:4] = True
    assert anatomy({"dynamics.core.gates.weight": mask}, 4) == {
        "reset": (0, 20), "candidate": (10, 20), "update": (0, 20)
    }  # fmt: skip
    assert degrees({"w": mask})["w"] == {
        "outputs": 2, "inputs": 5, "per_output": 5.0, "per_input": 2.0, "most_per_output": 5
    }  # fmt: skip
