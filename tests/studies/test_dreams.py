"""Dreams of tiny agents: nothing after the start leaks in, seeds are what they say, wrong wishes are named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.surgery.conftest import dreamer
from tests.surgery.test_every_agent import ppo, r2i
from torchmem.analysis._trajectory_world import BLANK, COLOURS
from torchmem.models.gru_dreamer.agent import GRUDreamerAgent
from torchmem.models.gru_dreamer.config import GRUDreamerConfig
from torchmem.models.synthetic import random_values
from torchmem.recording.store import EPISODE
from torchmem.result import Provenance
from torchmem.studies.dream_command import picture_of
from torchmem.studies.dream_seeds import noise
from torchmem.studies.dreams import dream_batches, dreamable, make_dreams
from torchmem.surgery.edits import Ablate
from torchmem.surgery.model import Model

LENGTH, EPISODES, BEGIN, H = 14, 3, 4, 5


def gru_dreamer() -> GRUDreamerAgent:
    torch.manual_seed(3)
    sizes = {"deter": 16, "hidden": 12, "stoch": 4, "classes": 4, "units": 12, "depth": 4, "vector_units": 12}
    return GRUDreamerAgent(dreamer().spec, GRUDreamerConfig(**sizes, vector_layers=1))


AGENTS = {"dreamer": dreamer, "r2i": lambda: r2i("full"), "gru_dreamer": gru_dreamer}


def recorded(agent, seed: int = 0) -> SimpleNamespace:
    """What a Recording holds, made up: EPISODES episodes of LENGTH steps."""
    steps = LENGTH * EPISODES
    generator = torch.Generator().manual_seed(seed)
    column = np.arange(steps)
    draw = {key: random_values(space, (steps,), generator).numpy() for key, space in agent.spec.action.items()}
    draw |= {f"obs.{k}": random_values(space, (steps,), generator).numpy() for k, space in agent.spec.obs.items()}
    table = np.zeros(EPISODES, EPISODE)
    table["start"] = np.arange(EPISODES) * LENGTH
    table["stop"], table["length"] = table["start"] + LENGTH, LENGTH
    pos = np.stack([column % LENGTH, column // LENGTH], 1).astype(float)
    return SimpleNamespace(
        covariates={**draw, "pos": pos, "is_first": column % LENGTH == 0}, episodes=table, steps=steps, path="made up",
        episode=column // LENGTH, step=column % LENGTH, units={"pos": "cells"},
        provenance=Provenance(torchmem="0", caveats=("made up",), seeds={"record": 4}),
    )  # fmt: skip


@pytest.fixture(params=AGENTS)
def opened(request):
    agent = AGENTS[request.param]()
    return Model(agent), recorded(agent)


ONE_PER_EPISODE = {"warmup": BEGIN, "stride": 100, "horizon": H, "actions": "replayed"}


def site_names(model) -> tuple[str, ...]:
    return ("memory", "dynamics.stoch", next(n for n in model.sites if n.startswith("actor.mlp")))


@pytest.mark.parametrize("actions", ["replayed", "policy"])
def test_a_dream_never_sees_what_comes_after_its_start(opened, actions):
    model, rec = opened
    settings = ONE_PER_EPISODE | {"actions": actions, "sites": site_names(model), "conditions": ("A", "B")}
    before = make_dreams(model, rec, **settings)
    assert (before.step == BEGIN - 1).all() and len(np.unique(before.start)) == EPISODES
    later = dict(rec.covariates)
    dreamed = before.condition < 2
    for change, same in ((rec.step >= BEGIN, True), (rec.step >= BEGIN - 1, False)):
        for key in model.spec.obs:
            other = later[f"obs.{key}"].copy()
            other[change] = np.roll(other, 5, 0)[change]
            rec.covariates = {**rec.covariates, f"obs.{key}": other}
        after = make_dreams(model, rec, **settings)
        for name in before.states:
            equal = np.array_equal(before.states[name][dreamed], after.states[name][dreamed])
            assert equal == same, (name, same)
            assert not np.array_equal(before.states[name][~dreamed][:, 1:], after.states[name][~dreamed][:, 1:])
        rec.covariates = dict(later)


def test_replayed_actions_are_those_recorded_and_dreams_begin_where_they_were_seen(opened):
    model, rec = opened
    batch = make_dreams(model, rec, **ONE_PER_EPISODE | {"sites": site_names(model), "copies": 2})
    row = np.repeat([rec.episodes["start"] + BEGIN - 1], 3, 0).reshape(-1)
    for key, values in batch.taken.items():
        np.testing.assert_array_equal(values, rec.covariates[key][row[:, None] + np.arange(H)])
    first = {name: values[:, 0].reshape(3, EPISODES, -1) for name, values in batch.states.items()}
    for name, values in first.items():
        np.testing.assert_array_equal(values[0], values[1], err_msg=name)
        np.testing.assert_allclose(values[0], values[2], atol=1e-6, err_msg=name)  # awake
    assert not np.array_equal(batch.states["memory"][:3, 2:], batch.states["memory"][3:6, 2:]), "copies differ in noise"
    np.testing.assert_array_equal(batch.real[0], rec.covariates["pos"][BEGIN - 1 : BEGIN + H])
    assert batch.provenance.caveats == ("made up",) and batch.provenance.seeds == {"record": 4, "dream": 0}


def test_the_imagined_states_are_those_of_the_agent(opened):
    """With nothing drawn: begin where `observe` ends and imagine the recorded actions."""
    model, rec = opened
    batch = make_dreams(model, rec, **ONE_PER_EPISODE | {"sites": ("memory", "dynamics.deter"), "modes": True})
    agent, row = model.agent, int(rec.episodes["start"][1])
    obs = {k: torch.as_tensor(rec.covariates[f"obs.{k}"][None, row : row + BEGIN]) for k in agent.spec.obs}
    acts = {k: torch.as_tensor(rec.covariates[k][None, row : row + BEGIN + H]) for k in agent.spec.action}
    seen = model.observe({**obs, **{k: v[:, :BEGIN] for k, v in acts.items()}}, noise="mode")
    ahead = {k: v[:, BEGIN - 1 : BEGIN - 1 + H] for k, v in acts.items()}
    with model.trace.imagine(seen.carry, H, actions=ahead, noise="mode", raw=False):
        deter = model.site("dynamics.deter").save()
        memory = model.site("memory").save()
    for name, value in {"dynamics.deter": deter, "memory": memory}.items():
        np.testing.assert_allclose(batch.states[name][1, 1:], value[0].numpy(), atol=1e-5, err_msg=name)
    held = agent.memory_of(seen.carry).numpy()
    np.testing.assert_allclose(batch.states["memory"][1, 0], held[0], atol=1e-5)


def test_the_end_of_an_episode_ends_the_comparison(opened):
    model, rec = opened
    batch = make_dreams(model, rec, horizon=8, sites="memory", starts=1000)
    left = LENGTH - 1 - batch.step
    np.testing.assert_array_equal(batch.valid.sum(1), np.minimum(left, 8) + 1)
    assert np.isnan(batch.states["memory"][batch.condition == 1][~batch.valid[batch.condition == 1]]).all()
    assert (batch.warmup == batch.step + 1).all(), "by default everything since the episode began was observed"
    pieces = list(dream_batches(model, rec, horizon=8, sites="memory", starts=1000, rows=20))
    assert len(pieces) > 1 and sum(len(p.start) for p in pieces) == len(batch.start)


def test_seeds_are_what_they_say(opened):
    model, rec = opened
    names = ("A", "B", "C", "D", "E", "other actions")
    sites = ("memory", "dynamics.deter", "dynamics.stoch")
    batch = make_dreams(model, rec, **ONE_PER_EPISODE | {"sites": sites, "conditions": names, "copies": 3})

    def first(name, site):
        return batch.states[site][batch.condition == names.index(name)][:, 0]

    for site in sites:
        np.testing.assert_array_equal(first("A", site), first("other actions", site))
    for site in sites[:2]:
        np.testing.assert_array_equal(first("A", site), first("B", site))
        assert not first("E", site).any() and first("C", site).any()
        pool = batch.wake[site]
        hits = (first("D", site)[:, None] == pool[None]).any(1)
        assert hits.all(), "each unit of the noise is a waking value of that unit"
        assert not (first("D", site)[:, None] == pool[None]).all(-1).any(), "but not all of one moment"
    assert (first("C", "dynamics.stoch").sum(1) == model.agent.config.stoch).all(), "one-hot"
    taken = next(iter(batch.taken.values()))
    assert not np.array_equal(taken[batch.condition == 0], taken[batch.condition == 5])


def test_noise_keeps_what_its_name_promises():
    generator = torch.Generator().manual_seed(0)
    wake = torch.randn(500, 3, generator=generator).exp() * torch.tensor([1.0, 2.0, 0.0])
    matched = noise(wake, 20000, "matched", generator)
    torch.testing.assert_close(matched.mean(0), wake.mean(0), atol=0.1, rtol=0.05)
    torch.testing.assert_close(matched.std(0), wake.std(0), atol=0.1, rtol=0.05)
    assert (noise(wake, 100, "matched_relu", generator) >= 0).all() and (matched < 0).any()
    cut = noise(wake, 2000, "truncnorm", generator)
    assert (cut >= wake.amin(0)).all() and (cut <= wake.amax(0)).all() and (cut[:, 2] == 0).all()
    with pytest.raises(ValueError, match="null='pink'"):
        noise(wake, 2, "pink", generator)


def test_edits_hold_in_dreams(opened):
    model, rec = opened
    with model.edited(Ablate("memory", units=(0, 1))):
        batch = make_dreams(model, rec, **ONE_PER_EPISODE | {"sites": "memory"})
        with pytest.raises(ValueError, match="while edits hold"):
            make_dreams(model, rec, conditions=("A", "D"))
    assert not batch.states["memory"][..., :2].any() and batch.states["memory"][..., 2:].any()
    assert batch.provenance.edits


def test_wrong_wishes_are_named_with_the_way_out(opened):
    model, rec = opened
    wrong = [
        ({"sites": "encoder"}, "does not run while dreaming"), ({"warmup": 20}, "the longest of 3 episodes has 14"),
        ({"conditions": ("A", "Z")}, "each once, of A, B"), ({"conditions": ("A'",)}, "in Crafter only"),
        ({"conditions": ("other actions",)}, "give actions='replayed'"), ({"actions": "any"}, "policy or replayed"),
        ({"horizon": 0}, "at least 1 each"), ({"copies": 0}, "copies=0"),
    ]  # fmt: skip
    for given, words in wrong:
        with pytest.raises(ValueError, match=words):
            make_dreams(model, rec, **given)
    blind = SimpleNamespace(**vars(rec))
    blind.covariates = {k: v for k, v in rec.covariates.items() if not k.startswith("obs.")}
    with pytest.raises(ValueError, match="without --no-observations"):
        make_dreams(model, blind)


def test_an_agent_without_a_model_says_so():
    model = Model(ppo("gru", "dummy"))
    with pytest.raises(ValueError, match="a ppo agent has no world model, so it cannot dream: dreamer, r2i"):
        dream_batches(model, recorded(model.agent))
    with pytest.raises(ValueError, match="no world model"):
        dreamable(model, ["memory"])


def test_dreamable_sites(opened):
    model, _ = opened
    found = dreamable(model, ["encoder", "memory", "dynamics.stoch", "elsewhere"])
    assert found == ["memory", "dynamics.stoch"]


def test_the_picture_behind_a_dream_is_of_one_world_only():
    """Grid from (-1, 1), three columns and two rows, over a map of 2 x 2 tiles (x right, y down)."""
    rec = recorded(dreamer())
    maps = np.zeros((rec.steps, 2, 2), np.int64)
    maps[:, 1, 0] = 1  # x 0, y 1
    rec.covariates |= {"materials": maps, "world": np.zeros(rec.steps), "pos": np.zeros((rec.steps, 2))}
    rec.units |= {"materials": "0 grass, 1 water"}
    result = SimpleNamespace(cell=1.0, origin=(-1, 1), shape=(3, 2), target="pos")
    picture = picture_of(rec, result)
    assert picture.shape == (2, 3, 3)
    water, grass, blank = picture[0, 1], picture[0, 2], picture[0, 0]
    assert tuple(water) == COLOURS["water"] and tuple(grass) == COLOURS["grass"] and tuple(blank) == BLANK
    assert (picture[1] == BLANK).all()
    rec.covariates["world"] = np.arange(rec.steps)
    assert picture_of(rec, result) is None
