"""What can be known of the container recipes without building them: all they name is there, and is enough for setup."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_setup import ROOT, Setup

DOCKER = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "torchmem.def").read_text()
HOME = "/opt/torchmem"


def copied() -> list[tuple[list[str], str]]:
    """COPY lines: (sources, target)."""
    lines = [line.split()[1:] for line in DOCKER.splitlines() if line.startswith("COPY ")]
    return [(words[:-1], words[-1]) for words in lines]


def files() -> dict[str, str]:
    """%files of the Apptainer definition: source -> target."""
    section = re.search(r"^%files\n(.*?)\n\n", APPTAINER, re.M | re.S)[1]
    return dict(line.split() for line in section.splitlines())


def rules(text: str) -> list[str]:
    """What the recipe does, without its comments."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_every_path_is_there():
    for sources, _ in copied():
        assert all((ROOT / source).exists() for source in sources), sources
    assert all((ROOT / source).exists() for source in files())
    assert all(target == f"{HOME}/{source}" for source, target in files().items())


def test_every_make_target_is_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for text in (DOCKER, APPTAINER):
        named = set(re.findall(r"\bmake ([a-z]+)\b(?!\+)", text)) - {"commands"}  # not g++, not "make commands"
        named |= set(re.findall(r'"make", "(\w+)"', text))
        assert {"setup", "train"} <= named <= set(targets)


def test_both_are_the_same_machine():
    base = re.search(r"^FROM (\S+)", DOCKER, re.M)[1]
    assert f"\nFrom: {base}\n" in APPTAINER
    assert re.search(r"python:3\.(11|12)\b", base), "torchmem needs Python 3.11 or 3.12"
    packages = [set(re.search(r"--no-install-recommends (.*)", t)[1].split()) - {"\\"} for t in (DOCKER, APPTAINER)]
    assert packages[0] == packages[1]
    wanted = set(re.findall(r"want\+=\(([\w.+-]+)\)", (ROOT / "scripts" / "setup.sh").read_text()))
    assert len(wanted) == 5 and wanted | {"make", "chromium"} == packages[0], "setup would miss a system package"


def test_the_build_of_torch_is_an_argument():
    choices = re.search(r"^\s+cpu \| auto-cpu\)|^\s+cuda\)", (ROOT / "scripts" / "setup.sh").read_text(), re.M)
    assert choices and "ARG TORCH=cpu" in DOCKER and "%arguments\n    TORCH=cpu" in APPTAINER
    assert any("make setup SYSTEM=no TORCH=${TORCH}" in line for line in rules(DOCKER))
    assert any("make setup SYSTEM=no TORCH={{ TORCH }}" in line for line in rules(APPTAINER))


def test_what_is_large_or_private_stays_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    tops = {path.split("/")[0] for path in tracked}
    assert not tops & set(ignored), "a tracked folder would be missing in the image"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The image as it is when it runs `make setup`."""
    place = tmp_path / "image"
    for sources, target in copied():
        if sources == ["."]:
            return place
        for source in sources:
            there = place / (source if target == "./" else target)
            there.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, there)
    raise AssertionError("nothing copies the rest")


def test_setup_needs_no_more_than_was_copied_before_it(image: Path, tmp_path: Path):
    machine = Setup(tmp_path)
    done = machine.run(root=image, TORCH="cpu")
    assert done.returncode == 0, done.stderr
    calls = machine.asked
    assert any("torch==" in line and "+cpu" in line for line in calls)
    shutil.copytree(ROOT / "torchmem", image / "torchmem", dirs_exist_ok=True)  # the rest, and then it is started
    assert machine.run(root=image).returncode == 0 and machine.asked == calls, "it would set up again at every start"


def test_the_package_can_be_described_from_what_was_copied(image: Path):
    build = "from setuptools.build_meta import prepare_metadata_for_build_editable as make; print(make('.'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=image, capture_output=True, text=True)
    assert done.returncode == 0 and "torchmem-" in done.stdout, done.stderr[-2000:]
