"""Paths: counted, drawn where they were, filmed; the world's picture put together from maps and from images."""

from __future__ import annotations

import types

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image, ImageSequence

from tests.analysis.recordings import Memory
from tests.fixtures import DREAMERV3F, needs_dreamerv3f
from torchmem import video
from torchmem.analysis._trajectory_draw import draw_unit
from torchmem.analysis._trajectory_film import ORANGE
from torchmem.analysis._trajectory_world import BLANK, COLOURS, legend, sight_of
from torchmem.analysis.map_trajectories import map_trajectories
from torchmem.cli import main
from torchmem.recording import RecordingWriter
from torchmem.result import Provenance, load_result

STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
LEGEND = "0 outside, 1 water, 2 grass"


def walker(episodes: int = 4, length: int = 30, seed: int = 0, **more) -> Memory:
    """A walk on 20 x 12 tiles whose left half is water."""
    rng = np.random.default_rng(seed)
    pos, turn = np.zeros((episodes, length, 2), int), rng.integers(0, 4, (episodes, length))
    pos[:, 0] = 10, 6
    for t in range(1, length):
        pos[:, t] = np.clip(pos[:, t - 1] + STEPS[turn[:, t]], 0, (19, 11))
    drawn = np.full((12, 20), 2)
    drawn[:, :10] = 1
    count = episodes * length
    columns = {
        "pos": pos.reshape(count, 2), "facing": STEPS[turn.ravel()], "reward": np.ones(count, np.float32),
        "action": turn.ravel(), "materials": np.repeat(drawn[None], count, 0), "world": np.full(count, 5), **more,
    }  # fmt: skip
    activations = {"memory": np.stack([pos[..., 1].ravel() * 2.0, rng.normal(size=count)], 1)}
    return Memory(activations, columns, np.repeat(np.arange(episodes), length), {"materials": LEGEND})


def without(rec: Memory, *names: str) -> Memory:
    rec.covariates = {name: column for name, column in rec.covariates.items() if name not in names}
    return rec


def test_counts_are_those_of_the_walk(tmp_path):
    rec = walker()
    result = map_trajectories(rec)
    pos = rec.covariates["pos"]
    expected = np.zeros((20, 12), int)
    np.add.at(expected, tuple(pos.T), 1)
    np.testing.assert_array_equal(result.occupancy, expected)
    assert result.visited.tolist() == [len(np.unique(pos[i * 30 : i * 30 + 30], axis=0)) for i in range(4)]
    assert result.returns.tolist() == [30.0] * 4 and result.free.sum() == 120
    np.testing.assert_array_equal(result.places, pos + 0.5)  # the middle of a tile
    angle = np.arctan2(*rec.covariates["facing"].T[::-1])
    np.testing.assert_allclose(result.heading, angle, rtol=1e-6)
    assert f"{(expected > 0).sum()} tiles of 120 where one can stand" in result.summary()
    assert load_result(result.save(tmp_path / "saved")) == result


def test_the_control_has_the_same_moves_but_no_plan():
    rec = walker(2, 41)
    there = np.stack([np.minimum(np.arange(41), 40 - np.arange(41)), np.full(41, 3)], 1)
    rec.covariates["pos"] = np.concatenate([there, there])  # 20 tiles there and the same back
    result = map_trajectories(rec, source="none")
    assert result.visited.tolist() == [21, 21] and (result.shuffled < 15).all()
    assert map_trajectories(rec, source="none") == result
    still = walker(1, 10)
    still.covariates["pos"] = np.full((10, 2), 4)
    assert map_trajectories(still).shuffled.tolist() == [1.0]


def test_a_map_is_drawn_in_its_colours_and_a_point_lies_on_its_tile():
    result = map_trajectories(walker())
    assert result.source == "materials" and result.pixels == 1 and result.origin == (0, 0)
    assert tuple(result.picture[0, 0]) == COLOURS["water"] and tuple(result.picture[0, 19]) == COLOURS["grass"]
    assert legend({"a": LEGEND, "b": "1 = free"}, "a")[2] == "grass" and legend({"b": "1 = free"}, "b") == {1: "free"}
    ax = result.plot()
    assert len(ax.images) == 1 and ax.images[0].get_extent() == [0, 20, 12, 0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "y goes down"


def test_continuous_positions_keep_their_places():
    rec = walker()
    rec.covariates["pos"] = rec.covariates["pos"] + 0.25
    result = map_trajectories(rec, cell=0.5, source="none")
    np.testing.assert_allclose(result.places, rec.covariates["pos"] / 0.5)
    assert not result.tiled


def test_images_make_a_mosaic_of_the_world():
    """Each image is laid where it was seen: tiles of random pixels come out as they were."""
    rng = np.random.default_rng(1)
    rec = without(walker(3, 40), "materials")
    tiles = rng.integers(0, 255, (12 + 6, 20 + 8, 7, 7, 3), dtype=np.uint8)  # with a margin of half a view
    world = tiles.transpose(0, 2, 1, 3, 4).reshape(18 * 7, 28 * 7, 3)
    images = np.zeros((120, 64, 64, 3), np.uint8)
    for image, (x, y) in zip(images, rec.covariates["pos"]):
        image[:49, :63] = world[y * 7 : y * 7 + 49, x * 7 : x * 7 + 63]
    rec.covariates["obs.image"] = images
    rec.plan = {"env": "crafter", "kwargs": {}}  # type: ignore[attr-defined]
    result = map_trajectories(rec)
    assert result.source == "mosaic" and result.pixels == 7
    low = rec.covariates["pos"].min(0) - (4, 3)
    assert result.origin == tuple(low)
    height, width = result.picture.shape[:2]
    x, y = (low + np.array((4, 3))) * 7
    truth = world[y : y + height, x : x + width]
    seen = (result.picture != BLANK).any(-1)
    assert seen.mean() > 0.6
    np.testing.assert_array_equal(result.picture[seen], truth[seen])


def test_other_worlds_are_left_out_and_noted():
    rec = walker()
    rec.covariates["world"] = np.repeat([3, 8, 8, 3], 30)
    rec.covariates["world"][:5] = 8  # most steps
    result = map_trajectories(rec)
    assert set(result.episode) == {0, 1, 2} and "world 8 of 2, the others are left out" in result.summary()
    assert set(map_trajectories(rec, world=3).episode) == {0, 3}
    maze = without(walker(), "world")
    maze.covariates["materials"] = maze.covariates["materials"].copy()
    maze.covariates["materials"][60:90, 0] = 2
    assert set(map_trajectories(maze).episode) == {0, 1, 3} and set(map_trajectories(maze, world=1).episode) == {2}


def test_what_an_agent_sees_is_told_by_the_world():
    def of(env: str, **kwargs):
        return sight_of(types.SimpleNamespace(plan={"env": env, "kwargs": kwargs}, provenance=Provenance("0")))

    assert (of("crafter").columns, of("crafter").rows, of("crafter").turned) == (9, 7, False)
    ego = of("crafter", egocentric_view=9, image=64)
    assert (ego.columns, ego.rows, ego.turned) == (9, 7, True) and ego.actions[3] == "forward"
    assert of("crafter", egocentric_view=7, image=63).rows == 5
    grid = of("minigrid_memory", view=3)
    assert (grid.columns, grid.rows, grid.turned, grid.moves) == (3, 3, True, (2,))
    assert of("memory_maze").columns == 0 and sight_of(Memory({}, {}, np.zeros(0))).actions == ()


def frames_of(path) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize("kind", ["view", "paths"])
def test_films_show_the_agent_and_the_caveat(tmp_path, kind):
    rec = walker(2, 12)
    rec.covariates["obs.image"] = np.full((24, 8, 8, 3), 200, np.uint8)
    result = map_trajectories(rec)
    frames = frames_of(result.film(tmp_path / "a.gif", rec, kind=kind, window=9))
    assert len(frames) == {"view": 12, "paths": 24}[kind]
    if kind == "view":
        assert frames[0].shape[1] == 2 * 9 * 16, "the world, and what is seen"
        for frame in frames:  # the agent is in the middle
            assert np.abs(frame[72, 72].astype(int) - ORANGE).max() < 12
    rec.provenance = Provenance("0", caveats=("the place leaked " * 3,))
    taller = frames_of(map_trajectories(rec).film(tmp_path / "b.gif", rec, kind=kind, window=9, steps=6))
    assert taller[0].shape[0] > frames[0].shape[0] and len(taller) <= 8


def test_a_blocked_move_is_told():
    from torchmem.analysis._trajectory_film import _label

    rec = walker(1, 6)
    rec.covariates["pos"] = np.array([(4, 4), (5, 4), (5, 4), (5, 5), (5, 5), (5, 5)])
    rec.covariates["action"] = np.array([2, 2, 4, 0, 5, 0])
    rec.plan = {"env": "crafter", "kwargs": {}}  # type: ignore[attr-defined]
    result = map_trajectories(rec)
    told = [_label(result, result.pieces[0], t, None) for t in range(6)]
    assert [line.split("; ")[1:] for line in told] == [["right"], ["right (blocked)"], ["down"], ["noop"], ["do"], []]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "reward"}, "a position is x and y"), ({"target": "place"}, "no covariate 'place'"),
        ({"source": "memory"}, "no covariate 'memory' in this recording; a map is materials"),
        ({"source": "mosaic"}, "a mosaic needs images"), ({"source": "reward"}, r"a map is \(H, W\) integers"),
        ({"world": 9}, "not among the 1 recorded worlds"), ({"heading": "materials"}, "a heading is an angle"),
        ({"where": "reward > 2"}, "leave no step"), ({"cell": 0.0}, "cell must be above 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        map_trajectories(walker(), **given)


def test_positions_off_the_map_are_refused():
    rec = walker()
    rec.covariates["pos"] = rec.covariates["pos"] + (5, 0)
    with pytest.raises(ValueError, match="beyond the map materials of 20 x 12 tiles"):
        map_trajectories(rec)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"kind": "side"}, "view or paths"), ({"episode": 9}, "episode 9 is not among"), ({"fps": 0.0}, "above 0")],
)
def test_wrong_films_are_named(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        map_trajectories(walker()).film(tmp_path / "a.gif", **given)


def test_films_need_a_known_ending_and_mp4_a_program(tmp_path, monkeypatch):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"a \.gif or \.mp4 file, not \.avi"):
        video.film_bytes(frames, 5, ".avi")
    with pytest.raises(ValueError, match="even height and width"):
        video.mp4_bytes(frames[:, 1:], 5)
    monkeypatch.setattr(video.shutil, "which", lambda name: None)
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"an mp4 needs ffmpeg: install it, .* or write a \.gif"):
        video.film_bytes(frames, 5, ".mp4")
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nfor last; do :; done\nhead -c 12 > $last\ncat > /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setattr(video.shutil, "which", lambda name: str(program))
    assert video.mp4_bytes(frames, 5) == bytes(12)
    program.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n")
    with pytest.raises(ValueError, match="failed: no such codec"):
        video.mp4_bytes(frames, 5)


def test_the_command_draws_and_films(tmp_path, capsys):
    rec = walker(3, 20)
    with RecordingWriter(tmp_path / "rec", control_hz=1.0, units={"pos": "cells", "materials": LEGEND}) as out:
        for i in range(3):
            rows = slice(20 * i, 20 * i + 20)
            out.append({"memory": rec.activations["memory"][rows].astype(np.float32)},
                       {name: column[rows] for name, column in rec.covariates.items()})  # fmt: skip
        out.finish()
    words = ["trajectories", str(tmp_path / "rec")]
    more = ["--figures", str(tmp_path / "f"), "--unit", "memory", "0"]
    more += ["--film", str(tmp_path / "f.gif"), "--steps", "9"]
    assert main([*words, *more, "--out", str(tmp_path / "out")]) == 0
    assert "3 episodes, 60 steps" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert {"trajectories.png", "heatmap.svg", "fullworld_overlay.png", "memory_0_activation.png"} <= names
    assert len(frames_of(tmp_path / "f.gif")) == 9 and (tmp_path / "out" / "result.json").is_file()
    for wrong, message in (
        (["--unit", "memory", "0"], "say where, with --figures"), (["--world", "77"], "not among the 1"),
        (["--figures", str(tmp_path / "g"), "--unit", "memory", "5"], "has units 0 to 1, not 5"),
    ):  # fmt: skip
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


@needs_dreamerv3f
def test_the_fixture(tmp_path):
    from torchmem.models.importers.dreamerv3f_episodes import LEAK, import_episodes

    rec = import_episodes(DREAMERV3F, tmp_path / "rec")
    result = map_trajectories(rec)
    assert (len(result.pos), (result.occupancy > 0).sum(), result.source) == (994, 51, "mosaic")
    assert LEAK in result.summary()
    assert (tmp_path / "f" / "world_overlay.png") in result.save_figures(tmp_path / "f")
    figure = draw_unit(result, rec, "dynamics.deter", 436)
    assert figure.axes[0].get_title() == "r with x -0.102, with y 0.875"
    plt.close(figure)
