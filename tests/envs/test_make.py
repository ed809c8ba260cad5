"""Names, ids and arguments; and that nothing heavy is imported for a spec."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import gymnasium
import pytest

import torchmem.envs
from torchmem.envs.make import CONFIGS, IDS, WORLDS, env_spec, make_config, make_env
from torchmem.types import EnvSpec


def test_every_config_field_says_what_it_means():
    assert set(CONFIGS) == set(WORLDS)
    for config in CONFIGS.values():
        for field in dataclasses.fields(config):
            assert field.metadata["help"].strip().endswith("."), (config, field.name)


@pytest.mark.parametrize("name", CONFIGS)
def test_specs_survive_json_and_name_the_world_that_makes_them(name):
    spec = env_spec(name)
    assert spec.name == name
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert env_spec(spec.name, **spec.kwargs) == spec
    assert not set(spec.truth) & set(spec.obs)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("minigrid_memroy", {}, "did you mean 'minigrid_memory'"),
        ("dummy", {"lenght": 3}, "did you mean 'length'"),
        ("minigrid_memory", {"size": 8}, "size must be odd"),
        ("minigrid_memory", {"view": 4}, "view must be one of 3, 5, 7"),
        ("minigrid_memory", {"backend": "jax"}, "backend must be one of minigrid, batched; got 'jax'"),
        ("memory_maze", {"size": 17}, "n_targets must be given for size 17"),
        ("memory_maze", {"control_freq": 3.0}, "control_freq"),
        ("dummy", {"ending": "never"}, "ending must be one of truncated, terminated, both"),
    ],
)
def test_what_is_wrong_is_refused_by_name(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_config(name, **kwargs)


def test_gymnasium_makes_our_worlds():
    torchmem.envs.register()  # again: no complaint
    env = gymnasium.make("torchmem/MemoryS7-v0", view=5)
    assert env.unwrapped.config.size == 7
    assert env.unwrapped.config.view == 5
    assert env.reset(seed=0)[1]["truth"]["pos"].shape == (2,)
    assert set(IDS) <= set(gymnasium.registry)
    assert make_env("torchmem/MemoryS17Random-v0").config.random_length


def test_a_spec_costs_no_simulator():
    code = (
        "import sys, torchmem.envs as e; e.env_spec('memory_maze');"
        "e.env_spec('popgym'); e.env_spec('crafter'); e.env_spec('bsuite_memory_length'); e.env_spec('procgen');"
        "bad = {'torch', 'mujoco', 'dm_control', 'pygame', 'minigrid', 'popgym', 'crafter', 'numba', 'envpool'};"
        "bad &= set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
