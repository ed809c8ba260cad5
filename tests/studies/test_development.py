"""The development study on the ladder of a small agent, and what its numbers mean by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.studies.cloned import cloned
from torchmem import cli
from torchmem.models.checkpoint import save_agent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.result import Provenance, load_result
from torchmem.studies.development import find_ladder, weight_dynamics
from torchmem.studies.development_result import DevelopmentResult
from torchmem.surgery.weight_edit import weights_hash
from torchmem.surgery.weight_mask import WeightMask

RUNGS = (0, 40, 100, 150)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("development")
    final = cloned(keep=RUNGS)
    for step, state in final.ladder.items():
        young = PPOAgent(final.spec, final.config)
        young.load_state_dict(state)
        save_agent(young, folder / "run" / "ladder" / str(step))
    save_agent(final, folder / "agent")
    own = {n: p.detach() for n, p in final.named_parameters() if p.dim() == 2 and not n.startswith("critic")}
    masks = {n: w.abs() > 0.05 for n, w in own.items()}
    WeightMask(masks, base=weights_hash(final)).save(folder / "circuit.safetensors")
    return folder


def test_the_ladder_is_judged(run):
    words = ["study", "development", str(run / "agent"), "--circuit", str(run / "circuit.safetensors"),
             "--ladder", str(run / "run"), "--out", str(run / "out"), "--episodes", "60", "--steps", "14",
             "--fits", "0"]  # fmt: skip
    assert cli.main(words) == 0
    result = load_result(run / "out" / "development")
    assert result.steps.tolist() == list(RUNGS)
    whole, late = result.rates("unmasked")[:, 0], result.rates("circuit")[:, 0]
    assert whole[0] < 0.1 and whole[-1] == 1.0 and late[-1] >= 0.9 and result.steps_to("unmasked") in RUNGS
    assert result.rates("random")[:, 0].max() < 0.7
    assert result.lottery["untrained weights"] < 0.7 and result.lottery["shuffled weights"] < 0.9  # four episodes
    near = result.dynamics["cosine to final inside"]
    assert (np.diff(near) > 0).all() and near[-1] <= 1
    assert result.dynamics["other sign inside"][0] > result.dynamics["other sign inside"][-1]
    assert (run / "out" / "development.csv").read_text().count("\n") == 5


def test_a_folder_without_a_ladder_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"save\.ladder=true"):
        find_ladder(tmp_path)


def test_gains_by_hand():
    n = 100
    result = DevelopmentResult(
        episodes=n, kept=5, steps=np.array([1, 2, 3]), lost={}, dynamics={}, lottery={}, fitted={},
        hits={"unmasked": np.array([50, 70, 95]), "circuit": np.array([60, 95, 95]), "random 0": np.array([10, 10, 10]),
              "random 1": np.array([30, 10, 10])},
        matrix=np.zeros((0, 0)), provenance=Provenance.here(),
    )  # fmt: skip
    assert result.young.tolist() == [False, True, False] and result.clear.tolist() == [False, True, False]
    assert result.gain()[:, 0] == pytest.approx([0.1, 0.25, 0.0])
    assert result.rates("random")[0, 0] == 0.2 and result._counted("random")[1] == 200
    low, high = result.gain()[1, 1:]
    assert 0.14 < low < 0.16 and 0.34 < high < 0.36  # Newcombe, by hand: 0.150 and 0.349
    assert result.steps_to("circuit") == 2 and result.steps_to("unmasked") == 3
    assert dataclasses.replace(result, hits={**result.hits, "circuit": np.array([90, 70, 95])}).steps_to("circuit") == 3


def test_weight_dynamics_by_hand():
    masks = {"w": torch.tensor([True, True, False])}
    ladder = [{"w": torch.tensor([0.0, 0.0, 1.0])}, {"w": torch.tensor([3.0, -4.0, 1.0])}]
    found = weight_dynamics(ladder, {"w": torch.tensor([3.0, 4.0, -1.0])}, masks)
    assert found["rms inside"].tolist() == pytest.approx([0, 12.5**0.5])
    assert found["cosine to final inside"].tolist() == pytest.approx([0, -7 / 25])
    assert found["other sign inside"].tolist() == [0, 0.5] and found["other sign outside"].tolist() == [1, 1]
    assert found["share of the update inside"].tolist() == pytest.approx([0, 1])
