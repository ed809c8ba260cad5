"""Which cells need writing down before they change, and the way back to a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchmem.training.replay_journal import Journal, records, token_of
from torchmem.training.replay_store import Store

LATENTS, REST = 0, 1  # groups of keys: write-back touches only the first, a new row both


class Undo:
    """Journals of one store. Until the first snapshot nothing is written down: there is no way back to keep open."""

    def __init__(self, folder: Path, store: Store, groups: tuple[Sequence[str], Sequence[str]]) -> None:
        self._folder, self._store, self._groups = folder, store, groups
        self._journal: Journal | None = None
        self._kept = np.empty((2, 0), np.bool_)  # (group, cell): no (further) record needed in this epoch
        self.epoch = 0

    @property
    def bytes(self) -> int:
        """Size of all journals on disk."""
        return sum(path.stat().st_size for path in self._files().values())

    def protect(self, group: int, cells: np.ndarray) -> None:
        """Call before overwriting keys of `group` in `cells`. Raises OSError on a full disk: then do not overwrite."""
        if self._journal is None:
            return
        cells = cells[~self._kept[group, cells]]
        if not cells.size:
            return
        cells = np.unique(cells)
        self._journal.append(group, cells, self._store.pack(self._groups[group], cells))
        self._kept[group, cells] = True

    def begin(self, occupied: int) -> str:
        """Open the next epoch; rows from `occupied` on hold nothing yet and need no record. Returns its token."""
        journal, token = Journal.create(self._path(self.epoch + 1))
        self._switch(journal, self.epoch + 1, occupied)
        return token

    def forget(self, keep: int = 1) -> None:
        """Delete all but the `keep` newest journals, oldest first, so that what remains always has no gap."""
        for epoch, path in sorted(self._files().items()):
            if epoch <= self.epoch - keep:
                path.unlink()

    def rewind(self, epoch: int, token: str, occupied: int) -> None:
        """Give every cell the content it had when `begin` returned `token`, and go on from there.

        May be killed and called again: undoing twice is undoing once. Raises ValueError where this is not possible.
        """
        files = self._files()
        path = self._path(epoch)
        if epoch not in files or token_of(path) != token:
            raise ValueError(
                f"the replay in {self._folder.parent} can not go back to this snapshot: its journal {path.name} is "
                f"{'of another snapshot' if epoch in files else 'gone, a newer snapshot was committed'}; "
                "resume from the newest snapshot of this run"
            )
        newest_first = [files[number] for number in sorted(files, reverse=True) if number >= epoch]
        for newer in newest_first:
            token_of(newer)  # raises if it is no journal
            for group, cells, content in records(newer):
                self._store.unpack(self._groups[group], cells, content)
        self._store.sync()
        for newer in newest_first[:-1]:  # newest first: a kill in between leaves a shorter chain, still right
            newer.unlink()
        self._switch(Journal.emptied(path), epoch, occupied)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def sync(self) -> None:
        if self._journal is not None:
            self._journal.sync()

    def _switch(self, journal: Journal, epoch: int, occupied: int) -> None:
        self.close()
        self._journal, self.epoch = journal, epoch
        if not self._kept.size:
            self._kept = np.empty((2, self._store.cells), np.bool_)
        by_row = self._kept.reshape(2, self._store.n, self._store.rows)
        by_row[:, :, :occupied] = False
        by_row[:, :, occupied:] = True

    def _path(self, epoch: int) -> Path:
        return journal_path(self._folder, epoch)

    def _files(self) -> dict[int, Path]:
        return {int(path.stem): path for path in self._folder.glob("*.undo")}


def journal_path(folder: Path, epoch: int) -> Path:
    """The journal of one epoch."""
    return folder / f"{epoch:08d}.undo"
