"""Two processes with half the batch each are one process with the whole of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.training import ddp_pair, tiny
from tests.training.forker import ROOT
from torchmem.training.processes import Processes

TOLERANCE = 1e-5  # of each tensor's largest entry


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """folder with what the two processes came to, right and wrong"""
    folder = tmp_path_factory.mktemp("pair")
    command = [sys.executable, "-m", "tests.training.ddp_pair", str(folder)]
    both = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(240) for process in both] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ddp_pair.train(Processes())
    torch.set_num_threads(threads)


def differences(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], kind: str) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.startswith(kind)]
    return {n: float((ours[n] - theirs[n]).abs().max() / ours[n].abs().max().clamp(min=1e-30)) for n in names}


def test_gradients_and_three_updates_equal_one_process(pair, alone):
    for rank in (0, 1):
        two = load_file(pair / f"right.{rank}.safetensors")
        assert all(float(alone[f"range.{update}"]) > 2 for update in range(ddp_pair.UPDATES)), "the range is clamped"
        for kind in ("range", "grad", "weight"):
            found = differences(alone, two, kind)
            worst = max(found, key=found.get)
            assert found[worst] <= TOLERANCE, f"{worst} differs by {found[worst]:.1e}"
    first, second = (load_file(pair / f"right.{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first), "the two have drifted apart"


@pytest.mark.parametrize("fault", ddp_pair.FAULTS)
def test_the_comparison_would_notice(pair, alone, fault):
    wrong = load_file(pair / f"{fault}.0.safetensors")
    worst = {kind: max(differences(alone, wrong, kind).values()) for kind in ("grad", "weight")}
    assert max(worst.values()) > 30 * TOLERANCE, f"{fault}: {worst}"


def test_a_loss_that_is_not_finite_in_one_process_ends_both(pair):
    for rank in (0, 1):
        assert "not finite at update 1 " in (pair / f"nan.{rank}.txt").read_text()


@pytest.fixture
def start(tmp_path):
    """name of the run -> its process: what a user's `python train.py trainer=ddp devices=2 ...` starts"""
    begun = []

    def begin(name: str) -> subprocess.Popen:
        words = tiny.words(tmp_path / name, "trainer=ddp", "devices=2", "trainer.accelerator=cpu")
        with open(tmp_path / f"{name}.txt", "a") as errors:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "train.py", *words]
            begun.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors, start_new_session=True))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.timeout(900)
def test_train_with_two_processes_stops_resumes_and_ends(start, tmp_path):
    """SIGTERM to the main process stops both; the same command goes on; the end is that of an undisturbed run."""
    process = start("stopped")
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 14, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 128 + signal.SIGTERM, (tmp_path / "stopped.txt").read_text()
    place = tiny.snapshot(tmp_path / "stopped")
    assert {f.name for f in place.glob("*.json")} == {"rank0.json", "rank1.json", "shared.json"}
    for name in ("stopped", "straight"):
        assert start(name).wait(300) == 0, (tmp_path / f"{name}.txt").read_text()
    told = (tmp_path / "stopped.txt").read_text()
    assert "resumed from snapshot" in told and "resume:   python train.py" in told and "Traceback" not in told
    assert tiny.outcome(tmp_path / "stopped") == tiny.outcome(tmp_path / "straight")
    assert tiny.rows(tmp_path / "stopped") == tiny.rows(tmp_path / "straight")


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"it ended by itself with code {process.returncode}"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
