"""Crafter against the package and against recordings of vviggyy/dreamerv3f, frame by frame.

Numbers: spec of the spatial lab, sections 2 and 11. Its fixture F2 (90 episodes of the run "crafter_debug") is not at
hand; `test_later_episodes_are_the_packages` is the check of the same fact, the world of episode k, on the package.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import crafter
import numpy as np
import pytest

from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem.envs import make_env
from torchmem.envs.crafter import HASH_RANGE, dreamerv3f_seed
from torchmem.envs.vector import VectorEnv

EVAL_SEED, DEBUG_SEED = 790160138, 2723239835  # of env 0, for seeds 42 and 0


def test_seeds_of_dreamerv3f():
    assert dreamerv3f_seed(42) == EVAL_SEED and dreamerv3f_seed(0) == DEBUG_SEED
    assert dreamerv3f_seed(0, 1) != DEBUG_SEED


def test_first_frame_of_the_fixtures_world_is_the_packages():
    """F1's world in stock Crafter; also where the fixtures are missing."""
    world = make_env("crafter", area=32, fixed_seed=EVAL_SEED)
    stock = crafter.Env(area=(32, 32), seed=EVAL_SEED)
    for seed in (0, 9):
        seen, info = world.reset(seed=seed)
        assert info["truth"]["world"] == EVAL_SEED and info["truth"]["pos"].tolist() == [16, 16]
        stock._episode = 0  # what its fixed_seed does
        np.testing.assert_array_equal(seen["image"], stock.reset())


@needs_dreamerv3f
@pytest.mark.parametrize(("number", "as_recorded"), [(1, 54), (2, 200), (3, 199), (4, 139), (5, 174)])
def test_fixture_episodes_are_played_again(number, as_recorded):
    """F1: first frames bit for bit; then image, place and reward, by its actions, until the order of a set in its
    process made a creature go that does not go here (episodes 1, 3 and 4; in 2 and 5 it never mattered).

    Frame 110 (daylight 0.875) differs by one level of grey, from the package's here too.
    """
    from torchmem.models.importers.array_pickle import load_arrays

    episode = load_arrays(DREAMERV3F / f"episode_{number:03d}.pkl")
    world = make_env("crafter", area=32, fixed_seed=EVAL_SEED)
    seen, _ = world.reset(seed=number)
    np.testing.assert_array_equal(seen["image"], episode["image"][0])
    for step, action in enumerate(episode["action"][:as_recorded], 1):
        seen, reward, *_, info = world.step(int(action))
        off = np.abs(seen["image"].astype(int) - episode["image"][step]).max()
        assert off <= (step == 110), f"step {step}"
        np.testing.assert_array_equal(info["truth"]["pos"], episode["player_pos"][step])
        assert reward == pytest.approx(episode["reward"][step])
    assert as_recorded == len(episode["action"]) - 1 or number in (1, 3, 4)


def test_later_episodes_are_the_packages():
    """In place of F2: without fixed_seed, episode k of that program is the k-th reset of the package."""
    world, stock = make_env("crafter"), crafter.Env(seed=DEBUG_SEED)
    firsts = [stock.reset() for _ in range(3)]
    for k, first in enumerate(firsts, 1):
        seen, info = world.reset(seed=0, options={"package": [DEBUG_SEED, k]})
        np.testing.assert_array_equal(seen["image"], first)
        assert info["truth"]["world"] == (DEBUG_SEED if k == 1 else hash((DEBUG_SEED, k)) % HASH_RANGE)
    with pytest.raises(ValueError, match=r"package=\[seed, episode from 1\]"):
        world.reset(seed=0, options={"package": [1, 0]})


def test_a_world_of_the_package_is_saved_with_its_episode():
    world = make_env("crafter", area=32)
    world.reset(seed=0, options={"package": [DEBUG_SEED, 2]})
    world.step(1)
    state, after = world.get_state(), world.step(3)
    other = make_env("crafter", area=32)
    other.set_state(state)
    np.testing.assert_array_equal(other.step(3)[0]["image"], after[0]["image"])


PLAYS = (
    {},
    {"area": 32, "egocentric_view": 7, "random_spawn": True, "night_noise": "own", "fixed_layout": 3},
)
STEPS = 2000


def played(kwargs: dict, steps: int = STEPS) -> str:
    """The hash of all that is seen and true in so many steps of two copies."""
    total, rng = hashlib.sha256(), np.random.default_rng(7)
    with VectorEnv("crafter", kwargs, 2, split="eval", seed=3) as worlds:
        for _ in range(steps // 2):
            action = rng.choice(6, 2, p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
            for step in worlds.step({"action": action}):
                for key in sorted(step):
                    total.update(np.ascontiguousarray(step[key]).tobytes())
    return total.hexdigest()


def test_two_processes_see_the_same_for_2000_steps():
    """With mobs; and seen by the player, from random places. The other process orders its sets otherwise."""
    lines = "from tests.envs.test_crafter_oracles import PLAYS, played; print(*map(played, PLAYS))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with subprocess.Popen(
        [sys.executable, "-c", lines], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        mine = [played(kwargs) for kwargs in PLAYS]
        told, _ = other.communicate(timeout=300)
    assert told.split() == mine
    assert played(PLAYS[1], 20) != played({**PLAYS[1], "random_spawn": False}, 20)
