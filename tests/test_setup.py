"""scripts/setup.sh with an interpreter that only writes down what pip is asked: no network, no installation."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIN = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
FAKE = """#!/bin/bash
case "$*" in
  *version_info*) echo "$FAKE_VERSION" ;;
  *get_path*) echo /nowhere ;;
  *'importlib.metadata'*) cat "$FAKE_LOG.torch" 2>/dev/null || exit 1 ;;
  *'-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *'-m pip --version') ;;
  *'-m pip '*)
    echo "$*" >>"$FAKE_LOG"
    if [[ "$*" == *+cpu* ]]; then
      [ "$FAKE_CPU" = reachable ] || { echo 'ERROR: No matching distribution found for torch' >&2; exit 1; }
      echo "$FAKE_PIN+cpu" >"$FAKE_LOG.torch"
    fi ;;
esac
"""
driver = pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="there is an NVIDIA driver")


class Setup:
    """One machine to set up: `run(...)` gives the finished process, `asked` the pip calls so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv, self.log = folder, folder / "venv", folder / "pip.log"
        self.python = folder / "python3.11"
        self.python.write_text(FAKE)
        self.python.chmod(0o755)

    def run(self, root: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
        keep = {key: value for key, value in os.environ.items() if key not in ("TORCH", "PYTHON", "SYSTEM")}
        env = {
            **keep, "VENV": str(self.venv), "PYTHON": str(self.python), "SYSTEM": "no",
            "FAKE_LOG": str(self.log), "FAKE_VERSION": "3.11", "FAKE_PIN": PIN, "FAKE_CPU": "reachable", **extra,
        }
        return subprocess.run(["bash", "scripts/setup.sh"], cwd=root, env=env, capture_output=True, text=True)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@driver
def test_without_a_driver_the_cpu_build_is_asked_for_exactly(machine: Setup):
    done = machine.run()
    assert done.returncode == 0, done.stderr
    torch = [line for line in machine.asked if "torch==" in line]
    assert len(torch) == 1 and f"torch=={PIN}+cpu" in torch[0] and "--no-deps" in torch[0]
    assert any("--constraint constraints.txt --editable" in line for line in machine.asked)


def test_cpu_build_or_nothing(machine: Setup):
    done = machine.run(TORCH="cpu", FAKE_CPU="unreachable")
    assert done.returncode == 1 and "no CPU build" in done.stderr and "TORCH=cuda" in done.stderr
    assert not any(f"torch=={PIN}" in line and "+cpu" not in line for line in machine.asked)
    assert not any("--editable" in line for line in machine.asked), "went on without torch"


@driver
def test_the_large_build_is_never_taken_silently(machine: Setup):
    done = machine.run(TORCH="auto", FAKE_CPU="unreachable")
    if done.returncode == 0:
        assert "WARNING" in done.stdout and "GB" in done.stdout and "TORCH=cpu refuses" in done.stdout
    else:  # too little disk for it here
        assert "GB of free disk are too few" in done.stderr


def test_second_run_does_nothing_and_remembers_what_was_said(machine: Setup):
    assert machine.run(TORCH="cpu").returncode == 0
    calls = len(machine.asked)
    assert machine.run().returncode == 0  # TORCH not said again
    assert machine.run(PYTHON="").returncode == 0  # nor PYTHON: the one inside .venv counts
    assert len(machine.asked) == calls
    assert machine.run(TORCH="cuda").returncode == 0
    assert any(line.endswith(f"torch=={PIN}") for line in machine.asked[calls:])


def test_moved_folder_is_built_anew(machine: Setup):
    assert machine.run(TORCH="cpu").returncode == 0
    stamp = machine.venv / ".torchmem-setup"
    lines = stamp.read_text().splitlines()
    stamp.write_text("\n".join([lines[0], "/elsewhere", lines[2]]))
    (machine.venv / "left_over").touch()
    done = machine.run()
    assert done.returncode == 0 and "made anew" in done.stdout
    assert not (machine.venv / "left_over").exists()


@pytest.mark.parametrize(
    ("version", "message"), [("3.13", "needs 3.11 or 3.12"), ("3.10", "needs 3.11 or 3.12"), ("", "does not run")]
)
def test_wrong_python_is_refused_before_anything_is_made(machine: Setup, version: str, message: str):
    done = machine.run(FAKE_VERSION=version)
    assert done.returncode != 0 and message in done.stderr
    assert not machine.venv.exists() and not machine.asked


def test_wrong_torch_choice_is_named(machine: Setup):
    done = machine.run(TORCH="gpu")
    assert done.returncode == 1 and "one of auto, cpu, cuda" in done.stderr
