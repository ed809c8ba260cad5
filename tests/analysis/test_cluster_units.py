"""Two shapes of maps are two clusters; units without shapes are none."""

from __future__ import annotations

import numpy as np
import pytest

from torchmem.analysis._tuning_groups import THRESHOLDS
from torchmem.analysis._tuning_result import TuningResult
from torchmem.analysis.cluster_units import ClusterResult, cluster_units
from torchmem.result import Provenance, load_result


@pytest.fixture(scope="module")
def tuning() -> TuningResult:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(range(12), range(12), indexing="ij")
    centre = rng.uniform(3, 8, (60, 2))
    dots = np.exp(-((x - centre[:30, 0, None, None]) ** 2 + (y - centre[:30, 1, None, None]) ** 2) / 4)
    bars = np.exp(-((x - centre[30:, 0, None, None]) ** 2) / 2) + 0 * y
    shaped = np.concatenate([dots, bars]) + 0.05 * rng.random((60, 12, 12))
    maps = {"shaped": shaped, "noise": rng.random((70, 12, 12))}
    kinds = {"shaped": np.repeat([2, 3], 30), "noise": np.zeros(70, int)}
    return TuningResult(
        target="pos", sites=("shaped", "noise"), origin=(0, 0), shape=(12, 12), cell=1.0, steps=1, episodes=1,
        occupancy=np.ones((12, 12)), walls=np.zeros((12, 12), bool), headings=(), heading_occupancy=np.zeros(0),
        maps=maps, curves={}, scores={}, groups=kinds, thresholds=dict(THRESHOLDS), alpha=0.05, corrected=True, hz=1.0,
        settings={}, notes=(), provenance=Provenance("0"),
    )  # fmt: skip


def test_two_shapes_are_two_clusters(tuning: TuningResult, tmp_path):
    found = cluster_units(tuning, "shaped", smallest=10, draws=3)
    assert found.count == 2 and found.agreement > 0.9 and found.silhouette > 0.3
    assert not (found.exchanged > 0.5 * found.silhouette).any()
    assert load_result(found.save(tmp_path / "clusters")) == found and isinstance(found, ClusterResult)
    assert "2 clusters of 60 units" in found.summary()


def test_noise_has_no_clusters(tuning: TuningResult):
    found = cluster_units(tuning, "noise", smallest=10, draws=1)
    assert found.count < 2 and np.isnan(found.silhouette)


def test_wrong_use(tuning: TuningResult):
    with pytest.raises(ValueError, match="no site 'memory'"):
        cluster_units(tuning, "memory")
    with pytest.raises(ValueError, match="too few for clusters of 50"):
        cluster_units(tuning, "shaped", smallest=50)
    with pytest.raises(ValueError, match="autocorrelation or metrics"):
        cluster_units(tuning, "shaped", view="maps")
