"""An agent whose world model is right: its memory is its place, and it dreams each step as the world makes it.

Replayed dreams must then follow the real future exactly, those under other actions must leave it, those from zeros or
noise must begin elsewhere, and all of that must come out of the whole pipeline with the numbers worked out here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.analysis.test_decode_dreams import identity_probe
from torchmem.analysis.decode_dreams import decode_dreams
from torchmem.models.dreamer.rssm import State
from torchmem.models.layers import Tap
from torchmem.models.noise import CategoricalNoise
from torchmem.models.site_names import canonical
from torchmem.models.sites import find_sites
from torchmem.recording.store import EPISODE
from torchmem.result import Provenance
from torchmem.studies.dreams import make_dreams
from torchmem.surgery.model import Model
from torchmem.types import EnvSpec, Space

SIDE, LENGTH, EPISODES, H = 12, 30, 8, 6
MOVES = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
SPEC = EnvSpec(name="plane", obs={"here": Space((2,), "float32")}, control_hz=1.0,
               action={"action": Space((), "int64", classes=4)})  # fmt: skip


def step(place: Tensor, action: Tensor) -> Tensor:
    """(..., 2), (...) -> (..., 2): one tile, but never beyond the edge."""
    return (place + MOVES[action.long()]).clamp(0, SIDE - 1)


class Carry(NamedTuple):
    deter: Tensor
    stoch: Tensor


class Outputs(NamedTuple):
    states: State
    carry: Carry


class Imagined(NamedTuple):
    action: dict[str, Tensor]


class Dynamics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deter, self.stoch = Tap(), Tap()

    def prior(self, deter: Tensor) -> Tensor:
        return deter.new_zeros(len(deter), 1, 2)

    def posterior(self, both: Tensor) -> Tensor:
        return both.new_zeros(len(both), 1, 2)

    def draw(self, logit: Tensor, noise: Tensor | None) -> Tensor:
        return torch.nn.functional.one_hot((logit + (0 if noise is None else noise)).argmax(-1), 2).float()


class Navigator(CategoricalNoise, nn.Module):
    """Sees its place at the first step of an episode only, and keeps count of its moves. z means nothing."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.config = SPEC, SimpleNamespace(name="gru_dreamer", stoch=1, classes=2)
        self.dynamics, self._sites = Dynamics(), {}

    @property
    def sites(self):
        if not self._sites:
            self._sites = canonical(find_sites(self))
        return self._sites

    def initial(self, rows: int) -> Carry:
        return Carry(torch.zeros(rows, 2), torch.zeros(rows, 1, 2))

    def encoder(self, obs):
        return obs["here"]

    def observe(self, obs, actions, is_first, carry, noise=None) -> Outputs:
        place, found, before = carry.deter, [], None
        for t in range(is_first.shape[1]):
            moved = place if before is None else step(place, before)
            place = self.dynamics.deter(torch.where(is_first[:, t, None], obs["here"][:, t], moved))
            found.append(State(place, self.dynamics.stoch(torch.zeros(len(place), 1, 2))))
            before = actions["action"][:, t]
        # the move that follows the last observed step is not in the carry: these tests observe in one piece
        states = State(*(torch.stack(part, 1) for part in zip(*found)))
        return Outputs(states, Carry(place, states.stoch[:, -1]))

    unroll = observe

    def imagine(self, start, horizon, noise, actions=None) -> Imagined:
        place, taken = start.deter, []
        for t in range(horizon):
            if actions is None:
                taken.append(noise.action["action"][:, t].argmax(-1))
            else:
                taken.append(actions["action"][:, t])
            place = self.dynamics.deter(step(place, taken[-1]))
            self.dynamics.stoch(torch.zeros(len(place), 1, 2))
        return Imagined({"action": torch.stack([*taken, taken[-1]], 1)})


@pytest.fixture(scope="module")
def walked() -> SimpleNamespace:
    """Random walks, as a Recording holds them."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(4, (EPISODES, LENGTH), generator=generator)
    place = [torch.randint(SIDE, (EPISODES, 2), generator=generator).float()]
    for t in range(LENGTH - 1):
        place.append(step(place[-1], actions[:, t]))
    pos = torch.stack(place, 1).reshape(-1, 2).numpy()
    column = np.arange(EPISODES * LENGTH)
    table = np.zeros(EPISODES, EPISODE)
    table["start"], table["length"] = np.arange(EPISODES) * LENGTH, LENGTH
    table["stop"] = table["start"] + LENGTH
    seen = {"obs.here": pos, "pos": pos, "action": actions.reshape(-1).numpy(), "is_first": column % LENGTH == 0}
    return SimpleNamespace(covariates=seen, episodes=table, steps=len(column), path="walks", units={"pos": "cells"},
                           episode=column // LENGTH, step=column % LENGTH,
                           provenance=Provenance(torchmem="0", seeds={"record": 1}))  # fmt: skip


def decoded(walked, **given):
    batch = make_dreams(Model(Navigator()), walked, **{"horizon": H, "actions": "replayed", "starts": 60} | given)
    return batch, decode_dreams(batch, identity_probe(), resamples=200)


def test_replayed_dreams_follow_the_real_future_and_others_leave_it(walked):
    batch, found = decoded(walked, conditions=("A", "other actions", "E", "D"))
    means = found.means["divergence"]
    np.testing.assert_array_equal(means[found.index("A")], 0)
    np.testing.assert_array_equal(means[found.index("awake")], 0)
    assert (found.p[0] == 1 / 201).all() and found.pooled["leap"][0] == 0
    np.testing.assert_array_equal(found.means["step"][0, 1:], found.means["step"][found.index("real"), 1:])
    other, stay = means[found.index("other actions")], found.means["stay"][0]
    assert other[0] == 0 and 1 <= other[1] <= 2 and other[-1] > stay[-1] > 1, "worse than to stand still"
    # E begins at (0, 0), so that step 0 is as far off as the start is from there
    rows = batch.condition == 2
    assert means[found.index("E"), 0] == pytest.approx(batch.real[rows][:, 0].sum(1).mean())
    chance, noise = found.means["chance"][0], found.index("D")
    low = found.intervals["divergence"][noise, 0, 0]
    assert low < chance[0] * 1.2 and means[noise, 0] > 3, "noise for the memory: places of other times"


def test_a_policy_that_differs_leaves_the_real_future_at_the_pace_of_two_walks(walked):
    _, found = decoded(walked, copies=4)
    _, free = decoded(walked, copies=4, actions="policy")
    assert found.means["spread"][0].max() == 0 < free.means["spread"][0, 1]
    apart = free.means["divergence"][0]
    assert apart[0] == 0 and (np.diff(apart) > 0).all()
    # without edges two independent steps are 0, 1 (never) or 2 apart: 2 unless equal; corners bring it down a little
    assert 1.2 < apart[1] <= 1.7 and free.means["near"].shape == (3, H + 1)


def test_from_a_blank_memory_the_place_is_what_the_window_shows_first(walked):
    batch, found = decoded(walked, warmup=5)
    assert (batch.warmup == 5).all() and found.means["divergence"][0].max() == 0
