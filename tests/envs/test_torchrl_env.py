"""Each world is also a TorchRL environment."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from tests.envs.worlds import PROCGEN
from torchmem.envs import make_env
from torchmem.envs.torchrl_env import as_torchrl


@pytest.mark.parametrize(("name", "kwargs"), [
    ("dummy", {}), ("dummy", {"continuous": True}), ("minigrid_memory", {}),
    ("minigrid_memory", {"obs": "symbolic", "direction": True}), ("minigrid_memory", {"obs": "rgb"}),
    *[("popgym", {"task": task}) for task in (
        "repeat_previous", "autoencode", "concentration", "battleship", "noisy_position_only_pendulum")],
    ("bsuite_memory_length", {}), ("bsuite_discounting_chain", {}), ("crafter", {}),
    ("lunar_lander", {}), ("lunar_lander", {"continuous": True}), *PROCGEN])
def test_torchrl_finds_nothing_wrong(name, kwargs):
    check_env_specs(as_torchrl(name, **kwargs))


def test_rollouts_hold_observations_and_no_truth():
    world = make_env("minigrid_memory", max_steps=6)
    env = as_torchrl(world)
    env.set_seed(0)
    steps = env.rollout(20)
    assert steps.shape == (6,)
    assert steps["view"].dtype == torch.float32
    assert not set(world.env_spec.truth) & set(steps.keys())
    assert steps["next", "truncated"][-1].item()
    with pytest.raises(TypeError, match="size"):
        as_torchrl(world, size=7)
