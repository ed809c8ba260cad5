"""The cache: one folder per key. A stage is done where its `done.json` is, which is written last.

    <cache>/<key>/out/         what the command wrote
    <cache>/<key>/log.txt      what it said, of every attempt
    <cache>/<key>/done.json    the parts of the key, and each file of out/ with its size, time and sha256
    <cache>/<key>/lock         held by whoever writes (alone) or reads (with others); its content means nothing
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torchmem.artefact import combined, content_hash, counted, file_hash
from torchmem.files import atomic_write, sync_folder
from torchmem.pipeline.stage import PipelineError

FORMAT = 1
SHORT = 16  # digits of a key in the name of a folder


class Entry:
    """The place of one key in the cache."""

    def __init__(self, cache: Path, key: str) -> None:
        self.key, self.folder = key, cache / key[:SHORT]
        self.out, self.log = self.folder / "out", self.folder / "log.txt"
        self.card = self.folder / "done.json"

    def done(self) -> dict[str, Any] | None:
        """The completion record, or None. Raises PipelineError where there is one that nobody here can read."""
        try:
            found = json.loads(self.card.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise PipelineError(f"{self.card} cannot be read ({error}): delete {self.folder}") from error
        if found.get("format") != FORMAT or found.get("key") != self.key:
            raise PipelineError(f"{self.card} is not of this key or torchmem: delete {self.folder}")
        return found

    def fault(self, done: Mapping[str, Any]) -> str | None:
        """The first file that is not what it was when the stage ended, or None. Reads files only where size or time
        differ."""
        for name, (size, mtime_ns, digest) in done["files"].items():
            path = self.out / name
            try:
                found = path.stat()
            except OSError:
                return f"{path} is missing"
            same = (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
            if not same and file_hash(path) != digest:
                return f"{path} was changed"
        return None

    def content(self, done: Mapping[str, Any], within: str = "") -> str:
        """Content hash of the output, or of a file or folder `within` it. Raises PipelineError where that is not there.

        The same as `artefact.content_hash` of that path.
        """
        hashes = {name: digest for name, (_, _, digest) in done["files"].items()}
        if within:
            inner = within.rstrip("/")
            hashes = {n[len(inner) + 1 :]: d for n, d in hashes.items() if n == inner or n.startswith(f"{inner}/")}
            if not hashes:
                if (self.out / within).exists():  # one of those that do not count as part of the whole
                    return content_hash(self.out / within)
                raise PipelineError(f"{self.out / within} does not exist: stage {done['stage']} has not written it")
        return combined(hashes)

    def begin(self, *, keep: bool) -> None:
        """Make room for an attempt: no completion record, and an empty output unless an unfinished one may stay."""
        self.card.unlink(missing_ok=True)
        sync_folder(self.folder)  # before anything of the old output goes
        if not keep:
            shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(exist_ok=True)

    def finish(self, stage: str, parts: Mapping[str, Any], files: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Write the completion record. From now on the stage is done."""
        card = {"format": FORMAT, "key": self.key, "stage": stage, "parts": dict(parts), "files": dict(files), **more}
        card["content"] = self.content(card)
        sync_folder(self.out)
        atomic_write(self.card, json.dumps(card, indent=1) + "\n")
        return card

    @contextlib.contextmanager
    def locked(self, *, alone: bool, wait: Callable[[str], None]) -> Iterator[int]:
        """Hold the entry, alone or with other readers; yields the lock's file descriptor.

        A command gets the descriptor too: should this process be killed, the lock lasts as long as the command does.
        wait: told once by whom the entry is held, before waiting.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            told = False
            while True:
                try:
                    fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        wait(os.pread(handle, 200, 0).decode(errors="replace").strip())
                        told = True
                    time.sleep(0.1)
            if alone:
                self.holder(handle, f"process {os.getpid()} on {os.uname().nodename}")
            yield handle
        finally:
            os.close(handle)

    @staticmethod
    def holder(handle: int, text: str) -> None:
        """Say in the lock who has it, for those who wait."""
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def measured(out: Path) -> dict[str, list[Any]]:
    """Relative name -> [bytes, time of change in ns, sha256] of every file that counts, each synced."""
    files = {}
    for path in counted(out):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        found = path.stat()
        files[path.relative_to(out).as_posix()] = [found.st_size, found.st_mtime_ns, file_hash(path)]
    return files
