"""The commands of the spatial lab, one after the other, on recordings of each kind of agent and of imported data."""

from __future__ import annotations

import json

import pytest
import torch

from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem.cli import main
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import new_agent, save_agent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.result import load_result

WORLD = {"size": 7, "max_steps": 30}
TINY = {"stoch": 4, "classes": 4, "units": 8, "depth": 4, "imag_length": 3}
AGENTS = {
    "dreamer": DreamerConfig(deter=16, hidden=8, blocks=2, **TINY),
    "r2i": R2IConfig(deter=12, vector_units=8, head_units=8, ssm=SSMConfig(layers=2, states=8, blocks=2), **TINY),
    "ppo": PPOConfig(units=8, encoder_units=8, head_units=8, image_channels=[4], image_units=8),
}
QUICK = ["--draws", "1", "--folds", "3"]


def told(capsys, *words: str) -> str:
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", AGENTS)
def test_probe_tune_and_dream_on_every_agent(kind: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    agent = new_agent(env_spec("minigrid_memory", **WORLD), AGENTS[kind])
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_agent(agent, "agent")
    layer = "actor.mlp.0" if kind != "ppo" else "memory"
    told(capsys, "record", "agent", "--out", "rec", "--episodes", "8", "--envs", "4", "--sites", "memory", layer)
    assert "tiles visited" in told(capsys, "probe", "rec", "--target", "pos", "--out", "probe", *QUICK)
    for target in ("heading", "cue_type"):
        out = json.loads(told(capsys, "probe", "rec", "--target", target, "--json", *QUICK))
        assert "memory" in out["sites"] and "controls" in out, target
    page = tmp_path / "units.html"
    tuned = told(capsys, "tune", "rec", "--sites", "memory", "--shifts", "39", "--folds", "3", "--page", str(page))
    assert "memory" in tuned and page.stat().st_size > 1000
    words = ["dream", "agent", "--probe", "probe", "--episodes", "4", "--starts", "12", "--horizon", "4"]
    if kind == "ppo":
        assert main(words) == 2
        assert "a ppo agent has no world model, so it cannot dream" in capsys.readouterr().err
        return
    more = ["--actions", "replayed", "--conditions", "A", "D", "other actions", "--out", "dream", "--states", "states"]
    text = told(capsys, *words, *more)
    assert "rotated future" in text and "other actions" in text and "very episodes" not in text
    found, states = load_result("dream"), load_result("states")
    assert found.site in ("memory", layer) and found.conditions == ("A", "D", "other actions", "awake", "real")
    assert states.states[found.site].shape[:2] == (len(states.start), 5)
    assert main([*words, "--recording", "rec", "--warmup", "3"]) == 0
    assert "very episodes" in capsys.readouterr().out, "the probe was fitted to these"


def test_wrong_words_of_dream_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_agent(new_agent(env_spec("minigrid_memory", **WORLD), AGENTS["dreamer"]), "agent")
    told(capsys, "record", "agent", "--out", "rec", "--episodes", "6", "--envs", "3", "--sites", "memory", "encoder")
    told(capsys, "probe", "rec", "--target", "pos", "--sites", "encoder", "--out", "seen", *QUICK)
    told(capsys, "probe", "rec", "--target", "heading", "--sites", "memory", "--out", "heading", *QUICK)
    for words, answer in (
        (["--probe", "seen"], "none runs while this agent dreams"), (["--probe", "heading"], "decodes no position"),
        (["--probe", "nowhere"], "is not a saved result"), (["--probe", "seen", "--site", "encoder"], "while dreaming"),
    ):  # fmt: skip
        assert main(["dream", "agent", "--recording", "rec", *words]) == 2
        assert answer in capsys.readouterr().err


@needs_dreamerv3f
def test_probe_and_tune_on_imported_data_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (2, 3, 5):
        name = f"episode_{number:03}.pkl"
        (tmp_path / name).write_bytes((DREAMERV3F / name).read_bytes())
    told(capsys, "import", "dreamerv3f-episodes", ".", "--out", "rec")
    for words in (["probe", "rec", "--target", "pos", "--sites", "dynamics.stoch", *QUICK],
                  ["probe", "rec", "--target", "reward", "--sites", "dynamics.stoch", *QUICK],
                  ["tune", "rec", "--sites", "dynamics.stoch", "--shifts", "39", "--folds", "3"]):  # fmt: skip
        assert "CAVEAT" in told(capsys, *words), words
