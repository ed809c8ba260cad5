"""Files that survive a crash: written beside their place, synced, then renamed. A leaf."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | Path, content: bytes | str | Callable[[Path], None]) -> Path:
    """Write `path` so that a reader sees the old file or the whole new one, never half of it.

    content: bytes, text, or a function that writes the file at the temporary path it is given.
    Raises OSError naming the file (a full disk leaves the old file as it was).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        text = f"could not write {path}: {error.strerror}; the old file, if any, is untouched"
        raise OSError(error.errno, text) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
