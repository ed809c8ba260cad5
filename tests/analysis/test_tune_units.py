"""Planted cells are named, shuffled ones are not, and numbers are those of pynapple and of the definitions."""

from __future__ import annotations

import json

import numpy as np
import pynapple as nap
import pytest
from scipy import ndimage, signal

from tests.analysis.recordings import clock, drift
from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem.analysis import _tuning_fields as shapes
from torchmem.analysis._tuning_groups import GROUPS
from torchmem.analysis._tuning_maps import explained, information, mean_maps, skaggs
from torchmem.analysis.nulls import shift_rows, spans
from torchmem.analysis.tune_units import TuningResult, tune_units
from torchmem.cli import main
from torchmem.models.importers.dreamerv3f_episodes import LEAK, import_episodes
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import load_result

SIDE, EACH = 12, 40
KINDS = ("single_field", "border_cells", "HD_cells", "spatial_HD", "untuned")


def roam(rng: np.random.Generator, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position (T, 2), heading (T,) of 4) of a walker that keeps its heading most of the time, and turns at walls."""
    ways = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    pos, turn = np.empty((len(episode), 2), np.int64), np.empty(len(episode), np.int64)
    for t in range(len(episode)):
        if t == 0 or episode[t] != episode[t - 1]:
            pos[t], turn[t] = rng.integers(0, SIDE, 2), rng.integers(4)
            continue
        turn[t] = rng.integers(4) if rng.random() < 0.5 else turn[t - 1]
        step = pos[t - 1] + ways[turn[t]]
        pos[t] = step if (step >= 0).all() and (step < SIDE).all() else pos[t - 1]
    return pos, turn


def plant(rng: np.random.Generator, episode: np.ndarray, pos: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(T, 5 * EACH) rates, kind by kind as in KINDS, with slow noise."""
    t = len(pos)
    centre, wide = rng.uniform(2, SIDE - 3, (EACH, 2)), rng.uniform(1.1, 1.6, EACH)
    place = np.exp(-((pos[:, None] - centre) ** 2).sum(-1) / (2 * wide**2))
    wall = np.stack([pos[:, 0], SIDE - 1 - pos[:, 0], pos[:, 1], SIDE - 1 - pos[:, 1]], 1)
    border = (wall[:, rng.integers(0, 4, EACH)] < 1).astype(float)
    heading = (turn[:, None] == rng.integers(0, 4, EACH)).astype(float)
    both = (turn[:, None] == rng.integers(0, 4, EACH)) * np.exp(
        -((pos[:, None] - rng.uniform(2, SIDE - 3, (EACH, 2))) ** 2).sum(-1) / (2 * 1.8**2)
    )
    clean = np.concatenate([place, border, heading, both, np.zeros((t, EACH))], 1)
    slow = drift(rng, episode, clean.shape[1], keep=0.9)
    noise = np.where(np.arange(clean.shape[1]) >= 4 * EACH, 0.5 * np.abs(slow), 0.04 * slow)
    return np.maximum(clean + noise, 0)


def world(path, rates: np.ndarray, pos: np.ndarray, turn: np.ndarray, episode: np.ndarray) -> Recording:
    with RecordingWriter(path, control_hz=1.0, units={"pos": "cells"}) as out:
        for rows in spans(episode):
            covariates = {"pos": pos[rows] + 2, "facing": np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])[turn[rows]]}
            out.append({"dynamics.deter": rates[rows].astype(np.float32)}, covariates)
        out.finish()
    return Recording(path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Recording, TuningResult]:
    rng = np.random.default_rng(0)
    episode, _ = clock(16, 400)
    pos, turn = roam(rng, episode)
    rec = world(tmp_path_factory.mktemp("planted") / "rec", plant(rng, episode, pos, turn), pos, turn, episode)
    return rec, tune_units(rec)


def test_planted_cells_are_named(planted: tuple[Recording, TuningResult]):
    named = np.array(GROUPS)[planted[1].groups["dynamics.deter"]].reshape(len(KINDS), EACH)
    right = {kind: float((row == kind).mean()) for kind, row in zip(KINDS, named)}
    assert np.mean(list(right.values())) >= 0.95 and min(right.values()) >= 0.9, right


def test_shuffled_units_pass_at_the_stated_rate(tmp_path, planted: tuple[Recording, TuningResult]):
    """The same cells, each turned against the positions by its own shifts: 5 % may pass; bounds for 200 units."""
    rec, _ = planted
    rng = np.random.default_rng(1)
    rates = rec.activations["dynamics.deter"][:]
    turned = np.stack([unit[shift_rows(rec.episode, rng)] for unit in rates.T], 1)
    facing = rec.covariates["facing"][:]
    turn = np.unique(facing, axis=0, return_inverse=True)[1].reshape(-1)
    other = world(tmp_path / "rec", turned, rec.covariates["pos"][:] - 2, turn, rec.episode)
    result = tune_units(other)
    scores = result.scores["dynamics.deter"]
    assert (np.array(GROUPS)[result.groups["dynamics.deter"]] != "untuned").mean() <= 0.05
    for name in ("si_p", "hd_p"):
        assert 0.01 <= (scores[name] <= 0.05).mean() <= 0.12, name
    assert abs(np.mean(scores["si"])) < 0.01 < np.mean(scores["si_raw"]), "the bias is taken away"
    assert (scores["ev"] < 0.02).all() and (scores["ev_in_sample"] > 0).all()


def test_maps_and_information_are_pynapples(planted: tuple[Recording, TuningResult]):
    rec, result = planted
    frame, position = rec.tsd("dynamics.deter"), rec.tsd("pos")
    few = nap.TsdFrame(t=frame.t, d=frame.values[:, ::50], time_support=frame.time_support)
    edges = [np.arange(2, SIDE + 3) - 0.5] * 2
    theirs = nap.compute_tuning_curves(few, position, bins=edges, feature_names=["x", "y"])
    ours = result.tuning_curves("dynamics.deter").isel(unit=slice(None, None, 50))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(ours.attrs["occupancy"], theirs.attrs["occupancy"])
    np.testing.assert_allclose(ours.x, theirs.x)
    bits = nap.compute_mutual_information(theirs, np.nanmean(few.values, 0))["bits/spike"]
    np.testing.assert_allclose(result.scores["dynamics.deter"]["si_raw"][::50], bits, atol=1e-4)


def test_epochs_and_where_choose_steps(planted: tuple[Recording, TuningResult]):
    rec, _ = planted
    few = tune_units(rec, epochs=rec.epochs()[:3], shifts=0, corrected=False)
    assert few.steps == int(rec.episodes["length"][:3].sum()) and few.episodes == 3
    same = tune_units(rec, where=rec.episode < 3, shifts=0, corrected=False)
    np.testing.assert_array_equal(same.maps["dynamics.deter"], few.maps["dynamics.deter"])


def test_headings_are_categories_and_not_bins_of_an_angle():
    """Left-only and down-only cells have 2 bits, left-or-down 1 bit: bins of the angle would give all of them one."""
    turn, episode = np.tile(np.repeat(np.arange(4), 5), 10), np.zeros(200, int)
    cells = np.stack([turn == 2, turn == 3, (turn == 2) | (turn == 3), np.ones(200)], 1).astype(float)
    found = information(cells, turn, 4, episode, 0, np.random.default_rng(0))
    np.testing.assert_allclose(found.raw, [2, 2, 1, 0], atol=1e-6)


def test_unvisited_bins_are_no_zeros():
    activity, bins = np.array([[1.0], [1.0], [3.0]]), np.array([0, 0, 2])
    np.testing.assert_array_equal(mean_maps(activity, bins, 4)[:, 0], [1, np.nan, 3, np.nan])
    assert skaggs(np.array([[2.0], [np.nan], [2.0]]), np.array([5, 0, 5]))[0] == 0


def test_held_out_variance_by_hand():
    rng = np.random.default_rng(0)
    bins, fold = rng.integers(0, 5, 90), np.repeat([0, 1, 2], 30)
    bins[fold == 2] %= 3
    activity = rng.normal(size=(90, 3)) + bins[:, None]
    bins[0] = 7  # nobody else was there
    error = np.zeros(3)
    for f in range(3):
        train = fold != f
        for t in np.flatnonzero(fold == f):
            same = train & (bins == bins[t])
            guess = activity[same].mean(0) if same.any() else activity[train].mean(0)
            error += (activity[t] - guess) ** 2
    total = ((activity - activity.mean(0)) ** 2).sum(0)
    in_sample, held_out = explained(activity, bins, 8, fold)
    np.testing.assert_allclose(held_out, 1 - error / total)
    guess = mean_maps(activity, bins, 8)[bins]
    np.testing.assert_allclose(in_sample, 1 - (activity - guess).var(0) / activity.var(0))
    assert explained(np.ones((90, 1)), bins, 8, fold)[1] == 0 and np.isnan(explained(activity, bins, 8)[1]).all()


def by_unit(field: np.ndarray) -> dict[str, float]:
    """Fields of one map, the slow way, as the definitions say."""
    correlation = signal.correlate2d(field, field)
    correlation = np.round(correlation / correlation.max(), 5)
    tops = (ndimage.maximum_filter(correlation, 3) == correlation) & (correlation > 0.15)
    label, _ = ndimage.label(correlation > 0.5, np.ones((3, 3)))
    core = np.argwhere(label == label[tuple(n // 2 for n in label.shape)])
    short, long = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(core.T)), 0, None)) * 2
    peaks = (ndimage.label(tops, np.ones((3, 3)))[1] + 1) // 2
    return {"peaks": peaks, "field_size": np.sqrt(len(core)), "asymmetry": long / max(short, 1)}


def test_fields_of_all_units_are_those_of_each():
    rng = np.random.default_rng(0)
    maps = ndimage.gaussian_filter(rng.random((20, 9, 13)) ** 6, (0, 1, 1))
    maps[3] = 0
    found = shapes.fields(maps)
    assert all(np.isnan(values[3]) for values in found.values())
    for unit in (*range(3), *range(4, 20)):
        for name, value in by_unit(maps[unit]).items():
            assert found[name][unit] == pytest.approx(value, abs=2e-3), (name, unit)


def test_border_score_knows_the_map():
    walls = np.zeros((12, 12), bool)
    walls[5:7, 5:7] = True  # a pillar
    groups, far = shapes.wall_groups(walls)
    assert groups["left"].sum() == 24 and not groups["left"][2:].any() and groups["inner"][4, 5] and not far[3, 5]
    maps = np.stack([np.where(groups["inner"], 1.0, 0), np.where(groups["top"], 1.0, 0), np.ones((12, 12)), far])
    maps[:, walls] = np.nan
    score = shapes.border_score(maps, walls)
    np.testing.assert_allclose(score[:3], [1, 1, 0], atol=1e-12)
    assert score[3] == -1
    half = walls.copy()
    half[6:] = True  # the outside reaches in: what was far from the right wall is beside it now
    assert shapes.wall_groups(half)[0]["right"][4:6, 1].all()


def test_neighbour_statistics_by_the_double_sum():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 5, 6))
    maps[:, 2, 3] = np.nan
    maps[2, np.isfinite(maps[2])] = 1.0
    found = shapes.neighbours(maps)
    places = np.argwhere(np.isfinite(maps[0]))
    weight = (np.abs(places[:, None] - places).max(-1) == 1).astype(float)
    for unit in range(2):
        x = maps[unit][tuple(places.T)]
        z, n = x - x.mean(), len(x)
        product = np.outer(x, x)
        expected = {
            "moran": n / weight.sum() * (weight * np.outer(z, z)).sum() / (z**2).sum(),
            "geary": (n - 1) * (weight * (x[:, None] - x) ** 2).sum() / (2 * weight.sum() * (z**2).sum()),
            "getis": (weight * product).sum() / (product.sum() - np.trace(product)),
        }
        for name, value in expected.items():
            assert found[name][unit] == pytest.approx(value), name
    assert all(np.isnan(values[2]) for values in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": "memory"}, "no site 'memory'"), ({"target": "facin"}, "did you mean 'facing'"),
        ({"shifts": 20}, "use 39 or more"), ({"walls": np.zeros((3, 3))}, r"walls has shape \(3, 3\)"),
        ({"thresholds": {"sii": 1}}, "no threshold 'sii'"), ({"rectify": "abs"}, "relu, shift or none"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_clear_error(planted, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tune_units(planted[0], **change)


@needs_dreamerv3f
def test_original_recording_by_one_command(tmp_path, capsys):
    rec = import_episodes(DREAMERV3F, tmp_path / "rec")
    words = ["tune", str(rec.path), "--page", str(tmp_path / "page.html"), "--out", str(tmp_path / "tuning")]
    assert main([*words, "--figures", str(tmp_path / "figures"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["caveats"] == [LEAK]
    stoch, deter = (answer["scores"][name] for name in ("dynamics.stoch", "dynamics.deter"))
    assert np.mean(stoch["si_raw"]) == pytest.approx(0.3828, abs=5e-5)
    bits = [v for v in deter["si_raw"] if v is not None]
    assert np.mean(bits) == pytest.approx(0.8335, abs=5e-5) and len(bits) == 512 - 80
    chance = np.mean(stoch["si_raw"]) - np.mean(stoch["si"])
    assert chance == pytest.approx(0.164, abs=0.02), "what few visits give by themselves"
    assert np.mean(stoch["ev_in_sample"]) == pytest.approx(0.153, abs=5e-4)
    assert np.mean(deter["ev_in_sample"]) == pytest.approx(0.385, abs=5e-4)
    signed = tune_units(rec, "dynamics.deter", rectify="none", corrected=False, shifts=0)
    assert signed.scores["dynamics.deter"]["ev_in_sample"].mean() == pytest.approx(0.497, abs=5e-4)
    assert np.isnan(signed.scores["dynamics.deter"]["si_raw"]).all(), "no information of negative rates"
    loaded = load_result(tmp_path / "tuning")
    assert isinstance(loaded, TuningResult) and LEAK in loaded.summary()
    page = (tmp_path / "page.html").read_text()
    assert LEAK in page and "http" not in page.replace(json.dumps(loaded.provenance.to_json(), indent=1), "")
    assert LEAK in (tmp_path / "figures" / "layer_summary.svg").read_text()


@needs_dreamerv3f
def test_held_out_variance_of_the_original_is_that_of_zeros_where_nobody_was(tmp_path):
    """-.147, -5.25, -2.16: the map of episodes 1 to 4 with 0 for tiles they never met, on episode 5."""
    rec = import_episodes(DREAMERV3F, tmp_path / "rec")
    tile = np.unique(rec.covariates["pos"][:], axis=0, return_inverse=True)[1].reshape(-1)
    train = rec.episode < 4
    deter = rec.activations["dynamics.deter"][:]
    for x, expected in ((rec.activations["dynamics.stoch"][:].reshape(994, -1), -0.147), (np.maximum(deter, 0), -5.25),
                        (deter, -2.16)):  # fmt: skip
        held = x[~train].astype(float)
        guess = np.nan_to_num(mean_maps(x[train], tile[train], tile.max() + 1))[tile[~train]]
        variance = held.var(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(variance > 0, 1 - (held - guess).var(0) / variance, 0)
        assert share.mean() == pytest.approx(expected, rel=0.02)
