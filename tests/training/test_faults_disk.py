"""A full disk: one clear message, the last snapshot whole, and the same command goes on once there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.training import tiny
from torchmem.training import command, tree
from torchmem.training.experiment import Experiment
from torchmem.training.logger import Logger
from torchmem.training.snapshot import Snapshots


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take every byte that is left."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def once(monkeypatch, owner: type, name: str, number: int, action) -> None:
    """Do something before the call of a method with this number."""
    method = getattr(owner, name)
    calls = []

    def disturbed(self, *arguments, **keywords):
        calls.append(None)
        if len(calls) == number:
            action()
        return method(self, *arguments, **keywords)

    monkeypatch.setattr(owner, name, disturbed)


@pytest.mark.parametrize(
    "place, number, answer",
    [
        ((Snapshots, "write"), 6, "could not save snapshot"),
        ((Experiment, "save"), 6, "ould not"),  # the journal of the replay's next epoch, or the snapshot
        ((Experiment, "collect"), 25, "could not"),  # the undo journal, or the log
        ((Logger, "log"), 25, "could not write"),
        ((Experiment, "open_replay"), 1, "replay.capacity"),
    ],
    ids=["snapshot", "save", "rows", "log", "start"],
)
def test_a_really_full_disk(small_disk, straight, monkeypatch, capfd, place, number, answer):
    run = small_disk / "run"
    words = tiny.words(run, "save.every_s=1e-6")
    with monkeypatch.context() as patch:
        once(patch, *place, number, lambda: fill(small_disk))
        assert command.main(words) == 1
    said = "".join(capfd.readouterr())
    assert (answer in said and "Traceback" not in said and "disk" in said) or "space" in said
    if place[1] != "open_replay":
        assert tiny.snapshot(run).is_dir()
        assert command.main(words) == 1, "the disk is still full"
    (small_disk / "ballast").unlink()
    assert command.main(words) == 0
    assert tiny.outcome(run) == straight


@pytest.mark.parametrize("failing", ["shared", "rank0", "agent", "latest"])
def test_a_snapshot_that_fails_at_any_file_leaves_the_last_one(tmp_path, straight, monkeypatch, capfd, failing):
    run = tmp_path / "run"
    assert command.main(tiny.words(run, steps=40)) == 0
    before = tiny.outcome(run)
    with monkeypatch.context() as patch:
        break_writing(patch, failing)
        assert command.main(tiny.words(run)) == 1
    said = "".join(capfd.readouterr())
    assert "could not save snapshot 000000000060" in said and f"the last one, {before['id']}, is whole" in said
    assert "start the same command again" in said and "Traceback" not in said
    left = {f.name for f in (run / "ckpt").iterdir()}
    assert left == {"latest", before["id"]}, "something half-written stayed"
    assert command.main(tiny.words(run)) == 0
    assert tiny.outcome(run) == straight


def break_writing(patch, failing: str) -> None:
    """Writing one file of a snapshot meets a full disk half-way."""
    from torchmem.models import checkpoint
    from torchmem.training import snapshot

    save, write = tree.save_file, snapshot.atomic_write

    def save_half(arrays, path, metadata=None):
        if failing in str(path):
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(arrays, path, metadata)

    def no_write(path, content):
        if failing in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    patch.setattr(tree, "save_file", save_half)
    patch.setattr(checkpoint, "save_file", save_half)
    patch.setattr(snapshot, "atomic_write", no_write)
