"""kill -9 at random instants: the run that comes back is the run that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from tests.training import replay_victim

STEPS, KILLS = 400, 20
LINE_BYTES = 45  # of "123 <sha1>" in the victim's list of batches


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def start(context, folder: Path) -> multiprocessing.Process:
    process = context.Process(target=replay_victim.main, args=(folder, STEPS), daemon=True)
    process.start()
    return process


def test_killed_at_random_instants_it_always_comes_back(tmp_path):
    # A fork server that has torch loaded: a restart takes milliseconds, so that there can be many kills.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.replay_victim"])
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    process = start(context, tmp_path / "straight")
    process.join(120)
    assert process.exitcode == 0
    lines = (tmp_path / "straight" / "seen").read_text().splitlines()
    expected = dict(line.split() for line in lines)
    assert len(expected) == STEPS - replay_victim.LENGTH + 1

    rng = random.Random(1)
    folder, resumed = tmp_path / "killed", set()
    for kill in range(KILLS):
        process = start(context, folder)
        if kill % 4:  # far into the run; otherwise while it starts or rolls back
            seen = size(folder / "seen") + rng.randrange(4, 30) * LINE_BYTES
            while process.is_alive() and size(folder / "seen") <= seen:
                time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.03))
        assert process.is_alive(), f"the run ended by itself (exit code {process.exitcode}) at kill {kill}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (folder / "latest.json").exists():
            resumed.add(json.loads((folder / "latest.json").read_text())["row"])
    assert len(resumed) >= 8 and max(resumed) > 2 * replay_victim.ROWS, f"snapshots came back to: {sorted(resumed)}"
    process = start(context, folder)
    process.join(120)
    assert process.exitcode == 0
    for line in (folder / "seen").read_text().splitlines():
        row, digest = line.split()
        assert digest == expected[row], f"another batch at step {row}"
    assert (folder / "end").read_text() == (tmp_path / "straight" / "end").read_text()
