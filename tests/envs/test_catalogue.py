"""The catalogue lists every world from its spec, measures on the spot, and says what is missing."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from torchmem.cli import main
from torchmem.envs import catalogue as module
from torchmem.envs import make
from torchmem.envs.catalogue import Entry, catalogue, steps_per_second, text
from torchmem.envs.configs import DummyConfig
from torchmem.envs.dummy import DummyWorld
from torchmem.envs.make import CONFIGS, IDS, env_spec
from torchmem.types import Space


@pytest.fixture
def no_simulator(monkeypatch):
    """Nobody is started: specs alone."""
    monkeypatch.setattr(module, "fault_of", lambda id_: "")


def entries(*arguments) -> list[Entry]:
    return [entry for block in catalogue(*arguments) for entry in block]


class Slow(DummyWorld):
    """Takes 10 ms for a step."""

    Config = DummyConfig

    def _advance(self, action):
        time.sleep(0.01)
        return super()._advance(action)


@pytest.fixture
def odd_worlds(monkeypatch):
    """A slow world, and one whose simulator is not installed."""
    for name, place in {"slow": f"{__name__}:Slow", "absent": "no_such_simulator.world:World"}.items():
        kind = dataclasses.make_dataclass("Config", [], bases=(DummyConfig,), namespace={"__doc__": f"A {name} world."})
        monkeypatch.setitem(make.CONFIGS, name, kind)
        monkeypatch.setitem(make.WORLDS, name, place)
    monkeypatch.setitem(make.IDS, "torchmem/Absent-v0", ("absent", {}))


def test_every_id_has_a_row_with_all_that_its_spec_says(no_simulator):
    found = entries()
    assert {entry.id for entry in found} >= set(IDS)
    assert {entry.name for entry in found} == set(CONFIGS)
    for entry in found:
        assert not entry.missing and entry.steps_per_s is None, entry
        assert entry.spec == env_spec(entry.id)
        row = json.loads(json.dumps(entry.to_json(), allow_nan=False))
        assert row["truth"] == dict(entry.spec.truth) and set(row["obs"]) == set(entry.spec.obs)
        assert row["chance"] == entry.spec.levels.get("chance") and "steps_per_s" not in row
        assert {**row["levels"], "chance": row["chance"]} == {"chance": None, **entry.spec.levels}
        shown = " ".join(text([entry]).split())
        for key in (*entry.spec.obs, *entry.spec.action, *entry.spec.truth, *entry.spec.levels, entry.id):
            assert key in shown
        assert "steps/s" not in shown


def test_one_name_or_one_id(no_simulator):
    assert [e.id for e in entries("torchmem/MemoryS7-v0")] == ["torchmem/MemoryS7-v0"]
    assert {e.name for e in entries("minigrid_memory")} == {"minigrid_memory"}
    with pytest.raises(ValueError, match="did you mean 'dummy'"):
        catalogue("dumy")


def test_a_missing_simulator_is_a_row(odd_worlds):
    (entry,) = entries("absent", 0.01)
    assert entry.id == "torchmem/Absent-v0" and entry.spec is None and entry.steps_per_s is None
    assert "MISSING here: ModuleNotFoundError: No module named 'no_such_simulator'" in text([entry])
    assert entry.to_json()["missing"].startswith("ModuleNotFoundError")


def test_a_simulator_that_fails_when_it_starts_is_a_row_with_its_spec(monkeypatch):
    class Failing(DummyWorld):
        def __init__(self, config):
            raise OSError("no display\nlibGL is missing")

    monkeypatch.setattr(make, "world_class", lambda name: Failing)
    (entry,) = entries("dummy", 0.01)
    assert entry.missing == "OSError: libGL is missing" and entry.spec is not None and entry.steps_per_s is None


def test_speed_is_measured_here_and_now(odd_worlds):
    """At most 100 steps of 10 ms fit a second, and a fresh world takes no such time."""
    (slow,) = entries("slow", 0.2)
    assert slow.steps_per_s is not None and 20 < slow.steps_per_s <= 100
    assert steps_per_second("torchmem/Dummy-v0", 0.1) > 2 * slow.steps_per_s
    assert " steps/s" in text([slow]) and slow.to_json()["steps_per_s"] == slow.steps_per_s


@pytest.mark.parametrize(("space", "words"), [
    (Space((64, 64, 3), "uint8"), "k uint8 64x64x3"), (Space((), "int64", classes=5), "k 5 choices"),
    (Space((7, 2), "uint8", classes=3), "k 7x2 of 3 choices"), (Space((2,), "float32", low=-1, high=1),
     "k float32 2 in [-1, 1]"), (Space((), "bool"), "k 2 choices"), (Space((3,), "float32"), "k float32 3"),
])  # fmt: skip
def test_a_space_in_words(space, words):
    assert module.space_text("k", space) == words


def test_the_verb(no_simulator, capsys):
    assert main(["envs", "dummy"]) == 0
    shown = capsys.readouterr().out
    assert "torchmem/Dummy-v0" in shown and "truth: time (steps), place (image widths)" in shown
    assert "env.length=20" in shown, "of one world, its arguments"
    assert main(["envs", "torchmem/Dummy-v0", "--json", "--measure", "0.01"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["id"] == "torchmem/Dummy-v0" and row["steps_per_s"] > 0 and row["action"]["action"]["classes"] == 5
