"""Behaviours: planted ones are found again, noise has none, labels are those of the steps, controls control."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from tests.analysis.recordings import Memory, clock, drift
from torchmem import cli
from torchmem.analysis._behaviours_features import donors, mixed, read_features
from torchmem.analysis.cluster_behaviours import BehavioursResult, cluster_behaviours
from torchmem.analysis.correlate_lags import correlate_lags
from torchmem.recording import RecordingWriter
from torchmem.result import load_result

RNG = np.random.default_rng
FEW: dict[str, Any] = {"draws": 19, "most": 5, "steps": 700}


def acting(seed: int = 0, episodes: int = 40, kinds: int = 3, strength: float = 2.0) -> Memory:
    """One of `kinds` behaviours per episode, which moves memory and world its own way."""
    rng = RNG(seed)
    episode, _ = clock(episodes, 20)
    kind = rng.permutation(np.arange(episodes) % kinds)[episode]
    ways = np.linalg.qr(RNG(5).normal(size=(10, 10)))[0]
    memory, world = drift(rng, episode, 10, 0.9), drift(rng, episode, 20, 0.9)
    memory += strength * 3 * ways[kind]
    world[:, :10] += strength * 3 * ways[kinds + kind]
    action = np.where(rng.random(len(kind)) < 0.8, kind % 3, rng.integers(3, size=len(kind)))
    image = np.repeat((40 * kind + 40).astype(np.uint8)[:, None, None, None], 3, 3).repeat(8, 1).repeat(8, 2)
    covariates = {
        "kind": kind, "action": action, "reward": (kind == 1) + 0.1 * rng.normal(size=len(kind)),
        "value": rng.normal(size=len(kind)), "obs.image": image,
    }  # fmt: skip
    return Memory({"memory": memory, "world": world}, covariates, episode)


def noise(seed: int = 0, episodes: int = 40) -> Memory:
    """One cloud, longer in some directions than in others, slow in time, and a course that all episodes share."""
    rng = RNG(seed)
    episode, step = clock(episodes, 20)
    memory = drift(rng, episode, 10, 0.9) * np.geomspace(4, 0.2, 10) @ rng.normal(size=(10, 10))
    return Memory({"memory": memory}, {"action": rng.integers(3, size=len(step))}, episode)


@pytest.fixture(scope="module")
def planted():
    rec = acting()
    return rec, cluster_behaviours(rec, exemplars=3, display="tsne", sample=400, **FEW)


def test_planted_behaviours_are_recovered(planted, tmp_path):
    rec, found = planted
    assert found.count == 3 and found.stable and found.sites == ("memory", "world")
    assert found.p <= 0.05 and found.stability.mean() > 0.9 > found.by_chance.mean()
    inside = found.label >= 0
    assert adjusted_rand_score(rec.covariates["kind"][inside], found.label[inside]) > 0.95
    assert (found.silhouette[found.counts == 3] > 1.15 * found.mixed[:, found.counts == 3]).all()
    assert load_result(found.save(tmp_path / "found")) == found and "behaviour" in found.summary()
    assert "NO STABLE" not in found.summary() and found.map.shape == (400, 2)
    assert found.figure() is not None


def test_profiles_and_exemplars_tell_what_a_behaviour_is(planted):
    rec, found = planted
    kind = rec.covariates["kind"]
    for k in range(3):
        mine = found.label == k
        true = np.bincount(kind[mine]).argmax()
        q = found.quantities.index(f"action {true}")
        assert found.value[k, q] == pytest.approx((rec.covariates["action"][mine] == true).mean())
        assert found.low[k, q] > found.everywhere[q], "it does its own action more than the rest"
        rewarded = found.quantities.index("reward")
        assert (found.low[k, rewarded] > found.everywhere[rewarded]) == (true == 1)
        value = found.quantities.index("value")
        assert found.low[k, value] - 0.05 <= found.everywhere[value] <= found.high[k, value] + 0.05
        places = found.exemplars[k]
        assert len(set(places[:, 1])) == 3, "of unlike episodes"
        rows = [np.flatnonzero(rec.episode == e)[s] for _, e, s in places]
        assert (found.label[rows] == k).all() and (kind[rows] == true).all()
        assert (found.distance[rows] <= np.nanquantile(found.distance[mine], 0.2)).all()
        clips = found.clips(k, [rec])
        assert clips.shape == (3, 7, 8, 8, 3) and (clips[:, 0] == 40 * true + 40).all()
    assert found.value[:, 0].sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_has_no_stable_behaviours(seed):
    found = cluster_behaviours(noise(seed), seed=seed, **FEW)
    assert not found.stable and found.p > 0.05 and "NO STABLE BEHAVIOURS" in found.summary()


def test_a_number_that_is_told_is_taken_and_still_judged():
    found = cluster_behaviours(noise(2), count=4, **FEW)
    assert found.count == 4 and found.counts.tolist() == [4] and not found.stable
    assert not dataclasses.replace(found, p=0.01, stability=np.zeros(0)).stable


def test_labels_belong_to_the_steps_of_each_recording(planted):
    rec, found = planted
    length = np.bincount(rec.episode)[rec.episode]
    np.testing.assert_array_equal(found.label < 0, found.step >= length - 6)
    cut = rec.episode < 15
    parts = [
        Memory({k: v[some] for k, v in rec.activations.items()}, {k: v[some] for k, v in rec.covariates.items()},
               rec.episode[some]) for some in (cut, ~cut)
    ]  # fmt: skip
    both = cluster_behaviours(parts, **FEW)
    assert adjusted_rand_score(both.label, found.label) > 0.95
    assert len(both.labels(1)) == (~cut).sum() and (both.episode[both.recording == 1] >= 15).all()
    votes = both.episode_labels(1)
    first = both.labels(1)[rec.episode[~cut] == 15]
    assert votes[0] == np.bincount(first[first >= 0]).argmax() and len(votes) == 25


def test_lagged_correlation_of_a_behaviour_is_that_of_its_steps(planted):
    """T11: the original took the first members of the data for every cluster."""
    rec, found = planted
    y = rec.activations["memory"]
    for k in range(3):
        mask = found.mask(k)
        np.testing.assert_array_equal(mask, found.label == k)
        seen = correlate_lags(rec, lags=2, where=mask, draws=0)
        for lag in range(3):
            rows = np.flatnonzero(mask)
            rows = rows[rows + lag < len(y)]
            rows = rows[rec.episode[rows] == rec.episode[rows + lag]]
            np.testing.assert_allclose(seen.correlation[lag], np.corrcoef(y[rows].T, y[rows + lag].T)[:10, 10:],
                                       atol=1e-9)  # fmt: skip
    with pytest.raises(ValueError, match="no behaviour 3"):
        found.mask(3)


def test_features_are_states_and_differences():
    rec = acting(episodes=9)
    found = read_features([rec], ["memory"], [2, 6])
    y = rec.activations["memory"].astype(np.float32)
    np.testing.assert_allclose(found.x[:, found.blocks["memory"]], y[found.row], rtol=1e-6)
    np.testing.assert_allclose(found.x[:, found.blocks["memory over 6"]], y[found.row] - y[found.row + 6], rtol=1e-5)
    assert (rec.episode[found.row] == rec.episode[found.row + 6]).all() and found.x.shape[1] == 30
    later = read_features([rec], ["memory"], [2, 6], skip=3)
    kept = np.isin(found.row, later.row)
    np.testing.assert_array_equal(later.x, found.x[kept])
    assert np.unique(rec.episode[found.row[~kept]], return_counts=True)[1].tolist() == [3] * 9
    wide = read_features([rec], ["memory", "world"], [2])
    assert wide.x.shape[1] == 2 * (10 + 16), "20 numbers of the world become 16 components"


def test_mixtures_keep_covariances_and_lose_clusters():
    rng = RNG(0)
    episode, _ = clock(300, 10)
    sign = rng.choice([-1.0, 1.0], 300)[episode]
    points = np.stack([5 * sign, drift(rng, episode, 1, 0.8)[:, 0]], 1)
    points[:, 1] += 0.5 * points[:, 0]
    other = mixed(points, episode, rng)
    np.testing.assert_allclose(np.cov(other.T), np.cov(points.T), rtol=0.25)
    following = episode[1:] == episode[:-1]
    for lag in (points, other):
        assert np.corrcoef(lag[1:][following, 0], lag[:-1][following, 0])[0, 1] > 0.9
    kurtosis = [((v[:, 0] / v[:, 0].std()) ** 4).mean() for v in (points, other)]
    uneven = np.repeat([0, 1, 2], [3, 20, 7])
    for _ in range(5):
        rows = donors(uneven, rng)
        for taker in range(3):
            given = rows[uneven == taker]
            size = (uneven == uneven[given[0]]).sum()
            np.testing.assert_array_equal(given - given[0], np.arange(len(given)) % size, "it begins again")
    assert kurtosis[0] < 1.1 and 2.2 < kurtosis[1] < 4, "two points against a bell"


def test_wrong_inputs_are_told():
    rec = acting(episodes=9)
    broken = dataclasses.replace(rec, activations={"memory": np.where(rec.episode == 2, np.nan, 1.0)[:, None]})
    small = Memory({"memory": rec.activations["memory"][:, :4]}, {}, rec.episode)
    for given, how, match in [
        (rec, {"sites": ["memroy"]}, "memory"), (rec, {"lags": [99]}, "longer than 99"),
        (rec, {"count": 1}, "2 or more"), (rec, {"lags": [0]}, "from 1"), (rec, {"skip": -1}, "0 or more"),
        (broken, {}, "NaN"), ([rec, small], {"sites": ["memory"]}, "of one agent"),
        (rec, {"profile": ["obs.image"]}, "single numbers"), (rec, {"count": 60}, "too few"), ([], {}, "at least one"),
        (rec, {"profile": ["luck"]}, "luck"), (rec, {"display": "pca"}, "tsne"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            cluster_behaviours(given, **{"draws": 1, "most": 3, "steps": 200, **how})
    found = cluster_behaviours(noise(episodes=9), draws=1, most=3, steps=200)
    with pytest.raises(ValueError, match="no colour image"):
        found.clips(0, [noise(episodes=9)])


def test_the_command_from_recordings_to_a_folder(tmp_path, capsys):
    rec = acting(episodes=10)
    with RecordingWriter(tmp_path / "rec", control_hz=10.0) as writer:
        for episode in range(10):
            mine = rec.episode == episode
            writer.append({k: v[mine] for k, v in rec.activations.items()},
                          {k: v[mine] for k, v in rec.covariates.items()})  # fmt: skip
        writer.finish()
    words = ["behaviours", str(tmp_path / "rec"), "--draws", "2", "--most", "3", "--profile", "kind", "--display",
             "none", "--out", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(words) == 0 and "Rand" in capsys.readouterr().out
    found = load_result(tmp_path / "out")
    assert isinstance(found, BehavioursResult) and "kind" in found.quantities
    assert found.recordings == (str(tmp_path / "rec"),) and len(found.label) == len(rec.episode)
    rows = (tmp_path / "out" / "profile.csv").read_text().splitlines()
    assert len(rows) == 1 + found.count * len(found.quantities)
    for name in ("behaviours.png", "behaviour_0.gif", "behaviour_0.png"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    (tmp_path / "run" / "frozen_agent").mkdir(parents=True)
    words[1] = str(tmp_path / "run")
    assert cli.main(words) == 2 and "torchmem simulate" in capsys.readouterr().err
