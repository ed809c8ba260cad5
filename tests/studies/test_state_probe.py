"""The status bar is drawn as Crafter draws it, and an agent that looks at one vital is found to do so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torchmem.cli import main
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import new_agent, save_agent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.result import load_result
from torchmem.studies import dream_source
from torchmem.studies.crafter_bar import Bar, changed, draw_vitals
from torchmem.studies.dreams import make_dreams
from torchmem.studies.state_probe import probe_state
from torchmem.surgery.model import load
from torchmem.surgery.record import record

WORLD = {"length": 24}
TINY = {"deter": 16, "hidden": 8, "classes": 4, "depth": 4, "units": 8, "stoch": 4, "imag_length": 3, "blocks": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """(folder of an agent, folder of its recording)."""
    torch.manual_seed(0)
    agent = new_agent(env_spec("crafter", **WORLD), DreamerConfig(**TINY))
    folder = save_agent(agent, tmp_path_factory.mktemp("vitals") / "agent")
    record(load(folder), sites=["memory"], episodes=4, envs=2, out=folder.parent / "rec")
    return folder, folder.parent / "rec"


@pytest.fixture(scope="module")
def rec(home):
    from torchmem.recording import Recording

    return Recording(home[1])


def test_bars_are_those_of_the_game(rec):
    """Pictures of one step with the inventory of another are what the game shows for it."""
    bar = Bar.of(rec)
    pictures, inventory = rec.covariates["obs.image"][:], rec.covariates["inventory"][:]
    assert (bar.top, bar.left, bar.unit) == (49, 0, 7)
    np.testing.assert_array_equal(bar.draw(pictures, inventory), pictures)
    other = np.argmax((inventory != inventory[0]).any(1))
    shown = bar.draw(pictures[:1], inventory[other : other + 1])[0]
    np.testing.assert_array_equal(shown[49:63], pictures[other, 49:63])
    np.testing.assert_array_equal(shown[:49], pictures[0, :49])
    assert changed(inventory[:2], {"food": np.array([0, 5])})[:, 1].tolist() == [0, 5]
    rng = np.random.default_rng(0)
    low = draw_vitals("one_low", 50, rng)
    assert ((low == 9).sum(1) == 3).all() and set(low[low < 9]) == {1, 2}
    assert set(draw_vitals("uniform", 500, rng).reshape(-1)) == set(range(1, 10))


class Planted:
    """Reads the food off the picture: its value is the food, and it eats (action 1) where that is below 4."""

    def __init__(self, rec) -> None:
        self.spec, self.device, self.sites = env_spec("crafter", **WORLD), torch.device("cpu"), {}
        bar, blank = Bar.of(rec), np.zeros((10, 64, 64, 3), np.uint8)
        inventory = changed(np.tile(rec.covariates["inventory"][0], (10, 1)), {"food": np.arange(10)})
        self.where = (slice(bar.top, bar.top + 7), slice(7, 14))  # food is the second item
        self.known = bar.draw(blank, inventory)[(slice(None), *self.where)].reshape(10, -1)

    def initial(self, rows):
        return torch.zeros(rows)

    def policy(self, obs, carry, noise):
        seen = obs["image"].numpy()[(slice(None), *self.where)].reshape(len(carry), -1)
        food = (seen[:, None] == self.known[None]).all(-1).argmax(1)
        return {"action": torch.zeros(len(carry), dtype=torch.int64)}, torch.as_tensor(food, dtype=torch.float32), {}

    def read_out(self, carry):
        logits = torch.full((len(carry), 17), -20.0)
        logits[torch.arange(len(carry)), (carry < 4).long()] = 20.0
        return {"value": carry, "logits.action": logits}


def test_a_planted_eater_is_found_and_the_other_vitals_are_flat(rec, tmp_path):
    agent = Planted(rec)
    model = SimpleNamespace(agent=agent, spec=agent.spec, initial=agent.initial, path=None, edits=[], caveats=("toy",),
                            act=lambda obs, carry: agent.policy(obs, carry, None)[:2])  # fmt: skip
    found = probe_state(model, rec, scenes=6, every=4, levels=(0, 3, 6, 9))
    assert found.value.shape == (6, 4, 4, 4) and found.p.shape == (6, 4, 4, 4, 17)
    np.testing.assert_array_equal(found.profile("food"), np.tile([0, 3, 6, 9], (6, 1)))
    assert found.mean["value"] == {"food": 9, "drink": 0, "energy": 0, "sapling": 0}
    np.testing.assert_allclose(list(found.mean["bits"].values()), [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.chosen("food")[:, :, 1], np.tile([1, 1, 0, 0], (6, 1)), atol=1e-6)
    assert load_result(found.save(tmp_path / "probe")) == found
    assert "sapling (control)" in found.summary() and "CAVEAT: toy" in found.summary()
    names = {path.stem for path in found.save_figures(tmp_path / "figures")}
    assert names == {"value_vs_vitals", "action_probs_vs_vitals", "value_heatmaps", "probe_frames"}


def test_the_command_and_what_an_agent_remembers(home, rec, capsys):
    model = load(home[0])
    blank, history = (probe_state(model, rec, scenes=3, every=4, vitals=("food",), levels=(0, 9), history=way)
                      for way in (False, True))  # fmt: skip
    assert not np.array_equal(blank.p, history.p) and blank.row.tolist() == history.row.tolist()
    words = ["vitals", str(home[1]), "--agent", str(home[0]), "--scenes", "2", "--every", "4", "--vitals", "food"]
    assert main(words) == 0 and "bits of the action" in capsys.readouterr().out
    assert main([*words, "--levels", "12", "3"]) == 2 and "from 0 to 9" in capsys.readouterr().err
    assert main([*words[:-1], "warmth"]) == 2 and "no item 'warmth'" in capsys.readouterr().err
    assert main(["vitals", str(home[1]), "--figures", "x"]) == 2 and "--agent RUN" in capsys.readouterr().err


def test_dreams_from_other_vitals(home, rec, monkeypatch):
    """A': z from the picture with another bar, and the memory as it was, unless it saw other bars all along."""
    shown, plain = [], dream_source.encode

    def spy(agent, obs):
        shown.append(obs["image"].numpy())
        return plain(agent, obs)

    monkeypatch.setattr(dream_source, "encode", spy)
    settings = {"warmup": 4, "starts": 80, "horizon": 2, "modes": True, "sites": "dynamics.deter"}
    for way in ("start", "warmup"):
        batch = make_dreams(load(home[0]), rec, conditions=("A", "A'"), vitals_from=way, rows=10000, **settings)
        real, hungry = (batch.states["dynamics.deter"][batch.condition == c][:, 0] for c in (0, 1))
        assert np.array_equal(real, hungry) == (way == "start")
    rows = rec.episodes["start"][batch.episode] + batch.step
    pictures = rec.covariates["obs.image"][rows[batch.condition == 0]]
    np.testing.assert_array_equal(shown[0][:, :49], pictures[:, :49])
    assert (shown[0][:, 49:] != pictures[:, 49:]).any((1, 2, 3)).mean() > 0.9


def test_recordings_of_other_worlds_are_refused(rec):
    bare = SimpleNamespace(path="r", steps=rec.steps, covariates={"inventory": rec.covariates["inventory"]})
    with pytest.raises(ValueError, match=r"r holds no 'obs\.image'"):
        Bar.of(bare)
    noise = np.random.default_rng(0).integers(0, 255, (rec.steps, 64, 64, 3), np.uint8)
    bare.covariates["obs.image"] = noise
    with pytest.raises(ValueError, match="nowhere to be seen"):
        Bar.of(bare)
