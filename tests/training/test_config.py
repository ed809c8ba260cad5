"""The command line is checked word by word, and YAML, dataclasses and parameter table say the same."""

from __future__ import annotations

import json

import pytest

from torchmem.training.config import ConfigError, compose, diff, from_json, options, refuse_changes, sweep, to_json
from torchmem.training.config_help import help_text
from torchmem.training.run_config import RunConfig
from torchmem.training.typed import documented

# Spec section 13, read from the official configs.yaml: deter, hidden, classes, depth, units.
SIZES = {
    "1m": (512, 64, 4, 4, 64),
    "12m": (2048, 256, 16, 16, 256),
    "25m": (3072, 384, 24, 24, 384),
    "50m": (4096, 512, 32, 32, 512),
    "100m": (6144, 768, 48, 48, 768),
    "200m": (8192, 1024, 64, 64, 1024),
    "400m": (12288, 1536, 96, 96, 1536),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_official_ones(size):
    agent = compose([f"size={size}", "env=dummy"]).agent
    assert (agent.deter, agent.hidden, agent.classes, agent.depth, agent.units) == SIZES[size]


def test_every_size_is_listed_in_order():
    assert options("size") == ["small", *SIZES], "small is for ppo"


@pytest.mark.parametrize("preset", options("preset"))
@pytest.mark.parametrize("trainer", options("trainer"))
def test_every_preset_and_trainer_composes(preset, trainer):
    config = compose([f"preset={preset}", f"trainer={trainer}"])
    assert config.groups["preset"] == preset
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("env", options("env"))
def test_every_world_composes(env):
    assert compose([f"env={env}"]).env_name == env


def test_the_command_line_beats_the_preset_and_the_preset_beats_the_size():
    assert compose([]).agent.deter == SIZES["12m"][0]
    assert compose(["preset=laptop"]).agent.deter == SIZES["1m"][0], "a preset may choose the size"
    assert compose(["preset=laptop", "size=25m"]).agent.deter == SIZES["25m"][0], "but gives way to the command line"
    assert compose(["size=25m", "agent.deter=64"]).agent.deter == 64
    assert compose(["agent.deter=64", "size=25m"]).agent.deter == 64, "the order of words does not matter"
    assert compose(["preset=laptop", "agent.lr=7e-5"]).agent.lr == 7e-5


def test_values_arrive_with_their_types():
    config = compose(
        ["steps=1e6", "agent.mults=[1,2]", "env.time_limit=3", "devices=2", "agent.scales.rec=2", "seed=5"]
    )
    assert config.steps == 1_000_000 and isinstance(config.steps, int)
    assert config.agent.mults == [1, 2]
    assert isinstance(config.env.time_limit, float)
    assert config.trainer.devices == 2, "the short spelling of the issue"
    assert isinstance(config.agent.scales.rec, float) and config.agent.scales.rew == 1.0
    assert config.logdir == "runs/dreamer-memory_maze-12m-5"
    assert compose(["logdir=runs/x${seed}", "seed=4"]).logdir == "runs/x4"


WRONG = {
    "agent.lrr=1": "unknown key 'agent.lrr' of DreamerConfig; did you mean 'agent.lr'?",
    "lr=1": "unknown key 'lr'; did you mean 'agent.lr'?",
    "agnt=dreamer": "did you mean 'agent'?",
    "agent.scales.recc=1": "did you mean 'agent.scales.rec'?",
    "env.sizee=9": "did you mean 'env.size'?",
    "hydra.run.dir=x": "unknown key 'hydra'",
    "agent=dreamr": "unknown agent 'dreamr'; did you mean 'dreamer'?",
    "env=memmaze": "did you mean 'memory_maze'?",
    "size=13m": "valid: small, 1m, 12m",
    "agent.lr=fast": "agent.lr: expected float, got 'fast'",
    "agent.lr=null": "agent.lr: expected float, got None",
    "agent.contdisc=1": "agent.contdisc: expected bool",
    "seed=true": "seed: expected int",
    "steps=1.5": "steps: expected int, got 1.5",
    "agent.mults=3": "agent.mults: expected list[int]",
    "agent.mults=[1,x]": "agent.mults[1]: expected int",
    "agent.scales=3": "agent.scales: expected LossScales",
    "compile=of": "expected auto|off|full, got 'of'; did you mean 'off'?",
    "trainer.devices=all": "trainer.devices: expected int or auto",
    "batch=0": "batch must be at least 1",
    "trainer.nodes=0": "trainer: nodes must be at least 1",
    "log.sinks=[tensorbord]": "unknown sinks ['tensorbord']",
    "env.size=8": "env: MemoryMazeConfig.size must be odd",
    "groups.env=dummy": "choose with agent=, env=",
    "agent.name=ppo": "follows agent=",
    "seed=1,2": "add --multirun",
    "+agent.x=1": "write plainly agent.x=value",
    "~agent": "write plainly",
    "seed=${nope}": "could not resolve",
    "no equals": "cannot read 'no equals'",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_refused_by_name(word):
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert WRONG[word] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_for_another_world_says_who_wrote_the_key():
    with pytest.raises(ConfigError, match=r"unknown key 'env\..*' of DummyConfig \(set by .*preset=minigrid_s7"):
        compose(["env=dummy", "preset=minigrid_s7"])


def test_a_sweep_is_a_list_of_checked_runs():
    runs = sweep(["env=dummy", "seed=1,2", "size=1m,12m"])
    assert [(r.seed, r.groups["size"]) for r in runs] == [(1, "1m"), (1, "12m"), (2, "1m"), (2, "12m")]
    assert len({r.logdir for r in runs}) == 4
    assert [r.seed for r in sweep(["env=dummy", "seed=range(1,4)"])] == [1, 2, 3]
    with pytest.raises(ConfigError, match="two runs of this sweep"):
        sweep(["env=dummy", "agent.lr=1e-4,1e-3"])
    with pytest.raises(ConfigError, match="list the values"):
        sweep(["seed=glob(*)"])
    with pytest.raises(ConfigError, match=r"agent\.lrr"):
        sweep(["seed=1,2", "agent.lrr=1"])


def test_changes_on_resume_are_shown_and_allowed_by_name():
    old = compose(["env=dummy", "agent.lr=1e-4"])
    new = compose(["env=dummy", "agent.lr=1e-3", "steps=7", "logdir=elsewhere", "log.every_s=1", "save.keep=3"])
    assert diff(old, new) == ["agent.lr: 0.0001 -> 0.001"], "what changes no number of the run is free"
    with pytest.raises(ConfigError, match=r"agent\.lr: 0\.0001 -> 0\.001") as caught:
        refuse_changes(old, new)
    assert "allow_config_change=[agent.lr]" in str(caught.value)
    for allowed in ("agent.lr", "agent", "all"):
        assert refuse_changes(old, compose(["env=dummy", "agent.lr=1e-3", f"allow_config_change=[{allowed}]"]))
    with pytest.raises(ConfigError):
        refuse_changes(old, compose(["env=dummy", "agent.lr=1e-3", "allow_config_change=[age]"]))
    assert refuse_changes(old, old) == []
    assert any("env" in line for line in diff(old, compose(["env=memory_maze", "agent.lr=1e-4"])))


def test_a_foreign_or_newer_config_json_is_refused():
    with pytest.raises(ConfigError, match=r"not the config\.json"):
        from_json('{"some": 1}')
    tree = json.loads(to_json(compose(["env=dummy"])))
    with pytest.raises(ConfigError, match=r"unknown key 'agent\.added_later'"):
        from_json(json.dumps({**tree, "agent": {**tree["agent"], "added_later": 1}}))


def test_help_shows_every_field_with_its_value_and_sentence():
    config = compose(["preset=laptop"])
    text = help_text(config, width=110)
    rows = [
        *documented(RunConfig),
        *documented(type(config.agent), "agent."),
        *documented(type(config.env), "env."),
    ]
    assert len(rows) > 80
    for name, _, _, sentence in rows:
        assert f" {name}=" in text, name
        assert sentence.endswith("."), f"{name}: one sentence"
    assert f"* agent.lr={config.agent.lr}" in text, "what the preset changed is marked"
    for group in ("agent", "env", "size", "trainer", "preset"):
        assert all(option in text for option in options(group))
    assert max(map(len, text.splitlines())) <= 118
