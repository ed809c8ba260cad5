"""Whose directory this is: a manifest that says what the replay in it is, and a lock that says it is in use."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import weakref
from pathlib import Path
from typing import Any

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write

MANIFEST, LOCK = "replay.json", "lock"


class Home:
    """A replay directory held by this process: `manifest`, `data/` (rows) and `journal/` (undo)."""

    def __init__(self, directory: Path, lock: int, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest
        self.close = weakref.finalize(self, os.close, lock)  # once, by hand or when nobody holds the replay
        self.data, self.journal = directory / "data", directory / "journal"

    @classmethod
    def claim(
        cls,
        directory: Path,
        owner: str,
        facts: dict[str, Any],
        *,
        token: str = "",
        option: str = "replay.directory",
        replaces: str = "",
    ) -> Home:
        """Take `directory` for a new replay described by `facts`.

        It must be new or empty, or hold what the same `owner` (a run id, not "") began without ever committing a
        snapshot: such rows can not be resumed, and are deleted. So is the replay called `replaces`. Anything else
        raises FileExistsError, untouched. token: default, a new one. option: what a message tells the user to change.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(directory)
        try:
            cls._clear(directory, owner, option, replaces)
        except BaseException:
            os.close(lock)
            raise
        token = token or secrets.token_hex(8)
        manifest = {"format": 1, "token": token, "owner": owner, "committed": False, **facts}
        home = cls(directory, lock, manifest)
        home.write()
        home.data.mkdir()
        return home

    @staticmethod
    def _clear(directory: Path, owner: str, option: str, replaces: str) -> None:
        names = (path.name for path in directory.iterdir())
        content = sorted(name for name in names if name != LOCK and not name.startswith(f".{MANIFEST}."))
        if content:
            old = _read(directory) if MANIFEST in content else {}
            if not old:
                raise FileExistsError(
                    f"{directory} is not empty and holds no replay ({', '.join(content[:5])}); "
                    f"name an empty or new folder in {option}"
                )
            ours = old["token"] == replaces or (owner and old["owner"] == owner and not old["committed"])
            if not ours:
                raise FileExistsError(
                    f"{directory} holds the replay {old['token']} of run {old['owner'] or '(not named)'!r}; resume "
                    f"that run, delete the folder, or name another one in {option}"
                )
            # The manifest goes last: killed in between, the folder still says whose it is.
            for name in (*[name for name in content if name != MANIFEST], MANIFEST):
                path = directory / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @classmethod
    def enter(cls, directory: Path, token: str, *, option: str = "replay.directory") -> Home:
        """Take a directory that holds the replay `token`. Raises FileNotFoundError or ValueError where it does not."""
        if not (directory / MANIFEST).exists():
            raise FileNotFoundError(f"{directory} holds no replay; the run's snapshot needs the one it was taken of")
        lock = _lock(directory)
        try:
            manifest = _read(directory)
            if manifest["token"] != token:
                raise ValueError(
                    f"{directory} holds the replay {manifest['token']} of run {manifest['owner']!r}, "
                    f"but the snapshot was taken of replay {token}; check {option} and logdir"
                )
            if manifest.get("filling"):
                raise ValueError(f"{directory} was being rebuilt from a long-term copy, and is not whole")
        except BaseException:
            os.close(lock)
            raise
        return cls(directory, lock, manifest)

    def mark_committed(self) -> None:
        """From now on only a restore may touch this directory."""
        if not self.manifest["committed"]:
            self.manifest["committed"] = True
            self.write()

    def abandon(self) -> None:
        """Delete what `claim` made, for a replay that could not be made."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.journal, ignore_errors=True)
        (self.directory / MANIFEST).unlink(missing_ok=True)
        self.close()

    def write(self) -> None:
        """Put the manifest on the disk."""
        atomic_write(self.directory / MANIFEST, json.dumps(self.manifest, indent=1))


def _read(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{directory / MANIFEST} is truncated or altered: {error}") from error
    if manifest.get("format") != 1:
        raise ValueError(f"{directory / MANIFEST} has format {manifest.get('format')!r}; this torchmem reads format 1")
    return manifest


def _lock(directory: Path) -> int:
    """Raises TorchmemError (a RuntimeError) while another process holds the directory."""
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # lockf, not flock: env workers forked from this process would inherit a flock and outlive a killed run with it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise OSError(error.errno, f"could not lock {directory / LOCK}: {error.strerror}") from error
        raise TorchmemError(f"{directory} is in use by another process; stop that run first") from error
    return file
