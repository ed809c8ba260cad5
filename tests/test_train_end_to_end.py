"""`python train.py` as a user types it: losses fall, the files are there, the agent acts; kill, ctrl-C, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import torchmem
from tests.training import tiny
from torchmem.envs.vector import VectorEnv
from torchmem.training.logger import read_metrics

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def start():
    """(run folder, steps) -> its process, which ends with the test at the latest"""
    begun = []

    def begin(folder: Path, steps: int) -> subprocess.Popen:
        words = tiny.words(
            folder, "env.vector=4", "env.vary=true", "batch=8", "length=8", "ratio=40", "replay.capacity=1000",
            "agent.lr=3e-3", "log.every_s=0.2", "save.every_s=0.3", "log.sinks=[tensorboard]",
            world=tiny.IMAGE, steps=steps,
        )  # fmt: skip
        with open(folder.with_suffix(".txt"), "a") as errors:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "train.py", *words]
            begun.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen, file: Path, rows: int) -> None:
    end = time.monotonic() + 240
    while not (file.exists() and file.read_bytes().count(b"\n") >= rows):
        assert process.poll() is None, f"it ended by itself with code {process.returncode}"
        assert time.monotonic() < end, f"no {rows} lines in {file}"
        time.sleep(0.01)


@pytest.mark.timeout(900)
def test_train_is_killed_interrupted_resumed_and_finished(start, tmp_path):
    folder, steps = tmp_path / "run", 260
    told = folder.with_suffix(".txt")

    process = start(folder, steps)
    wait_for(process, folder / "ckpt" / "latest", 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start(folder, steps)
    wait_for(process, folder / "metrics.jsonl", 4)
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130, told.read_text()
    interrupted = tiny.snapshot(folder).name

    assert start(folder, steps).wait(400) == 0, told.read_text()
    said = told.read_text()
    assert "Traceback" not in said
    assert "resume:   python train.py" in said and f"resumed from snapshot {interrupted}" in said
    assert "trained parameters" in said and "evaluation: return" in said and "without memory: return" in said

    rows = read_metrics(folder)
    losses = [row for row in rows if "train/loss/image" in row]
    for name in ("image", "vector", "rew"):
        first, last = losses[0][f"train/loss/{name}"], losses[-1][f"train/loss/{name}"]
        assert last < 0.8 * first, f"loss of {name}: {first:.4g} -> {last:.4g}"
    steps_logged = [row["agent_steps"] for row in rows]
    assert steps_logged == sorted(steps_logged) and steps_logged[-1] == steps
    assert {"config.json", "run.json", "env_spec.json", "metrics.jsonl", "ckpt", "replay", "tb", "videos"} <= {
        file.name for file in folder.iterdir()
    }
    assert json.loads((folder / "config.json").read_text())["env"]["image"] == 48
    assert list((folder / "videos").glob("open_loop-*.gif"))

    agent = torchmem.load(folder)
    with VectorEnv("dummy", agent.spec.kwargs, 3, split="record", seed=0) as worlds:
        data, _ = worlds.step(None)
        obs = {key: torch.from_numpy(value) for key, value in data.items()}
        actions, _, latents = agent.policy(obs, agent.initial(3), agent.acting_noise(3, None))
        worlds.step({key: value.numpy() for key, value in actions.items()})
    assert actions["action"].shape == (3,) and latents["deter"].shape == (3, 32)
