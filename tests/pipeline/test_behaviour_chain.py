"""The whole behaviour lab by one file (T13), as small as it goes: made, made again for nothing, killed and gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL: dict[str, dict[str, Any]] = {
    "train": {
        "goal": {"score": None}, "steps": 160, "envs": 8, "batch": 8, "length": 10, "env": {"max_steps": 12},
        "eval": {"episodes": 2, "no_memory": False}, "agent": {"units": 8},
    },
    "record": {"episodes": 16},
    "simulator": {"report": ["horizon=4", "gate=2", "episodes=4"]},
    "simulate": {"samples": 24, "horizon": 4},
    "directions": {"method": "pca", "count": 3},
    "saliency": {"samples": 4, "at": 2},
    "dynamics": {"samples": 4, "lags": 1, "draws": 20},
    "behaviours": {"lags": [1], "count": 2, "draws": 3},
    "intervene": {"samples": 4, "horizon": 4, "controls": 2},
    "optimise": {"restarts": 2, "steps": 3, "at": 2},
    "panel": {"samples": 4, "episodes": 2, "horizon": 4},
}  # fmt: skip
SET = {
    "steps": "480", "batch": "4", "agent.latent": "4", "agent.deter": "8", "agent.stoch": "2", "agent.classes": "3",
    "agent.hidden": "8", "agent.encoder_units": "8", "agent.head_units": "8", "agent.units": "8", "save.every_s": "0",
    "agent.held_out": "0.3",
}  # fmt: skip
ANALYSES = {"simulate", "saliency", "dynamics", "intervene", "optimise", "panel"}
REMADE = ("simulator", "simulate", "saliency")
ALIKE = ("directions", "saliency", "dynamics", "behaviours", "intervene", "optimise")  # folders of results


def small(folder: Path) -> Path:
    """examples/pipelines/behaviour.yaml with the smallest sizes; its simulator fails the gate, so it is allowed."""
    told = YAML(typ="safe").load((ROOT / "examples/pipelines/behaviour.yaml").read_text())
    assert set(told["stages"]) == set(SMALL), "every stage of the example is run here"
    for name, changes in SMALL.items():
        options = told["stages"][name].setdefault("options", {})
        options |= changes
        if name in ANALYSES:
            options["allow"] = True
        if name == "simulator":
            words = dict(word.split("=", 1) for word in options["set"])
            options["set"] = [f"{key}={value}" for key, value in (words | SET).items()]
    path = folder / "small.yaml"
    with path.open("w") as file:
        YAML().dump({**told, "code": "ignore"}, file)  # files of the package may change while this runs
    return path


def start(path: Path, home: Path, only: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torchmem.cli", "pipeline", str(path), "--folder", str(home)]
    words += [word for stage in only for word in ("--only", stage)]
    return subprocess.Popen(words, cwd=home.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finish(process: subprocess.Popen[str], told: str = "") -> dict[str, str]:
    """stage -> cached or done; told: what must have been said on the way."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and told in err, err
    return {line.split()[1]: line.split()[0] for line in out.splitlines()}


def hashes(home: Path) -> dict[str, str]:
    """Of everything that has no clock in it: weights, recordings, the results' arrays and tables, pictures."""
    found = {}
    manifest = json.loads((home / "manifest.json").read_text())
    for stage, known in manifest["stages"].items():
        files = json.loads((Path(known["output"]).parent / "done.json").read_text())["files"]
        for name, (_, _, digest) in files.items():
            arrays = stage in ALIKE and Path(name).suffix in (".npz", ".csv", ".png")
            weights = name.endswith(".safetensors") and "agent" in name
            rows = stage in ("record", "simulate") and Path(name).name != "recording.json"  # its paths and its date
            if weights or arrays or rows:
                found[f"{stage}/{name}"] = digest
    return found


def offspring(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the command to kill in /proc")
def test_the_chain_is_made_once_and_goes_on_where_it_was_killed(tmp_path):
    path, one, two = small(tmp_path), tmp_path / "one", tmp_path / "two"
    made = finish(start(path, one))
    assert list(made) == list(SMALL) and set(made.values()) == {"done"}
    assert (one / "panel" / "panel.html").stat().st_size > 10_000
    first = hashes(one)
    assert {name.partition("/")[0] for name in first} >= {"train", "record", "simulator", "simulate", *ALIKE}
    before = time.monotonic()
    assert set(finish(start(path, one)).values()) == {"cached"}, "again: nothing to do"
    assert time.monotonic() - before < 60

    # the same, but killed while the simulator trains; what it does not hang on is taken over
    states = json.loads((one / "manifest.json").read_text())["stages"]
    for stage in ("train", "record", "directions"):
        entry = Path(states[stage]["output"]).parent
        shutil.copytree(entry, two / "cache" / entry.name, symlinks=True)
    agent = next(two.glob("cache/*/out/ckpt"))
    process = start(path, two, REMADE)
    until = time.monotonic() + 200
    while not any(ckpt.parent != agent for ckpt in two.glob("cache/*/out/ckpt/latest")):
        assert time.monotonic() < until and process.poll() is None, "no snapshot of the simulator came"
        time.sleep(0.02)
    children = offspring(process.pid)
    assert children, "its command runs"
    process.kill()
    for child in children:
        os.kill(child, signal.SIGKILL)
    process.communicate()
    assert finish(start(path, two, REMADE), "simulator: goes on") == dict.fromkeys(REMADE, "done")
    second = hashes(two)
    assert second == {name: first[name] for name in first if name.partition("/")[0] in REMADE}
