"""`torchmem record RUN --env crafter --sites 'encoder.* ...'` for every agent and every way to keep what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.envs.test_crafter_truth import AGENTS
from torchmem.cli import main
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.recording import Recording
from torchmem.surgery.model import Model, untrained
from torchmem.surgery.record import record

WORLD = {"area": 16, "length": 12, "fixed_seed": 1}
SITES = {
    "dreamer": "encoder.* dynamics.* actor.* critic.*", "r2i": "encoder.* dynamics.* actor.* critic.*",
    "ppo": "encoder.* core.* actor* critic*",
}  # fmt: skip


def make(kind: str):
    torch.manual_seed(0)
    return AGENTS[kind](env_spec("crafter", **WORLD))


@pytest.mark.parametrize("kind", AGENTS)
def test_the_command_records_every_layer_pooled_and_in_bfloat16(kind, tmp_path, capsys):
    save_agent(make(kind), tmp_path / "agent")
    words = ["record", str(tmp_path / "agent"), "--env", "crafter", "--env-kwargs", '{"area": 16, "length": 12}']
    words += ["--episodes", "3", "--sites", SITES[kind]]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(tmp_path / "small"), "--pooling", "mean", "--dtype", "bfloat16"]) == 0
    whole, small = Recording(tmp_path / "whole"), Recording(tmp_path / "small")
    maps = [name for name, column in whole.activations.items() if column.ndim == 4]
    assert maps and list(whole.activations) == list(small.activations)
    for name in maps:
        mean = whole.activations[name][:].mean((1, 2))
        np.testing.assert_allclose(small.activations[name][:], mean, rtol=2**-7, atol=1e-5)
    for name in ("pos", "facing", "heading", "materials", "world", "health", "achievements", "obs.image", "value"):
        assert len(whole.covariates[name]) == whole.steps
    assert small.covariates["pos"][0].tolist() == [8, 8] and whole.covariates["materials"].shape[1:] == (16, 16)
    capsys.readouterr()


def test_untrained_weights_are_others_and_say_so(tmp_path, capsys):
    agent = make("ppo")
    save_agent(agent, tmp_path / "agent")
    words = ["record", str(tmp_path / "agent"), "--sites", "memory", "--episodes", "2"]
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    assert main([*words, "--untrained", "--out", str(tmp_path / "fresh")]) == 0
    own, fresh = Recording(tmp_path / "own"), Recording(tmp_path / "fresh")
    assert not own.provenance.caveats and "untrained weights (seed 0)" in fresh.provenance.caveats[0]
    assert own.provenance.weights != fresh.provenance.weights
    before = torch.get_rng_state()
    again = record(untrained(Model(agent)), sites="memory", episodes=2)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(again.activations["memory"][:], fresh.activations["memory"][:])
    capsys.readouterr()


def test_greedy_and_sampled_play_differ_and_workers_do_not():
    model = Model(make("dreamer"))
    sampled = record(model, sites="dynamics.deter", episodes=3)
    greedy = record(model, sites="dynamics.deter", episodes=3, greedy=True)
    acts = greedy.covariates["action"][:][~greedy.covariates["is_last"][:]]
    best = greedy.covariates["logits.action"][:].argmax(-1)[~greedy.covariates["is_last"][:]]
    np.testing.assert_array_equal(acts, best)
    assert len(np.unique(sampled.covariates["action"][:])) > len(np.unique(acts))
    apart = record(model, sites="dynamics.deter", episodes=3, workers=2)
    np.testing.assert_array_equal(apart.covariates["obs.image"][:], sampled.covariates["obs.image"][:])


def test_sites_of_heads_take_their_dtype():
    """They are heard in blocks of steps, apart from the others."""
    agent = make("dreamer")
    with torch.no_grad():
        for parameter in agent.parameters():  # the critic starts at zero
            parameter += 0.1 * torch.randn_like(parameter)
    model = Model(agent)
    given = {"sites": "critic.mlp memory", "episodes": 3, "envs": 2, "seed": 3}
    half = record(model, **given, dtype="bfloat16").activations["critic.mlp"][:]
    exact = record(model, **given).activations["critic.mlp"][:]
    np.testing.assert_allclose(half, exact, rtol=2**-8, atol=1e-30)
    assert not np.array_equal(half, exact)
    column = record(model, **given).activations["memory"]  # outlives its recording, which lies in a temporary folder
    assert np.abs(column[:]).max() > 0


def test_wrong_sites_are_named():
    with pytest.raises(ValueError, match=r"no site matches 'dynamics\.\*'"):
        record(Model(make("ppo")), sites="encoder.* dynamics.*", episodes=1)
