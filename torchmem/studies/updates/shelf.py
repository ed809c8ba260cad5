"""Where the parts of a study are kept, so that an interrupted one goes on: trained states and tables of episodes."""

from __future__ import annotations

import io
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torchmem.files import atomic_write
from torchmem.studies.updates.branch import State
from torchmem.studies.updates.episodes import Table

log = logging.getLogger("torchmem")


class Shelf:
    """Parts by name in a folder, each made once; folder None: kept in memory only.

        <folder>/<name>/agent/, training.*   a State
        <folder>/tables/<name>.npz           episodes
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._states: dict[str, State] = {}
        self._tables: dict[str, Table] = {}

    def state(self, name: str, make: Callable[[], State]) -> State:
        """The state `name`, read or made."""
        if name not in self._states:
            self._states[name] = self._read_or_make(name, make)
        return self._states[name]

    def _read_or_make(self, name: str, make: Callable[[], State]) -> State:
        place = self.folder / name if self.folder is not None else None
        if place is not None and (place / "agent").is_dir():
            return State.load(place)
        began = time.monotonic()
        state = make()
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)  # what a kill left half-written
            state.save(place)
        log.info("%s: done in %.0f s", name if place is None else place, time.monotonic() - began)
        return state

    def table(self, name: str, make: Callable[[], Table]) -> Table:
        """The episodes `name`, read or played."""
        if name not in self._tables:
            file = None if self.folder is None else self.folder / "tables" / f"{name.replace(' ', '_')}.npz"
            if file is not None and file.is_file():
                with np.load(file, allow_pickle=False) as found:
                    self._tables[name] = {key: found[key] for key in found.files}
            else:
                table = self._tables[name] = make()
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    content = io.BytesIO()
                    np.savez(content, allow_pickle=False, **table)
                    atomic_write(file, content.getvalue())
        return self._tables[name]
