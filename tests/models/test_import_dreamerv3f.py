"""Recordings and logs of vviggyy/dreamerv3f. Its own files are not in this repository: tests of them skip without."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem.analysis.fit_probe import fit_probe
from torchmem.cli import main
from torchmem.models.importers.array_pickle import PickleRefused
from torchmem.models.importers.dreamerv3f_episodes import LEAK, EpisodesError, facing_from_actions, import_episodes
from torchmem.models.importers.dreamerv3f_logs import LogsError, crafter_score, import_logs, read_rows
from torchmem.recording import Recording
from torchmem.result import Provenance
from torchmem.training.curves import read_run


def episode(length: int = 12, seed: int = 0, **more) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "player_pos": rng.integers(0, 9, (length, 2)).astype(np.float32), "reward": np.zeros(length),
        "action": rng.integers(0, 17, length).astype(np.int32), "deter": np.float32(rng.normal(size=(length, 8))),
        "stoch": np.eye(4, dtype=np.float32)[rng.integers(0, 4, (length, 3))], "length": length, "episode": 1, **more,
    }  # fmt: skip


def folder_of(path, *episodes):
    path.mkdir()
    for i, one in enumerate(episodes, 1):
        (path / f"episode_{i:03d}.pkl").write_bytes(pickle.dumps(one))
    return path


def test_episodes_become_a_recording_that_says_the_position_leaked(tmp_path):
    source = folder_of(tmp_path / "t", *(episode(seed=i) for i in range(4)))
    rec = import_episodes(source, tmp_path / "rec")
    assert rec.activations["dynamics.deter"].shape == (48, 8) and rec.activations["dynamics.stoch"].shape == (48, 3, 4)
    assert rec.episodes["complete"].all() and rec.units["pos"] == "cells"
    np.testing.assert_array_equal(rec.covariates["is_terminal"][:], rec.step == 11)
    result = fit_probe(rec, "dynamics.deter", "pos", folds=3, draws=1, resamples=5)
    assert LEAK in result.summary()
    assert LEAK in result.plot().figure.get_supxlabel()
    result.save(tmp_path / "result")
    assert LEAK in (tmp_path / "result" / "result.json").read_text()


@pytest.mark.parametrize(("layers", "leaks"), [(("act/enc/cnn0",), False), (("act/enc/mlp0", "act/enc/cnn0"), True)])
def test_layers_tell_whether_the_position_went_in(tmp_path, layers, leaks):
    more = {name: np.zeros((12, 5), np.float32) for name in layers}
    rec = import_episodes(folder_of(tmp_path / "t", episode(**more)), tmp_path / "rec")
    assert rec.provenance.caveats == ((LEAK,) if leaks else ())
    assert "encoder.cnn.0" in rec.activations
    named = import_episodes(tmp_path / "t" / "episode_001.pkl", tmp_path / "named", leak="no" if leaks else "yes")
    assert bool(named.provenance.caveats) is not leaks, "the user has the last word"


def test_newer_keys(tmp_path):
    counts = [{"b": t, "a": 0} for t in range(12)]
    more = {"player_facing": np.tile([0, 1], (12, 1)), "vital_food": np.arange(12), "achievements": counts}
    rec = import_episodes(folder_of(tmp_path / "t", episode(**more)), tmp_path / "rec")
    assert "facing_from_actions" not in rec.covariates
    np.testing.assert_array_equal(rec.covariates["achievements"][:], np.stack([np.zeros(12), np.arange(12)], 1))
    np.testing.assert_array_equal(rec.covariates["food"][:], np.arange(12))


def test_facing_is_the_last_move():
    np.testing.assert_array_equal(
        facing_from_actions(np.array([0, 1, 5, 4, 0])), [(0, 1), (0, 1), (-1, 0), (-1, 0), (0, 1)]
    )


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize(
    ("content", "error"), [({"player_pos": Evil()}, PickleRefused), ({"image": np.zeros(3)}, EpisodesError)]
)
def test_other_pickles_are_refused(tmp_path, content, error):
    with pytest.raises(error, match=r"episode_001\.pkl"):
        import_episodes(folder_of(tmp_path / "t", content), tmp_path / "rec")
    assert not (tmp_path / "rec").exists()


def test_old_provenance_has_no_caveats():
    data = {name: value for name, value in Provenance("0").to_json().items() if name != "caveats"}
    assert Provenance.from_json(data).caveats == ()
    held = dataclasses.replace(Provenance("0"), caveats=("x",))
    assert Provenance.from_json(json.loads(json.dumps(held.to_json()))) == held and held.again().caveats == ("x",)


@needs_dreamerv3f
def test_fixture_episodes(tmp_path, capsys):
    assert main(["import", "dreamerv3f-episodes", str(DREAMERV3F), "--out", str(tmp_path / "rec")]) == 0
    rec = Recording(tmp_path / "rec")
    assert rec.episodes["length"].tolist() == [179, 201, 210, 229, 175]
    rewards = np.add.reduceat(rec.covariates["reward"][:], rec.episodes["start"])
    np.testing.assert_allclose(rewards, [4.1, 4.1, 4.1, 5.1, 4.1], atol=1e-5)
    pos, deter = rec.covariates["pos"][:], rec.activations["dynamics.deter"][:]
    assert (pos[rec.episodes["start"]] == 16).all() and (rec.covariates["world"][:] == 0).all()
    assert np.corrcoef(deter[:, 436], pos[:, 1])[0, 1] == pytest.approx(0.875, abs=5e-4)
    assert np.corrcoef(deter[:, 245], pos[:, 0])[0, 1] == pytest.approx(-0.789, abs=5e-4)
    assert (deter.view(np.uint32) & 0xFFFF == 0).all(), "bfloat16"
    stoch = rec.activations["dynamics.stoch"][:]
    assert (stoch.sum(-1) == 1).all() and set(np.unique(stoch)) == {0, 1}
    assert rec.provenance.caveats == (LEAK,)


@needs_dreamerv3f
def test_fixture_replay_chunk(tmp_path):
    rec = import_episodes(next(DREAMERV3F.glob("*.npz")), tmp_path / "rec")
    assert rec.steps == 388 and rec.episodes["length"].tolist() == [139, 164, 85]
    assert rec.episodes["complete"].tolist() == [False, True, False]
    assert rec.activations["dynamics.stoch"].shape == (388, 32, 4) and rec.covariates["is_terminal"][:].sum() == 2
    assert "world" not in rec.covariates


@needs_dreamerv3f
def test_fixture_logs(tmp_path):
    metrics, scores = (read_rows(DREAMERV3F / f"{name}.jsonl") for name in ("metrics", "scores"))
    assert len(metrics) == 242 and len(scores) == 231 and scores[-1]["episode/score"] == pytest.approx(3.1)
    assert len({key for row in metrics for key in row}) == 65
    train = [row for row in metrics if "train/loss/image" in row]
    assert len(train) == 11 and (metrics[0]["step"], metrics[-1]["step"]) == (81, 41830)
    ends = [[row[key] for row in (train[0], train[-1])] for key in
            ("train/loss/image", "train/loss/player_pos", "train/ent/action")]  # fmt: skip
    np.testing.assert_allclose(ends, [[496.8, 82.2], [4.77, 0.0129], [2.83, 0.515]], rtol=5e-3)
    run = read_run(import_logs(DREAMERV3F, tmp_path / "run"))
    assert len(run.series("env_steps", "episode/return")[0]) == 231 and len(run.rows) == 242


def test_logs_name_the_bad_line(tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"step": 1}\n{"stp": 1}\n')
    with pytest.raises(LogsError, match="line 2 has no step"):
        import_logs(tmp_path, tmp_path / "run")


def test_crafter_score_has_its_ends():
    assert crafter_score([0] * 22) == 0 and crafter_score([100] * 22) == pytest.approx(100)
    assert crafter_score([100] * 21 + [0]) == pytest.approx(101 ** (21 / 22) - 1)
    with pytest.raises(ValueError, match="22 success rates"):
        crafter_score([0.5] * 21)
