"""Seeds are grouped by configuration and summed up by the stated rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from torchmem.training.clock import Clock
from torchmem.training.config import ConfigError, compose, to_json
from torchmem.training.curves import aggregate, group_seeds, read_run
from torchmem.training.logger import Logger
from torchmem.training.plot import plot_runs, save_plot
from torchmem.types import EnvSpec


def make_run(folder: Path, words: list[str], scores: dict[int, float], levels: dict[str, float] | None = None) -> Path:
    """scores: agent step -> score; a row without a score stands between any two."""
    config = compose(["env=dummy", f"logdir={folder}", *words])
    clock = Clock()
    with Logger(folder, clock, ()) as log:
        for step, score in scores.items():
            clock.agent_steps = step
            log.log({"loss": 1.0})
            log.log({"eval/score": score, "eval/no_memory": score / 2})
    (folder / "config.json").write_text(to_json(config))
    spec = EnvSpec("dummy", {}, {}, control_hz=1.0, levels=levels or {})
    (folder / "env_spec.json").write_text(json.dumps(spec.to_json()))
    return folder


def test_the_rule_of_aggregation():
    one = (np.array([0.0, 10, 20]), np.array([0.0, 10, 20]))
    two = (np.array([5.0, 15, 25]), np.array([100.0, 110, 120]))
    three = (np.array([0.0, 30]), np.array([50.0, 60]))
    curve = aggregate("x", [one, two, three])
    assert curve.x.tolist() == [5, 10, 15, 20], "only where all seeds have begun and none has ended"
    assert curve.middle.tolist() == [50, 50, 50, 50]
    assert curve.low.tolist() == [25, 30, 30, 35], "values hold until the seed's next row"
    assert curve.high.tolist() == [75, 75, 80, 80]


def test_a_nan_leaves_a_gap_and_seeds_without_common_x_are_refused():
    x = np.array([0.0, 1, 2])
    curve = aggregate("x", [(x, np.array([1, np.nan, 1])), (x, np.ones(3))])
    assert np.isnan(curve.middle[1]) and curve.middle[2] == 1
    with pytest.raises(ConfigError, match="no x in common"):
        aggregate("x", [(np.array([0.0, 1]), x[:2]), (np.array([5.0, 6]), x[:2])])


def test_runs_that_differ_only_by_seed_are_one_group(tmp_path):
    runs = [
        make_run(tmp_path / f"{lr}-{seed}", [f"agent.lr={lr}", f"seed={seed}", f"steps={seed + 9}"], {1: 0.0})
        for lr in ("1e-3", "1e-4")
        for seed in (0, 1, 2)
    ]
    groups = group_seeds([read_run(r) for r in runs])
    assert [(label, len(members)) for label, members in groups] == [("agent.lr=0.001", 3), ("agent.lr=0.0001", 3)]
    ((label, _),) = group_seeds([read_run(r) for r in runs[:3]])
    assert label == "dreamer-dummy-12m"


def test_another_world_is_named_once_and_not_field_by_field(tmp_path):
    one = make_run(tmp_path / "a", [], {1: 0.0})
    two = make_run(tmp_path / "b", ["env=minigrid_memory"], {1: 0.0})
    assert [label for label, _ in group_seeds([read_run(one), read_run(two)])] == ["env=dummy", "env=minigrid_memory"]


def test_the_figure_shows_the_band_the_seeds_and_the_levels(tmp_path):
    levels = {"chance": 0.5, "human": 2.0}
    runs = [make_run(tmp_path / str(s), [f"seed={s}"], {10: s, 20: s + 1.0, 30: s + 2.0}, levels) for s in range(3)]
    import matplotlib.pyplot as plt

    ax = plot_runs(runs)
    (median,) = [line for line in ax.lines if line.get_label().endswith("(3 seeds)")]
    assert median.get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"} == set(levels.values())
    assert [t.get_text() for t in ax.texts] == ["chance 0.5", "human 2"]
    assert len(ax.collections) == 1, "one band"
    plt.close(ax.figure)
    ax = plot_runs(runs, y=["loss"])
    assert not ax.texts, "a loss has no human level"
    plt.close(ax.figure)
    ax = plot_runs(runs[:1], x="wall_s", y=["eval/score", "eval/no_memory"])
    assert not ax.collections and len([line for line in ax.lines if "(1 seed)" in line.get_label()]) == 2
    plt.close(ax.figure)


def test_a_figure_file_is_written_whole(tmp_path):
    run = make_run(tmp_path / "run", [], {10: 0.0, 20: 1.0})
    assert save_plot([run], tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert save_plot([run], tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="foo"):
        save_plot([run], tmp_path / "a.foo")
    assert not (tmp_path / "a.foo").exists()


def test_what_cannot_be_drawn_is_named(tmp_path):
    run = make_run(tmp_path / "run", [], {10: 0.0})
    with pytest.raises(ConfigError, match=r"no metric 'eval/scor'; did you mean 'eval/score'"):
        plot_runs([run], y=["eval/scor"])
    with pytest.raises(ConfigError, match=r"not a run: it holds no config\.json"):
        plot_runs([tmp_path])
    with pytest.raises(ConfigError, match="at most 4"):
        plot_runs([run], y=["loss"] * 5)
