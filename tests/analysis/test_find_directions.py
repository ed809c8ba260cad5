"""Directions: planted sources come back in the same order and sign, projections invert, sklearn agrees."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from tests.analysis.recordings import Memory, clock
from torchmem.analysis._directions_fit import matched
from torchmem.analysis.find_directions import find_directions
from torchmem.result import load_result


def mixture(seed: int = 0, episodes: int = 60) -> tuple[Memory, np.ndarray]:
    """Three skewed or heavy-tailed sources of unlike size, mixed into 8 units, one of which is dead."""
    rng = np.random.default_rng(seed)
    episode, _ = clock(episodes, 30)
    sources = np.stack([rng.exponential(size=len(episode)), rng.laplace(size=len(episode)),
                        rng.uniform(-1, 1, size=len(episode)) ** 3], 1)  # fmt: skip
    sources = (sources - sources.mean(0)) / sources.std(0)
    mixing = np.random.default_rng(5).normal(size=(3, 8)) * np.array([[3.0], [2.0], [1.0]])
    mixing[:, 7] = 0
    return Memory({"memory": sources @ mixing + 0.02 * rng.normal(size=(len(episode), 8)) * (np.arange(8) < 7)},
                  {"step": np.arange(len(episode)) % 7}, episode), sources  # fmt: skip


@pytest.mark.parametrize("method", ["pca", "ica", "nmf"])
def test_projection_and_decoding_undo_each_other(method, tmp_path):
    rec, _ = mixture()
    found = find_directions(rec, method=method, count=3, draws=2)
    np.testing.assert_allclose(found.encode @ found.decode.T, np.eye(3), atol=1e-8)
    y = found.scores(rec.activations["memory"])
    np.testing.assert_allclose(found.scores(found.states(y)), y, atol=1e-8)
    # the chain rule: the gradient of y_i by y, by way of h, is e_i
    np.testing.assert_allclose(found.push(found.encode), np.eye(3), atol=1e-8)
    assert (np.diff(found.share) <= 1e-9).all() and 0.9 < found.total <= 1
    assert found.spread[0] > 0 and found.rows == len(rec.episode)
    assert load_result(found.save(tmp_path / "d")) == found


def test_pca_is_that_of_sklearn():
    rec, _ = mixture()
    x = rec.activations["memory"]
    found = find_directions(rec, count=3, draws=0)
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    other = PCA(3).fit(z)
    np.testing.assert_allclose(found.share, other.explained_variance_ratio_, rtol=1e-6)
    mine = found.encode * found.scale
    np.testing.assert_allclose(np.abs(np.sum(mine * other.components_, 1)), 1, atol=1e-6)


def test_planted_sources_are_found_in_the_same_order_and_sign_whatever_the_seed():
    rec, sources = mixture()
    one, two = (find_directions(rec, method="ica", count=3, seed=seed, draws=4) for seed in (0, 9))
    y = one.scores(rec.activations["memory"])
    assert matched(sources, y).min() > 0.95
    other = two.scores(rec.activations["memory"])
    assert np.corrcoef(y.T, other.T)[:3, 3:].diagonal().min() > 0.99, "same order, same sign"
    assert one.stability.mean(0).min() > 0.95 > one.by_chance.mean()
    assert one.converged and "stability" in one.summary()


def test_noise_alone_is_not_stable():
    rng = np.random.default_rng(0)
    episode, _ = clock(12, 20)
    found = find_directions(Memory({"memory": rng.normal(size=(len(episode), 10))}, {}, episode), count=5, draws=6)
    assert found.stability.mean() < 0.85


def test_outliers_and_maps():
    rec, _ = mixture(episodes=10)
    rec.activations["memory"][0] += 1e4
    plain, robust = (find_directions(rec, count=2, draws=0, outliers=o, display="tsne") for o in (False, True))
    assert plain.share[0] > 0.99 and robust.kept < 1 == plain.kept and not np.allclose(plain.encode, robust.encode)
    assert robust.map.shape == (len(robust.sample), 2)
    assert "outliers" in robust.summary()


def test_wrong_inputs_are_told():
    rec, _ = mixture(episodes=5)
    for how, match in [
        ({"site": "memori"}, "memory"), ({"method": "kmeans"}, "pca, ica, nmf"), ({"count": 9}, "8 numbers"),
        ({"count": 8, "draws": 0}, "ask for fewer"), ({"where": "step > 99"}, "too few"), ({"display": "pic"}, "tsne"),
        ({"display": "umap", "count": 2}, "umap-learn"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            find_directions(rec, **how)
    rec.activations["memory"][3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        find_directions(rec, count=2)
    with pytest.raises(ValueError, match="direction 5"):
        find_directions(mixture()[0], count=2, draws=0).chosen([1, 5])
