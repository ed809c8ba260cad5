"""One run on one page: what its log holds is drawn, what it lacks is not, and rates are those of the log."""

from __future__ import annotations

import json

import numpy as np
import pytest

from torchmem.cli import main
from torchmem.envs.crafter import ACHIEVEMENTS
from torchmem.models.importers.dreamerv3f_logs import crafter_score
from torchmem.training.progress import moving_mean, plot_progress


def a_run(folder, rows, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(figure) -> dict:
    return {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}


def test_moving_mean_is_trimmed_at_its_ends():
    np.testing.assert_allclose(moving_mean(np.arange(6.0), 3), [np.nan, 1, 2, 3, 4, np.nan])
    np.testing.assert_allclose(moving_mean(np.array([1.0, 5.0]), 9), [3, np.nan])


def test_an_imported_log_of_episodes(tmp_path):
    """Wood in every second episode, a drink in all: rates over the last 4, and the official score of 22."""
    rows = [{"env_steps": 10 * i, "episode/return": 1.0, "episode/achievement_collect_wood": i % 2,
             "episode/achievement_collect_drink": 3} for i in range(8)]  # fmt: skip
    rows += [{"env_steps": 5, "train/loss/image": 2.0, "train/loss/player_pos": 1.0, "train/val": 0.5,
              "train/ent/action": 2.8}]  # fmt: skip
    from matplotlib import pyplot as plt

    figure = plot_progress(a_run(tmp_path / "run", rows, imported="x"), smooth=4)
    panels = shown(figure)
    titles = ["return", "Crafter score (%)", "unlock rates (%)", "losses", "imagined reward, return, value",
              "entropy and KL (nats)", "sum of all returns"]  # fmt: skip
    assert list(panels) == titles and "given its position" in figure.get_supxlabel()
    rates = {line.get_label(): line.get_ydata() for line in panels["unlock rates (%)"].lines}
    np.testing.assert_allclose(rates["collect_wood"], [0, 50, 100 / 3, 50, 50, 50, 50, 50])
    assert (rates["collect_drink"] == 100).all() and len(rates) == 2
    score = panels["Crafter score (%)"].lines[0].get_ydata()
    assert score[-1] == pytest.approx(crafter_score([50, 100] + [0] * 20))
    assert panels["sum of all returns"].lines[0].get_ydata()[-1] == 8 and panels["losses"].get_yscale() == "log"
    assert "last 4 episodes" in panels["Crafter score (%)"].get_legend().get_texts()[0].get_text()
    plt.close(figure)


def test_a_run_of_ours_with_evaluations(tmp_path, capsys):
    rates = {f"eval/achievement/{name}": 0.25 for name in ACHIEVEMENTS}
    score = {"eval/crafter_score": 25.0, "eval/crafter_score_low": 20.0, "eval/crafter_score_high": 30.0}
    rows = [{"env_steps": i, "eval/score": float(i), **rates, **score} for i in (1, 2)]
    rows += [{"env_steps": 3, "episode/return": 2.0}]
    folder = a_run(tmp_path / "run", rows, seed=1)
    from matplotlib import pyplot as plt

    figure = plot_progress(folder)
    assert list(shown(figure)) == ["return", "Crafter score (%)", "unlock rates (%)"]
    assert shown(figure)["Crafter score (%)"].lines[0].get_ydata().tolist() == [25, 25]
    plt.close(figure)
    out = tmp_path / "page.png"
    assert main(["plot", str(folder), "--progress", "--out", str(out)]) == 0 and out.stat().st_size > 1000
    capsys.readouterr()
    for words, answer in ((["--x", "wall_s"], "no metric 'wall_s'"), (["--smooth", "0"], "at least 1 row"),
                          (["--y", "eval/score"], "give one RUN and no --y")):  # fmt: skip
        assert main(["plot", str(folder), "--progress", *words]) == 2
        assert answer in capsys.readouterr().err
    empty = a_run(tmp_path / "empty", [{"env_steps": 1, "fps": 3}])
    assert main(["plot", str(empty), "--progress"]) == 2 and "nothing to draw" in capsys.readouterr().err
