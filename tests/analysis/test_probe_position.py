"""Planted places are found, noise is not, and the decoder of the original gives the errors of the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional

from tests.analysis.recordings import Memory, clock, drift
from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem.analysis import _position_lda as lda
from torchmem.analysis._position_data import scale_site
from torchmem.analysis._position_nets import Prnn, train_prnn
from torchmem.analysis.probe_position import PositionResult, probe_position
from torchmem.cli import main
from torchmem.models.importers.dreamerv3f_episodes import LEAK, import_episodes
from torchmem.recording import Recording
from torchmem.result import load_result

QUICK = {"draws": 9, "resamples": 200, "folds": 4}
SIDE = 6


def walk(rng: np.random.Generator, episode: np.ndarray, side: int = SIDE) -> np.ndarray:
    """(N, 2) a random walk on a square that starts anew in each episode."""
    pos = np.empty((len(episode), 2), np.int64)
    for t in range(len(episode)):
        if t == 0 or episode[t] != episode[t - 1]:
            pos[t] = rng.integers(0, side, 2)
        else:
            step = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])[rng.integers(4)]
            pos[t] = np.clip(pos[t - 1] + step, 0, side - 1)
    return pos


def place_world(seed: int = 0, episodes: int = 12, length: int = 60) -> Memory:
    """Site "encoder" knows nothing, "dynamics.deter" has place fields, "actor" the coordinates; all drift besides."""
    rng = np.random.default_rng(seed)
    episode, _ = clock(episodes, length)
    pos = walk(rng, episode)
    centres = rng.uniform(0, SIDE - 1, (30, 2))
    fields = np.exp(-((pos[:, None] - centres) ** 2).sum(-1) / 3)
    return Memory(
        {
            "actor": (pos @ rng.normal(size=(2, 8)) + 0.8 * drift(rng, episode, 8)).astype(np.float32),
            "dynamics.deter": (fields + 0.3 * drift(rng, episode, 30)).astype(np.float32),
            "encoder": drift(rng, episode, 12).astype(np.float32),
        },
        {"pos": pos + 3, "world": episode // 3}, episode, {"pos": "cells"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> PositionResult:
    return probe_position(place_world(), pixels=None, **QUICK)


def test_planted_places_are_decoded_and_noise_is_not(found: PositionResult):
    assert found.sites == ("encoder", "dynamics.deter", "actor"), "early to late"
    error = found.scores["manhattan"]
    assert error[1] < 0.6 and error[2] < 1.5 and error[0] > 2.5
    assert found.scores["accuracy"][1] > 0.6 and found.scores["bits"][1] > 2 and found.scores["bits"][0] < 0.3
    assert found.scores["median"][1] == 0 and found.scores["expected"][2] < 1.5
    assert (found.intervals["manhattan"][:, 0] < error).all() and (error < found.intervals["manhattan"][:, 1]).all()
    for name in ("exchanged", "shifted"):
        assert found.controls[name]["p"][1:].tolist() == [0.1, 0.1] and found.controls[name]["p"][0] > 0.1
    assert found.origin == (3, 3) and found.shape == (SIDE, SIDE)


def test_chance_levels_are_those_of_the_definitions(found: PositionResult):
    tile = found.tile.astype(float)
    every = np.stack(np.meshgrid(range(SIDE), range(SIDE), indexing="ij"), -1).reshape(-1, 2)
    away = np.abs(tile[:, None] - every).sum(-1)
    uniform = found.controls["uniform"]
    assert uniform["manhattan"][0] == pytest.approx(away.mean()) and uniform["nll"][0] == pytest.approx(np.log(36))
    assert uniform["median"][0] == np.median(away) and uniform["accuracy"][0] == pytest.approx(1 / 36)
    assert found.controls["occupancy"]["bits"][0] == pytest.approx(0)
    assert found.controls["modal tile"]["manhattan"][0] > 2.2
    assert found.controls["time only"]["manhattan"][0] > 2.2


@pytest.mark.parametrize("decoder", ["ridge", "mlp", "prnn"])
def test_other_decoders_find_it_too(decoder: str):
    world = place_world(episodes=8)
    result = probe_position(world, ["dynamics.deter", "encoder"], decoder=decoder, pixels=None, draws=3, resamples=50,
                            folds=4, prnn=Prnn(iterations=400, rate=1e-2, decay=0.0, judged=0))  # fmt: skip
    assert result.scores["manhattan"][1] < 1.7 and result.scores["manhattan"][0] > 2.2
    back = result.decode("dynamics.deter", world.activations["dynamics.deter"])
    assert np.abs(back.best - world.covariates["pos"]).sum(1).mean() < 1.6
    np.testing.assert_allclose(back.p.sum(1), 1, rtol=1e-5)
    assert back.maps(result.origin, result.shape).shape == (len(world.episode), *result.shape)


def test_saved_decoder_is_the_one_that_was_fitted(found: PositionResult, tmp_path):
    world = place_world()
    other = load_result(found.save(tmp_path / "probe"))
    assert isinstance(other, PositionResult) and other == found
    x = world.activations["dynamics.deter"]
    decoded = other.decode("dynamics.deter", x)
    assert (np.abs(decoded.best - world.covariates["pos"]).sum(1) == 0).mean() > 0.8
    np.testing.assert_allclose(decoded.mean, decoded.p @ decoded.tiles, atol=1e-4)
    with pytest.raises(ValueError, match="30 where its decoder was made"):
        other.decode("dynamics.deter", x[:, :3])
    with pytest.raises(ValueError, match="no decoder of 'memory'"):
        other.decode("memory", x)


def test_tiles_are_scikit_learns_discriminants():
    world, alpha = place_world(), 0.1
    x = torch.as_tensor(scale_site(world.activations["dynamics.deter"], 99).z)[None]
    y = np.unique(world.covariates["pos"], axis=0, return_inverse=True)[1].reshape(-1)
    tiles = lda.Tiles.of(x, torch.zeros(len(y), dtype=torch.int64))
    ours = lda.fit(tiles, lda.Labelling.of(tiles, torch.as_tensor(y), y.max() + 1), (), [alpha])[0]

    class Shrunk:
        def fit(self, values):
            self.covariance_ = np.cov(values.T, bias=True) + alpha * np.eye(values.shape[1])

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk()).fit(x[0].numpy(), y)
    np.testing.assert_allclose(ours.log_p(x, 1.0)[0], theirs.predict_log_proba(x[0].numpy()), atol=2e-2)


def test_wide_sites_are_turned_to_components_and_say_so():
    world = place_world()
    fields = world.activations["dynamics.deter"]
    world.activations = {"wide": np.repeat(fields, 40, axis=1)}
    result = probe_position(world, widest=30, pixels=None, **QUICK)
    assert result.scores["manhattan"][0] < 0.7 and "1200 units turned to 30 components" in result.notes[0]
    decoded = result.decode("wide", world.activations["wide"])
    assert np.abs(decoded.best - world.covariates["pos"]).sum(1).mean() < 0.5


def test_groups_pixels_untrained_and_holdout():
    world = place_world()
    pictures = np.zeros((len(world.episode), 64, 64, 3), np.uint8)
    x, y = (world.covariates["pos"] - 3).T
    pictures[np.arange(len(x)), x * 10, y * 10] = 255
    world.covariates["obs.image"] = pictures
    result = probe_position(world, "encoder", groups="world", untrained=place_world(seed=1), **(QUICK | {"folds": 3}))
    assert result.groups == 4 and result.controls["pixels only"]["manhattan"][0] < 0.2
    assert result.controls["untrained"]["manhattan"][0] > 2
    one = probe_position(world, "dynamics.deter", holdout=0.2, **QUICK)
    assert len(np.unique(one.episode[one.held_out])) == 2 and one.steps < len(x) / 4
    assert one.scores["manhattan"][0] < 0.8 and np.isnan(one.errors("dynamics.deter")).sum() == len(x) - one.steps


def test_slow_noise_is_rarely_significant():
    """Both drift, neither knows the other: p <= 0.1 about once in ten."""
    hits = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        episode, _ = clock(8, 50)
        world = Memory({"slow": drift(rng, episode, 20).astype(np.float32)}, {"pos": walk(rng, episode)}, episode)
        result = probe_position(world, pixels=None, draws=9, resamples=5, folds=4, seed=seed)
        hits += sum(result.controls[name]["p"][0] <= 0.1 for name in ("exchanged", "shifted"))
    assert hits <= 4


def test_prnn_counts_rows_as_the_plain_procedure_draws_them():
    rng = np.random.default_rng(0)
    x, place = torch.as_tensor(rng.normal(size=(50, 7)).astype(np.float32)), torch.as_tensor(rng.integers(0, 12, 50))
    ours = train_prnn(x, place, 12, Prnn(iterations=30), seed=5)
    generator = torch.Generator().manual_seed(5)
    layer = torch.nn.Linear(7, 12, bias=False)
    layer.weight.data = (torch.rand(12, 7, generator=generator) * 2 - 1) * 7**-0.5
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.3)
    for _ in range(30):
        rows = torch.randint(50, (37,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(layer(x[rows]), place[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(ours, layer.weight.data, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "lda"}, "tiles, ridge, mlp or prnn"), ({"target": "speed"}, "no covariate 'speed'"),
        ({"folds": 13}, "folds=13 over 12 groups"), ({"area": (5, 5)}, r"beyond area=\(5, 5\)"),
        ({"holdout": 0.9}, "leaves too few groups"), ({"cell": 0.001}, "choose a larger cell"),
        ({"target": "flat"}, "has 1 columns"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_clear_error(change: dict, message: str):
    world = place_world()
    world.covariates["flat"] = world.covariates["pos"][:, 0]
    with pytest.raises(ValueError, match=message):
        probe_position(world, **(QUICK | change))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Recording:
    return import_episodes(DREAMERV3F, tmp_path_factory.mktemp("original") / "rec")


@needs_dreamerv3f
def test_original_recording_by_one_command(original: Recording, tmp_path, capsys):
    words = ["probe", str(original.path), "--target", "pos", "--area", "32", "32", "--draws", "4", "--json"]
    assert main([*words, "--figures", str(tmp_path / "figures"), "--out", str(tmp_path / "probe")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sites"] == ["dynamics.stoch", "dynamics.deter"] and answer["caveats"] == [LEAK]
    stoch, deter = answer["scores"]["manhattan"]
    assert deter < 1.1 and stoch < 2.6
    levels = {name: control["manhattan"][0] for name, control in answer["controls"].items()}
    assert 16.5 < levels["uniform"] < 17.5 and 4.0 < levels["occupancy"] < 4.4 and levels["modal tile"] < 4.2
    assert levels["pixels only"] < deter, "what the agent sees now tells more than its memory"
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names >= {"layer_comparison.svg", "probmap_world_dynamics_deter.png"}
    assert LEAK in (tmp_path / "probe" / "result.json").read_text()
    assert LEAK in (tmp_path / "figures" / "layer_comparison.svg").read_text()


def errors_of_the_original(rec: Recording, site: str, iterations: int) -> float:
    """Mean Manhattan error of its decoder, trained on episodes 1 to 4 and tested on 5, as the reference numbers are."""
    x = torch.as_tensor(rec.activations[site][:].reshape(rec.steps, -1))
    tile = torch.as_tensor(rec.covariates["pos"][:].astype(np.int64))
    train = torch.as_tensor(rec.episode < 4)
    weight = train_prnn(x[train], (tile[:, 0] * 32 + tile[:, 1])[train], 1024, Prnn(iterations=iterations), seed=0)
    guess = (x[~train] @ weight.T).argmax(-1)
    return (torch.stack([guess // 32, guess % 32], 1) - tile[~train]).abs().sum(1).float().mean().item()


@needs_dreamerv3f
def test_decoder_of_the_original_has_its_errors_for_stoch(original: Recording):
    assert 2.7 <= errors_of_the_original(original, "dynamics.stoch", 400) <= 3.3, "2.99 after 2,000"


@needs_dreamerv3f
@pytest.mark.slow
def test_decoder_of_the_original_has_its_errors_for_deter(original: Recording):
    assert 1.3 <= errors_of_the_original(original, "dynamics.deter", 1000) <= 1.7
