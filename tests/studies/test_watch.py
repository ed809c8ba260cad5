"""Films of play show what the agent saw, in whole episodes; without a display and without a file there is a way out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tests.models.simulator import tiny
from tests.training import simulated
from torchmem import cli
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import load, save_agent
from torchmem.studies.looks import pictures
from torchmem.studies.watch import SIDE, framed, play, watch
from torchmem.surgery.model import load as load_model
from torchmem.surgery.record import record

AGENTS = {
    "rgb": lambda: tiny.ppo(env_spec("minigrid_memory", obs="rgb", **simulated.WORLD)),
    "symbols": lambda: tiny.dreamer(env_spec("minigrid_memory", **simulated.WORLD)),
    "numbers": lambda: tiny.ppo(env_spec("dummy", continuous=True, image=0, length=8)),
}


@pytest.fixture(scope="module", params=list(AGENTS))
def agent(request, tmp_path_factory):
    return save_agent(AGENTS[request.param](), tmp_path_factory.mktemp(request.param) / "agent")


def test_whole_episodes_come_one_after_the_other(agent):
    moments = list(play(load(agent), 3, 500, True, 5))
    assert [m.episode for m in moments] == sorted(m.episode for m in moments) and moments[-1].episode == 2
    for episode in range(3):
        mine = [m for m in moments if m.episode == episode]
        assert [m.step for m in mine] == list(range(len(mine)))
        assert [m.last for m in mine] == [False] * (len(mine) - 1) + [True]
    assert len({m.picture.shape for m in moments}) == 1
    assert len({m.picture.tobytes() for m in moments}) > len(moments) / 2
    again = list(play(load(agent), 3, 500, True, 5))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(moments, again, strict=True))
    short = list(play(load(agent), 2, 2, True, 5))
    assert [(m.episode, m.step, m.last) for m in short] == [(0, 0, False), (0, 1, True), (1, 0, False), (1, 1, True)]


def test_it_shows_what_a_recording_of_the_same_seed_holds(tmp_path):
    agent = save_agent(AGENTS["rgb"](), tmp_path / "agent")
    rec = record(load_model(agent), episodes=1, envs=1, seed=5, greedy=True, out=tmp_path / "rec")
    moments = list(play(load(agent), 1, 500, True, 5))
    frames = pictures(load(agent).spec, {"image": rec.covariates["obs.image"][:]})
    assert len(moments) == len(frames)
    for one, frame in zip(moments, frames, strict=True):
        assert np.array_equal(one.picture[: SIDE - 1, :SIDE], framed(frame, ("", ""))[: SIDE - 1, :SIDE])


def test_the_likeliest_actions_of_sampled_latents_as_in_recordings(tmp_path):
    """Greedy is one thing everywhere: another draw of latents may make another film."""
    agent = load(save_agent(AGENTS["symbols"](), tmp_path / "agent"))
    heard = []
    whole = agent.policy

    def policy(obs, carry, noise):
        heard.append(noise)
        return whole(obs, carry, noise)

    agent.policy = policy
    list(play(agent, 1, 3, True, 5))
    list(play(agent, 1, 3, False, 5))
    assert [n.action is None for n in heard] == [True] * 3 + [False] * 3
    assert all(n.posterior is not None for n in heard)


def test_films_and_shows(agent, tmp_path, capsys):
    assert cli.main(["watch", str(agent), "--out", str(tmp_path / "a.gif"), "--episodes", "2", "--greedy"]) == 0
    assert "a.gif" in capsys.readouterr().out
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames > 4 and film.size[0] >= SIDE and not any(side % 2 for side in film.size)
    seen = []

    def show(picture, seconds):
        seen.append(seconds)
        return len(seen) < 3

    assert watch(agent, show=show, fps=10) is None
    assert seen == [0.1] * 3, "closed after the third"


def test_no_display_and_wrong_words_are_told(agent, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert cli.main(["watch", str(agent)]) == 2
    told = capsys.readouterr().err
    assert "no display" in told and "--out film.gif" in told
    monkeypatch.setitem(sys.modules, "tkinter", None)
    assert cli.main(["watch", str(agent)]) == 2 and "no tkinter" in capsys.readouterr().err
    film = ["--out", str(tmp_path / "a.gif")]
    for more, word in ((["--out", "a.avi"], ".gif or .mp4"), ([*film, "--episodes", "0"], "at least 1"),
                       ([*film, "--fps", "0"], "above 0")):  # fmt: skip
        assert cli.main(["watch", str(agent), *more]) == 2 and word in capsys.readouterr().err
