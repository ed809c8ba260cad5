"""Dreams that are known: divergence, chance and continuity come out as worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchmem.analysis._dream_scores import nearest
from torchmem.analysis.decode_dreams import AWAKE, DreamBatch, decode_dreams
from torchmem.analysis.probe_position import PositionResult
from torchmem.result import Provenance, load_result

NAN = (np.nan, np.nan)
# starts 0 and 1 lie in episode 5, 2 and 3 in episode 9; the third future ends after one step
FUTURES = [[(0, 0), (1, 0), (2, 0)], [(0, 2), (0, 3), (0, 4)], [(10, 10), (10, 11), NAN],
           [(12, 10), (12, 10), (13, 10)]]  # fmt: skip
DREAMED = [[(0, 0), (1, 1), (2, 2)], [(0, 2), (0, 3), (0, 4)], [(10, 10), (10, 10), (20, 20)],
           [(12, 11), (12, 11), (12, 11)]]  # fmt: skip


def identity_probe(**changes) -> PositionResult:
    """Decodes two units as x and y."""
    empty = np.zeros(0)
    model = {"mean": np.zeros(2), "std": np.ones(2), "weight": np.eye(2), "bias": np.zeros(2), "covariance": np.eye(2)}
    made = PositionResult(
        decoder="ridge", target="pos", sites=("memory",), widths=(2,), steps=1, groups=1, folds=3, holdout=0.0,
        origin=(0, 0), shape=(32, 32), cell=1.0, scores={"manhattan": np.zeros(1)}, intervals={}, controls={},
        rows=empty, tile=empty, episode=empty, held_out=empty, best=empty, expected=empty, log_p=empty, shown=empty,
        maps=empty, cells=np.zeros((1, 2), np.int16), decoders={"memory": model}, settings={}, notes=(),
        provenance=Provenance(torchmem="0", weights="w", seeds={"record": 7}),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def planted(**changes) -> DreamBatch:
    """A: DREAMED. B: the futures themselves, and a copy three tiles to the right. awake: the futures."""
    real = np.array(FUTURES, float)
    seen = np.nan_to_num(real)
    tiles = np.concatenate([np.array(DREAMED, float), seen, seen + np.array([3, 0]), real])
    made = DreamBatch(
        target="pos", unit="cells", actions="replayed", conditions=("A", "B", AWAKE),
        condition=np.repeat([0, 1, 1, 2], 4), start=np.tile(range(4), 4), copy=np.repeat([0, 0, 1, 0], 4),
        episode=np.tile([5, 5, 9, 9], 4), step=np.tile([3, 8, 3, 8], 4), warmup=np.tile([2, 4, 2, 4], 4),
        states={"memory": tiles.astype(np.float32)}, taken={"action": np.zeros((16, 2), int)},
        real=np.tile(real + 0.5, (4, 1, 1)), before=np.full((16, 3, 2), np.nan),
        wake={"memory": np.array([[1, 0], [0, 1]], np.float32)}, wake_episode=np.array([5, 9]),
        settings={"warmup": None}, provenance=Provenance(torchmem="0", weights="w", seeds={"record": 8}),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def found():
    return decode_dreams(planted(), identity_probe(), resamples=50)


def test_divergence_is_worked_out_by_hand_and_the_ended_episode_does_not_count(found):
    np.testing.assert_allclose(found.means["divergence"][0], [0.25, 0.75, 4 / 3])
    np.testing.assert_allclose(found.means["divergence"][1], [1.5, 1.5, 1.5])
    np.testing.assert_array_equal(found.means["divergence"][2], 0)
    assert found.count[0].tolist() == [4, 4, 3] and found.conditions == ("A", "B", AWAKE, "real")
    np.testing.assert_allclose(found.means["stay"][0], [0, 0.75, 5 / 3])
    np.testing.assert_allclose(found.medians["divergence"][0], [0, 1, 2])


def test_chance_is_the_futures_of_other_episodes(found):
    # step 0: 21, 19, 19, 22; step 2: start 2 has ended, and cannot serve the others either: 19, 19, (21 + 19) / 2
    np.testing.assert_allclose(found.means["chance"][0, [0, 2]], [20.25, 58 / 3])
    assert found.rotations == 3 and (found.p[0] == 1 / 51).all()
    half = decode_dreams(planted(), identity_probe(), rotations=1, resamples=50)
    np.testing.assert_allclose(half.means["chance"][0, 0], (20 + 20 + 20 + 21) / 4)
    low, high = found.intervals["divergence"][0, 0]
    assert (low, high) == (0, 0.5), "either episode twice, or both: two episodes can give no more"


def test_continuity_copies_and_what_no_real_step_does(found):
    root = np.sqrt(2)
    np.testing.assert_allclose(found.pooled["step"][0], (2 * root + 2) / 7)
    np.testing.assert_allclose(found.pooled["stay_put"][0], 3 / 7)
    np.testing.assert_allclose(found.pooled["jump"][0], (2 * root + 2) / 4)
    np.testing.assert_allclose(found.pooled["leap"], [2 / 7, 0, 0, 0])
    np.testing.assert_allclose(found.means["elsewhere"][0, 1], np.mean([np.hypot(10, 10), np.hypot(12, 9),
                                                                        np.hypot(9, 9), np.hypot(12, 8)]))  # fmt: skip
    np.testing.assert_array_equal(found.means["spread"][1], 3)
    assert np.isnan(found.means["spread"][0]).all(), "one copy has nothing to be compared with"
    np.testing.assert_allclose(found.by_warmup["mean"][0], [(1 + 2 + 1) / 3, (0 + 0 + 1 + 2) / 4])


def test_dreams_of_noise_are_at_chance():
    rng = np.random.default_rng(0)
    starts = np.arange(200)
    real = rng.integers(0, 8, (200, 4, 2)) + 0.5
    noise = planted(
        conditions=("A", AWAKE), condition=np.repeat([0, 1], 200), start=np.tile(starts, 2), copy=np.zeros(400, int),
        episode=np.tile(starts // 10, 2), step=np.tile(starts, 2), warmup=np.ones(400, int),
        states={"memory": np.concatenate([rng.integers(0, 8, (200, 4, 2)), real]).astype(np.float32)},
        real=np.tile(real, (2, 1, 1)), before=np.full((400, 1, 2), np.nan),
    )  # fmt: skip
    found = decode_dreams(noise, identity_probe())
    low, high = found.intervals["divergence"][0].T
    assert ((low < found.means["chance"][0]) & (found.means["chance"][0] < high)).all()
    assert (found.p[0] > 0.05).all() and (found.p[1] < 0.002).all()


def test_nearest_waking_state_is_of_another_episode():
    wake, episode = np.array([[1, 0], [0, 1], [1, 1]], np.float32), np.array([1, 2, 2])
    states = np.array([[2, 0], [2, 0], [0, 0]], np.float32)
    near = nearest(states, np.array([1, 2, 1]), wake, episode)
    np.testing.assert_allclose(near, [1 - np.sqrt(0.5), 0, np.nan], atol=1e-6)


def test_pieces_give_what_the_whole_gives_and_everything_is_saved(found, tmp_path):
    batch = planted()
    again = load_result(batch.save(tmp_path / "dreams"))
    assert again == batch and "16 rows" in batch.summary()

    def part(chosen):
        rows = np.flatnonzero(np.isin(batch.start, chosen))
        names = ("condition", "start", "copy", "episode", "step", "warmup", "real", "before")
        return dataclasses.replace(
            batch, **{n: getattr(batch, n)[rows] for n in names}, taken={"action": batch.taken["action"][rows]},
            states={"memory": batch.states["memory"][rows]},
        )  # fmt: skip

    pieces = decode_dreams((part(chosen) for chosen in ([0, 1], [2, 3])), identity_probe(), resamples=50)
    for name, values in found.means.items():
        np.testing.assert_allclose(pieces.means[name], values, err_msg=name)
    joined = DreamBatch.join([part([0, 1]), part([2, 3])])
    assert joined.summary() == batch.summary()
    saved = load_result(found.save(tmp_path / "result"))
    assert saved == found and "leaps" in found.summary() and '"divergence"' in found.to_json()
    few = decode_dreams(batch, identity_probe(), resamples=9, shown=1)
    names = {path.name for path in few.save_figures(tmp_path / "figures")}
    assert {"divergence_vs_horizon.svg", "dream_vs_real.png", "dream_trajectories_world.png", "dream_probmap_1.png",
            "continuity.png", "seed_ablation.png", "error_vs_warmup.png", "dreams.gif"} <= names  # fmt: skip


def test_caveats_of_data_and_probe_and_doubts_are_told():
    leaked = dataclasses.replace(identity_probe().provenance, caveats=("leak",))
    found = decode_dreams(planted(), identity_probe(provenance=leaked), resamples=9)
    assert "CAVEAT: leak" in found.summary() and not found.notes
    same = dataclasses.replace(leaked, caveats=(), seeds={"record": 8})
    assert "very episodes" in decode_dreams(planted(), identity_probe(provenance=same), resamples=9).summary()
    other = dataclasses.replace(leaked, weights="x")
    assert "other weights" in decode_dreams(planted(), identity_probe(provenance=other), resamples=9).summary()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="site 'actor' is not in both"):
        decode_dreams(planted(), identity_probe(), site="actor")
    with pytest.raises(ValueError, match="the probe decodes 'goal'"):
        decode_dreams(planted(), identity_probe(target="goal"))
    with pytest.raises(ValueError, match="dream from more"):
        decode_dreams(planted(episode=np.zeros(16, int)), identity_probe())
    with pytest.raises(ValueError, match="no dreams"):
        decode_dreams([], identity_probe())
