"""Checks of worlds hold on sound ones and find each defect, and nothing but it."""

from __future__ import annotations

import pytest

from tests.envs.worlds import PROCGEN, TwoHands
from tests.verify.broken_worlds import STEPPING, WORLDS, Sound
from torchmem.envs.make import env_spec
from torchmem.envs.vector import WorldFailed
from torchmem.verify import verify_world, worlds_of
from torchmem.verify.report import Check
from torchmem.verify.world import COPIES, fresh, in_sight, world_checks


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def home(world: type) -> str:
    return f"tests.verify.broken_worlds:{world.__name__}"


@pytest.mark.parametrize(("name", "kwargs"), [
    (home(Sound), {}), ("dummy", {"image": 8, "continuous": True, "vary": True, "ending": "both"}),
    ("minigrid_memory", {"size": 7, "max_steps": 11}),
    ("minigrid_memory", {"size": 7, "max_steps": 11, "obs": "symbolic", "direction": True, "backend": "batched"}),
    ("bsuite_discounting_chain", {"horizon": 50}), ("tests.verify.test_verify_world:Hands", {}),
    *PROCGEN, *[(name, {**kwargs, "backend": "pool"}) for name, kwargs in PROCGEN],
])  # fmt: skip
def test_sound_worlds_pass(name, kwargs):
    checks = verify_world(name, kwargs)
    assert not failed(checks), [(c.name, c.detail) for c in checks if not c.ok]
    assert len(checks) == 12


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.__name__)
def test_each_defect_of_a_world_is_found_by_its_own_checks(world):
    """Leaked keys may also stop the play itself: then nothing else can be looked at, which is a failure too."""
    checks = verify_world(home(world))
    found = failed(checks)
    assert found and found <= WORLDS[world], found
    if world.__name__ not in ("LeaksLater", "DrawsFromOutside"):
        assert found == WORLDS[world]
    assert all(check.detail for check in checks if not check.ok), "each failure says what broke it"


@pytest.mark.parametrize("worlds", STEPPING, ids=lambda w: w.__name__)
def test_each_defect_of_stepping_is_found_by_its_own_checks(worlds):
    rows = fresh(worlds, 41, seed=0)
    spec = env_spec("dummy", length=5, image=0)
    checks = world_checks("dummy", spec.kwargs, worlds, rows, spec)
    assert failed(checks) == STEPPING[worlds], [(c.name, c.detail) for c in checks if not c.ok]


def test_what_is_in_sight_is_named():
    """The dummy world shows its `place`, which it also tells as truth; MiniGrid shows nothing of the kind."""
    spec = env_spec("dummy", image=0)
    assert in_sight(spec, fresh(worlds_of("dummy", {"image": 0}), 30, seed=0)) == (1, "vector[1] is place")
    kwargs = {"size": 7}
    rows = fresh(worlds_of("minigrid_memory", kwargs), 30, seed=0)
    assert in_sight(env_spec("minigrid_memory", **kwargs), rows) == (0, "")
    look = next(c for c in verify_world("dummy", {"image": 0}) if c.name == "truth in sight")
    assert look.ok and look.value == 1, "told, not refused: a world may mean it"


def test_a_world_that_cannot_be_made_is_an_error():
    with pytest.raises(WorldFailed, match="no worlds today"):
        verify_world("tests.verify.test_verify_world:Absent")


class Hands(TwoHands):
    """Two action keys, and nothing to draw."""

    DRAWS = False


class Absent(Sound):
    def __init__(self, config):
        raise RuntimeError("no worlds today")


def test_rows_cover_every_copy():
    rows = fresh(worlds_of("dummy", {"image": 0, "length": 3}), 60, seed=0, ends=2)
    assert len(rows) == 41 and rows[0].data["is_first"].shape == (COPIES,)
    assert rows[0].action is None and rows[1].action is not None
