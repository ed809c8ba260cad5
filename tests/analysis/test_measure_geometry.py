"""A flat map is found flat, noise is not, and dreams that leave the waking states are far from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.analysis.recordings import Memory, clock, drift
from tests.analysis.test_probe_position import walk
from torchmem.analysis.measure_geometry import GeometryResult, _hill, measure_geometry
from torchmem.result import load_result

QUICK = {"steps": 500, "manifold_steps": 250, "draws": 19}


@pytest.fixture(scope="module")
def world() -> Memory:
    rng = np.random.default_rng(0)
    episode, _ = clock(12, 80)
    pos = walk(rng, episode, 9)
    centres = np.stack(np.meshgrid(range(9), range(9)), -1).reshape(-1, 2)
    fields = np.exp(-((pos[:, None] - centres) ** 2).sum(-1) / 8)
    return Memory({"dynamics.deter": fields, "encoder": drift(rng, episode, 40)}, {"pos": pos}, episode)


@pytest.fixture(scope="module")
def found(world: Memory) -> GeometryResult:
    rng = np.random.default_rng(1)
    fields = world.activations["dynamics.deter"]
    near = fields[rng.permutation(len(fields))[:60]] + 0.001
    return measure_geometry(world, dreams={"dynamics.deter": near.reshape(6, 10, -1),
                                           "encoder": rng.normal(size=(60, 40)) * 9}, **QUICK)  # fmt: skip


def test_place_fields_make_a_map_and_noise_does_not(found: GeometryResult, tmp_path):
    assert found.sites == ("encoder", "dynamics.deter")
    assert found.srsa[1] > 0.8 and found.p[1] == 0.05 and abs(found.srsa[0]) < 0.15
    assert found.manifold_r2[1] > 0.8 > 0.4 > found.manifold_r2[0]
    start, end, half, exponent = found.hill[1]
    assert start < 0.1 and end > 0.8 and 1 < half < 6 and exponent > 1
    np.testing.assert_allclose(_hill(found.distances, *found.hill[1])[:8], found.curve[1][:8], atol=0.1)
    np.testing.assert_allclose(found.histogram[1][0].sum(), 1)
    assert load_result(found.save(tmp_path / "geometry")) == found
    assert "sRSA" in found.summary()


def test_dreams_near_waking_states_are_told_from_others(found: GeometryResult):
    assert found.dream[1] < 0.01 and found.dream[0] > 0.3
    assert found.awake[1] < 0.01 and found.awake[0] > 0.3, "as far as another episode is"


def test_srsa_is_spearman_of_the_distances(world: Memory):
    few = Memory({"a": world.activations["dynamics.deter"][:60]}, {"pos": world.covariates["pos"][:60]},
                 world.episode[:60])  # fmt: skip
    result = measure_geometry(few, steps=60, manifold_steps=0, draws=1)
    x, y = few.activations["a"], few.covariates["pos"]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    upper = np.triu_indices(60, 1)
    away = np.linalg.norm(y[:, None] - y, axis=-1)[upper]
    assert result.srsa[0] == pytest.approx(spearmanr((1 - x @ x.T)[upper], away)[0], abs=2e-3)


def test_dreams_of_another_width_are_refused(world: Memory):
    with pytest.raises(ValueError, match="must have 40 units"):
        measure_geometry(world, "encoder", dreams={"encoder": np.zeros((3, 7))}, **QUICK)
