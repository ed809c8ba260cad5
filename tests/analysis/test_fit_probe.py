"""Planted answers are found, and nothing where nothing is. Each control is shown to catch what it is there for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict

from tests.analysis.recordings import Memory, clock, cue_world, drift
from torchmem.analysis.fit_probe import ProbeResult, fit_probe
from torchmem.analysis.nulls import deal_folds, spans
from torchmem.cli import main
from torchmem.recording import RecordingWriter
from torchmem.result import load_result

KEPT = "steps_since_cue >= 0"
QUICK = {"draws": 19, "resamples": 200, "alphas": (1e-2, 1.0)}


@pytest.fixture(scope="module")
def found() -> ProbeResult:
    return fit_probe(cue_world(), "*", "cue_type", where=KEPT, by="steps_since_cue", bins=30, **QUICK)


def test_planted_cue_is_read_from_memory_through_the_delay(found: ProbeResult):
    assert found.sites == ("memory", "forgetful", "wide") and found.widths == (6, 9, 20)
    assert found.kind == "logistic" and found.metric == "accuracy" and found.classes == ("0", "1")
    assert found.score[0] > 0.93 and found.interval[0, 0] > 0.9
    assert found.score[2] < 0.6
    delay = found.bins >= 3
    assert (found.by_score[0, delay] > 0.85).all(), "the memory lasts"
    assert (found.by_score[1, ~delay] > 0.8).all() and found.by_score[1, delay].mean() < 0.65, "the other forgets"
    assert found.by_steps.sum() == found.steps


def test_controls_say_which_score_means_something(found: ProbeResult):
    exchanged = found.controls["exchanged"]
    assert exchanged["p"][0] == 0.05 and exchanged["p"][2] > 0.05
    assert (abs(exchanged["score"] - 0.45) < 0.1).all() and (exchanged["spread"] > 0.005).all()
    np.testing.assert_allclose(exchanged["selectivity"], found.score - exchanged["score"])
    for name in ("majority", "time only"):
        assert (found.controls[name]["score"] < 0.51).all() and found.controls[name]["p"][0] < 0.01
    assert (found.controls["majority"]["score"] >= 0.5).all()
    seen = found.by_controls["observation only"][0]
    assert (seen[found.bins < 3] == 1).all() and seen[found.bins >= 3].mean() < 0.6
    assert "shifted" not in found.controls, "a cue that holds for a whole episode looks the same shifted"
    assert any("does not change within an episode" in note for note in found.notes)


def test_exchanged_labels_show_nothing():
    """The same activations with the cues of other episodes: p <= 0.1 about once in ten, here of 2 sites in 8 worlds."""
    hits, scores = 0, []
    for seed in range(8):
        world = cue_world(seed)
        first = np.unique(world.episode, return_index=True)[1]
        other = np.random.default_rng(seed + 100).permutation(40)
        world.covariates["cue_type"] = world.covariates["cue_type"][first][other][world.episode]
        result = fit_probe(world, ["memory", "wide"], "cue_type", where=KEPT, draws=9, resamples=10, alphas=(0.1,))
        hits += (result.controls["exchanged"]["p"] <= 0.1).sum()
        scores.append(result.score)
    assert hits <= 5 and abs(np.mean(scores) - 0.45) < 0.08


def test_ridge_and_circular_targets():
    world = cue_world()
    result = fit_probe(world, "memory", "pos", **QUICK)
    assert result.kind == "ridge" and result.metric == "r2" and result.score[0] > 0.99
    assert result.directions["memory"].shape == (6, 2)
    back = world.activations["memory"] @ result.directions["memory"] + result.biases["memory"]
    np.testing.assert_allclose(back, world.covariates["pos"], atol=0.3)
    assert result.controls["shifted"]["p"][0] == 0.05 and result.controls["shifted"]["selectivity"][0] > 0.2
    assert abs(result.controls["mean"]["score"][0]) < 1e-12
    angle = fit_probe(world, "memory", "heading", **QUICK)
    assert angle.kind == "circular" and angle.score[0] > 0.6 and angle.directions["memory"].shape == (6, 2)


def test_slow_noise_and_slow_labels_are_not_significant():
    """Both drift, neither knows the other. p <= 0.05 in about one world of 20; a shuffle of rows says yes to most."""
    hits = {"exchanged": 0, "shifted": 0, "rows": 0}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        episode, _ = clock(8, 60)
        world = Memory({"slow": drift(rng, episode, 10)}, {"label": drift(rng, episode, 1)}, episode)
        result = fit_probe(world, "slow", "label", folds=4, alphas=(1.0,), draws=19, resamples=10, seed=seed)
        for name in ("exchanged", "shifted"):
            hits[name] += result.controls[name]["p"][0] <= 0.05
        x, y, model = world.activations["slow"], world.covariates["label"][:, 0], Ridge(1.0)
        rows = [y, *(rng.permutation(y) for _ in range(19))]
        cv = KFold(4, shuffle=True, random_state=0)
        fits = [r2_score(label, cross_val_predict(model, x, label, cv=cv)) for label in rows]
        hits["rows"] += max(fits) == fits[0]
    assert hits["exchanged"] <= 3 and hits["shifted"] <= 3, hits
    assert hits["rows"] >= 10, "otherwise this test would not show anything"


def test_a_split_by_row_leaks_and_ours_does_not():
    ours, by_row = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        episode, _ = clock(10, 80)
        label = rng.normal(size=10)[episode]  # one number per episode, unknown to the activations
        x = drift(rng, episode, 30, keep=0.995)
        ours.append(fit_probe(Memory({"slow": x}, {"label": label}, episode), "slow", "label", draws=1,
                              resamples=10, alphas=(1e-2, 1.0)).score[0])  # fmt: skip
        guess = cross_val_predict(Ridge(1.0), x, label, cv=KFold(5, shuffle=True, random_state=0))
        by_row.append(r2_score(label, guess))
    assert np.mean(by_row) > 0.6, "otherwise this test would not show anything"
    assert np.mean(ours) < 0.05


def test_scores_equal_scikit_learn_on_the_same_folds():
    world, alpha = cue_world(), 0.1
    result = fit_probe(world, "memory", "pos", alphas=(alpha,), draws=1, resamples=10, seed=4)
    fold = deal_folds(world.episode, 5, np.random.default_rng(4))
    x, y = world.activations["memory"], world.covariates["pos"]
    guess = np.empty_like(y)
    for f in range(5):
        train = fold != f
        mean, std = x[train].mean(0), x[train].std(0)
        model = Ridge(alpha * train.sum()).fit((x[train] - mean) / std, y[train])
        guess[~train] = model.predict((x[~train] - mean) / std)
    expected = 1 - ((y - guess) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    np.testing.assert_allclose(result.score[0], expected, rtol=1e-9)


def test_time_alone_catches_a_clock():
    """A unit that counts steps predicts any label that follows the time in the episode, and so does the time alone."""
    rng = np.random.default_rng(0)
    episode, step = clock(20, 30)
    world = Memory(
        {"memory": np.stack([step + rng.normal(size=len(step)), rng.normal(size=len(step))], 1)},
        {"late": step >= 15}, episode,
    )  # fmt: skip
    result = fit_probe(world, "memory", "late", **QUICK)
    assert result.score[0] > 0.9 and result.controls["time only"]["score"][0] > 0.98
    assert result.controls["time only"]["p"][0] > 0.9 and result.controls["exchanged"]["selectivity"][0] < 0.02
    assert result.controls["shifted"]["p"][0] == 0.05, "which is why one control is not enough"


def test_untrained_recording_is_asked_the_same_question():
    result = fit_probe(cue_world(), "memory", "cue_type", where=KEPT, by="steps_since_cue",
                       untrained=cue_world(seed=5, strength=0), **QUICK)  # fmt: skip
    control = result.controls["untrained"]
    assert control["score"][0] < 0.65 and control["p"][0] < 0.01 and control["selectivity"][0] > 0.3
    assert result.by_controls["untrained"].shape == result.by_score.shape
    same = fit_probe(cue_world(), "memory", "cue_type", where=KEPT, untrained=cue_world(), **QUICK)
    assert abs(same.controls["untrained"]["selectivity"][0]) < 0.05 and same.controls["untrained"]["p"][0] > 0.05


def test_groups_hold_out_more_than_an_episode():
    """Layouts recur over episodes and fix the label: episodes are not independent, layouts are."""
    rng = np.random.default_rng(0)
    episode, _ = clock(40, 6)
    layout = episode // 5
    world = Memory(
        {"memory": rng.normal(size=(8, 30))[layout] + 0.1 * rng.normal(size=(len(episode), 30))},
        {"layout": layout, "walls": rng.normal(size=8)[layout]}, episode,
    )  # fmt: skip
    assert fit_probe(world, "memory", "walls", **QUICK).score[0] > 0.9, "it knows the layout by heart"
    result = fit_probe(world, "memory", "walls", groups="layout", folds=4, **QUICK)
    assert result.score[0] < 0.5 and result.groups == 8 and result.controls["exchanged"]["p"][0] > 0.05


def test_a_measure_whose_unit_begins_with_a_number_is_no_class():
    rng = np.random.default_rng(0)
    episode, _ = clock(20, 10)
    light = rng.random(len(episode)).round(1)
    world = Memory({"memory": light[:, None] + 0.1 * rng.normal(size=(len(light), 3))}, {"daylight": light}, episode,
                   {"daylight": "0 night to 1 day"})  # fmt: skip
    assert fit_probe(world, "memory", "daylight", **QUICK).kind == "ridge"


def test_many_classes_and_balanced_accuracy():
    rng = np.random.default_rng(0)
    episode, _ = clock(30, 10)
    room = (rng.random(len(episode)) * rng.random(len(episode)) * 4).astype(int)  # the first room is the usual one
    world = Memory({"memory": np.eye(4)[room] + rng.normal(size=(len(room), 4)) * 0.4}, {"room": room}, episode)
    few = {"draws": 3, "resamples": 50, "alphas": (1e-2,)}
    plain = fit_probe(world, "memory", "room", **few)
    assert plain.kind == "logistic" and plain.classes == ("0", "1", "2", "3")
    assert plain.directions["memory"].shape == (4, 4)
    balanced = fit_probe(world, "memory", "room", metric="balanced_accuracy", **few)
    assert balanced.controls["majority"]["score"][0] == 0.25 < plain.controls["majority"]["score"][0]
    assert balanced.score[0] < plain.score[0]


def test_same_seed_same_result_and_save_and_load(found: ProbeResult, tmp_path):
    few = {"draws": 2, "resamples": 50, "alphas": (1e-2,)}
    once, again = (fit_probe(cue_world(), "*", "cue_type", where=KEPT, **few) for _ in range(2))
    np.testing.assert_array_equal(again.interval, once.interval)
    np.testing.assert_array_equal(again.controls["exchanged"]["p"], once.controls["exchanged"]["p"])
    other = fit_probe(cue_world(), "*", "cue_type", where=KEPT, seed=1, **few)
    assert (other.controls["exchanged"]["score"] != once.controls["exchanged"]["score"]).all()
    path = found.save(tmp_path / "probe")
    assert load_result(path) == found and (path / "figure.png").stat().st_size > 10000
    assert found.provenance.seeds == {"record": 3, "fit_probe": 0}


def test_summary_puts_each_score_beside_its_controls(found: ProbeResult):
    text = found.summary()
    for word in ("cue_type", "memory", "forgetful", "exchanged", "time only", "observation only", "majority"):
        assert word in text
    assert max(map(len, text.splitlines())) < 160


def test_figures_show_sites_and_controls(found: ProbeResult):
    from matplotlib import pyplot as plt

    ax = found.plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"memory", "forgetful", "wide"} <= set(labels) and any("exchanged" in label for label in labels)
    plain = fit_probe(cue_world(), ["memory", "wide"], "cue_type", where=KEPT, **QUICK).plot()
    assert [text.get_text() for text in plain.get_yticklabels()] == ["memory", "wide"]
    plt.close("all")


WRONG = {
    "site": ({"sites": "memry"}, "did you mean 'memory'"),
    "target": ({"target": "cue_typ"}, "did you mean 'cue_type'"),
    "where": ({"where": "steps_since_cue ~ 3"}, "neither the name of a covariate"),
    "where name": ({"where": "steps >= 3"}, "no covariate 'steps'"),
    "where nothing": ({"where": "steps_since_cue > 1000"}, "leaves no step"),
    "where mask": ({"where": np.ones(3, bool)}, "booleans"),
    "constant": ({"where": "cue_type == 1"}, "cue_type is [1] in all chosen steps: there is nothing to decode"),
    "folds": ({"folds": 41}, "folds=41 over 40 groups"),
    "two folds": ({"folds": 2}, "choose 3 to 40"),
    "metric": ({"metric": "r2"}, "accuracy or balanced_accuracy"),
    "observation": ({"observation": "encoder"}, "observation='encoder' was not recorded"),
    "groups": ({"groups": "steps_since_cue"}, "belongs to two groups"),
    "length": ({"target": np.zeros(3)}, "target has 3 steps"),
    "columns": ({"target": "pos", "kind": "logistic"}, "2 columns"),
    "continuous": ({"target": "heading", "kind": "logistic"}, "use kind='ridge'"),
    "draws": ({"draws": 0}, "at least one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_error(case: str):
    change, message = WRONG[case]
    with pytest.raises(ValueError) as caught:
        fit_probe(cue_world(), **{"sites": "memory", "target": "cue_type", **change})
    assert message in str(caught.value)


def test_nan_is_named():
    world = cue_world()
    world.covariates["pos"][5] = np.nan
    with pytest.raises(ValueError, match="pos is NaN or infinite at 1 of"):
        fit_probe(world, "memory", "pos")
    world.activations["memory"][7, 0] = np.inf
    with pytest.raises(ValueError, match="memory holds NaN or infinity"):
        fit_probe(world, "memory", "cue_type")


def test_a_rare_class_that_cannot_be_learnt():
    world = cue_world(episodes=6)
    world.covariates["odd"] = world.episode == 3
    with pytest.raises(ValueError, match="use more episodes"):
        fit_probe(world, "memory", "odd")


@pytest.fixture
def folder(tmp_path):
    """cue_world on disk."""
    world = cue_world(episodes=20)
    with RecordingWriter(tmp_path / "rec", control_hz=1.0, units=world.units) as out:
        for rows in spans(world.episode):
            columns = ({n: np.asarray(c)[rows] for n, c in g.items()} for g in (world.activations, world.covariates))
            out.append(*columns, seed=1, complete=True)
        out.finish()
    return tmp_path / "rec"


def test_command_line_on_a_recording_on_disk(folder, tmp_path, capsys):
    words = ["probe", str(folder), "--target", "cue_type", "--sites", "memory", "--where", KEPT, "--draws", "2"]
    assert main([*words, "--json", "--by", "steps_since_cue", "--out", str(tmp_path / "probe")]) == 0
    answer = json.loads(capsys.readouterr().out)
    expected = fit_probe(cue_world(episodes=20), "memory", "cue_type", where=KEPT, draws=2)
    np.testing.assert_allclose(answer["score"], expected.score)
    assert answer["controls"]["exchanged"]["selectivity"][0] > 0.3
    assert answer["controls"]["majority"]["spread"] == [None]
    assert load_result(tmp_path / "probe").sites == ("memory",)
    assert main([*words, "--observation", "forgetful", "--untrained", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "untrained" in text and "observation only" in text
    words[3] = "cue_typ"
    assert main(words) == 2
    assert "did you mean 'cue_type'" in capsys.readouterr().err
