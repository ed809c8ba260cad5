"""N + kill -9 + N steps are 2 N steps: the same losses, weights, optimiser, worlds, random numbers and stored rows."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.training import tiny
from tests.training.forker import Forker
from torchmem.training.logger import DROPPED, read_metrics

STEPS, KILLS = 100, 20  # agent steps; the ring holds 40


@pytest.fixture(scope="module")
def forker():
    with Forker() as forker:
        yield forker


def told(file: Path) -> list[tuple[str, str]]:
    return [tuple(line.split(" ", 1)) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("world", [tiny.DUMMY, tiny.MEMORY, tiny.IMAGE], ids=["dummy", "minigrid_memory", "images"])
def test_killed_and_resumed_is_uninterrupted(forker, tmp_path, world):
    errors = tmp_path / "stderr"
    for name in ("straight", "killed"):
        words, story = tiny.words(tmp_path / name, world=world, steps=STEPS), str(tmp_path / f"{name}.story")
        if name == "killed":
            # The snapshot is of after the wrap; half of the ring is overwritten between it and the kill.
            assert forker.run(words, errors, story=story, save_at=[54], kill_at=76) == -signal.SIGKILL
            assert tiny.snapshot(tmp_path / name).name.startswith("000000000054-")
            own = json.loads((tiny.snapshot(tmp_path / name) / "rank0.json").read_text())
            assert own["write_back"] and own["replay"]["head"] == 27 > 20, "nothing waits to be written back, no wrap"
            assert sum(f.stat().st_size for f in (tmp_path / name).glob("replay/*/journal/*")) > 1000
        assert forker.run(words, errors, story=story) == 0, errors.read_text()
    expected = dict(told(tmp_path / "straight.story"))
    assert sum(name.startswith("update") for name in expected) > 20
    seen = told(tmp_path / "killed.story")
    assert len(seen) > len(expected), "nothing was done twice, so nothing was rolled back"
    for name, numbers in seen:
        assert numbers == expected[name], f"{name} differs"
    assert tiny.outcome(tmp_path / "killed") == tiny.outcome(tmp_path / "straight")
    assert tiny.rows(tmp_path / "killed") == tiny.rows(tmp_path / "straight")


def test_killed_at_twenty_random_instants_it_always_comes_back(forker, tmp_path):
    rng, errors, story = random.Random(4), tmp_path / "stderr", tmp_path / "story"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    more, steps = ("save.every_s=0.03", "save.keep=2"), 400
    assert forker.run(tiny.words(straight, *more, steps=steps), errors) == 0, errors.read_text()
    resumed = set()
    story.touch()
    for kill in range(KILLS):
        wanted = story.read_bytes().count(b"update") + rng.randrange(1, 9)
        forker.start(tiny.words(killed, *more, steps=steps), errors, story=str(story))
        if kill % 4:  # some updates after the start; otherwise while it starts, or rolls back
            while not forker.ended and story.read_bytes().count(b"update") < wanted:
                time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05 if kill % 4 else 0.4))
        assert not forker.ended, f"it ended by itself at kill {kill}:\n{errors.read_text()[-2000:]}"
        os.kill(forker.pid, signal.SIGKILL)
        assert forker.wait() == -signal.SIGKILL
        if (killed / "ckpt" / "latest").exists():
            resumed.add(tiny.snapshot(killed).name)
    assert len(resumed) >= 5, f"hardly any progress between the kills: {sorted(resumed)}"
    assert forker.run(tiny.words(killed, *more, steps=steps), errors) == 0, errors.read_text()[-2000:]
    assert tiny.outcome(killed) == tiny.outcome(straight)
    table = read_metrics(killed)
    assert tiny.rows(killed) == tiny.rows(straight)
    for clock in ("agent_steps", "env_steps", "updates", "episodes", "wall_s"):
        values = [row[clock] for row in table]
        assert values == sorted(values), f"{clock} runs backwards"
    assert (killed / DROPPED).exists(), "no row was ever taken back"
    assert len(list((killed / "ckpt").glob("0*"))) == 2

