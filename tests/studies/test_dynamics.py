"""The planted agent explained (bar 2 of the behaviour lab): directions found, Jacobian right, stories consistent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.analysis.recordings import Memory
from tests.studies import planted
from torchmem.analysis.correlate_lags import correlate_lags
from torchmem.analysis.find_directions import DirectionsResult, find_directions
from torchmem.analysis.nulls import exchange_rows
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.provenance import Provenance
from torchmem.result import load_result
from torchmem.studies.dynamics import compare_stories
from torchmem.studies.scalars import read_scalars
from torchmem.studies.slopes import slopes
from torchmem.surgery.model import Model

LAGS = 3


def play_and_record() -> Memory:
    """Two hundred real episodes, one after the other."""
    model = Model(planted.agent())
    with model.trace.play(planted.LENGTH, env=planted.World(200), noise="mode", raw=False):
        h = model.site("memory").save()
    rows, steps = h.shape[:2]
    episode = np.repeat(np.arange(rows), steps)
    return Memory({"memory": h.reshape(rows * steps, -1).numpy()}, {"step": np.tile(np.arange(steps), rows)}, episode)


def find(recorded: Memory, draws: int = 4) -> DirectionsResult:
    return find_directions(recorded, method="ica", count=6, draws=draws)


@pytest.fixture(scope="module")
def recorded() -> Memory:
    return play_and_record()


@pytest.fixture(scope="module")
def directions(recorded: Memory) -> DirectionsResult:
    return find(recorded)


def sides(directions: DirectionsResult) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the directions of m_A and m_B, and the |cosine| of what these move with what was planted."""
    moved = directions.decode / np.linalg.norm(directions.decode, axis=1, keepdims=True)
    likeness = np.abs(moved @ planted.rotation().numpy()[:2].T)
    return likeness.argmax(0), likeness.max(0)


def test_the_two_planted_directions_are_found(directions):
    numbers, likeness = sides(directions)
    # m_A drives m_B, so that both stand together more often than not: what moves with m_A is m_A and a little of m_B
    assert len(set(numbers)) == 2 and likeness.min() > 0.8, likeness
    assert directions.stability.mean(0)[numbers].min() > 0.8


def truth() -> DirectionsResult:
    """The planted directions themselves, m_A and m_B in cues."""
    turn = planted.rotation().numpy()[:2]
    noise = np.random.default_rng(0).normal(size=(40, planted.UNITS))
    found = find_directions(Memory({"memory": noise}, {}, np.arange(40) // 5), count=2, draws=0)
    encode, decode = turn / planted.SMALL, turn * planted.SMALL
    return dataclasses.replace(found, centre=0 * found.centre, encode=encode, decode=decode, spread=np.ones(2))


def gradients(directions: DirectionsResult, samples: int = 6) -> dict[str, np.ndarray]:
    loop = AgentLoop(planted.agent(torch.float64))
    scalars = list(read_scalars(["directions"], loop, directions).values())
    start = planted.starts(samples, torch.float64)
    found = slopes(planted.Simulator(), loop, start, scalars, LAGS, ["memory"], ("total", "internal", "external"))
    return {way: directions.push(nodes["memory"].numpy()) for way, nodes in found.by.items()}


def test_the_jacobian_is_the_planted_one_way_by_way():
    found = gradients(truth())
    for lag in range(LAGS + 1):
        total, internal = (found[way][:, :, LAGS - lag].mean(1).T for way in ("total", "internal"))
        np.testing.assert_allclose(total, planted.jacobian(lag), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(internal, planted.KEEP**lag * np.eye(2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["internal"] + found["external"], found["total"], atol=1e-10)


def stories(recorded: Memory, directions: DirectionsResult):
    values = gradients(directions)
    seen = correlate_lags(recorded, directions, lags=LAGS, draws=100)
    return compare_stories(values, seen, directions, np.arange(6), simulator="planted", settings={},
                           provenance=Provenance(torchmem="0"))  # fmt: skip


def test_stories_agree_beyond_chance_and_the_edge_is_found(recorded, tmp_path):
    known = truth()
    found = stories(recorded, known)
    for lag in range(1, LAGS + 1):
        assert found.jacobian["total"][lag][0, 1] > 0.05
    best = found.edges[0]
    assert best[0] in ("total", "external") and best[2:4] == (0, 1) and best[4] > 0 and best[5] > 0 and best[7]
    assert all(e[2:4] == (0, 1) for e in found.edges if e[7]), "B does not drive A, nor A drive B inside the agent"
    assert found.agreement["total"][1, 5] < 0.05, "cosine of slopes and correlations, against episodes exchanged"
    assert load_result(found.save(tmp_path / "dynamics")) == found
    assert "m" in found.summary() and found.figure() is not None


def test_along_found_directions_too(recorded, directions):
    found = stories(recorded, directions)
    (a, b), _ = sides(directions)
    standing = {(e[2], e[3]) for e in found.edges if e[7] and e[0] == "total" and e[1] == 1}
    assert (a, b) in standing
    assert found.agreement["total"][1, 5] < 0.05


def test_nothing_agrees_where_episodes_are_permuted(recorded):
    """The memory of the later half of each pair is another episode's: rows keep their own course, the link is cut."""
    known, hits = truth(), []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        # m_B of another episode beside the m_A of this one
        y = known.scores(recorded.activations["memory"])
        y[:, 1] = y[exchange_rows(recorded.episode, rng), 1]
        cut = Memory({"memory": known.states(y)}, {}, recorded.episode)
        found = stories(cut, known)
        hits += [bool(e[7]) for e in found.edges if e[0] == "total"]
    assert np.mean(hits) <= 0.1, np.mean(hits)
