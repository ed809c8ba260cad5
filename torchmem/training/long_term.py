"""The long-term copy of a replay: slow, persistent storage that follows the fast tier and outlives its machine.

    <replay.long_term>/rank<r>/replay.json        what the replay is; the same id as the fast tier's
    <replay.long_term>/rank<r>/data/chunks        rows in the order they were collected (long_term_ring.py)
    <replay.long_term>/rank<r>/data/commit.[ab]   which of them a restart may use (long_term_commit.py)

The fast tier is the ring of memory-mapped rows that training samples from. Whenever a chunk of rows is complete it is
appended here; at every snapshot the chunks are synced, and a commit record with the snapshot's state and the rows
behind the last chunk is written. `long_term_recover.py` builds a fast tier from that.

The copy reads from the fast tier and buffers nothing. So when the slow disk fails or is full, training goes on, and
what is missing here is appended at the first snapshot that finds the disk well again.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmem.training.long_term_commit import Commits, Table
from torchmem.training.long_term_ring import Layout, Ring
from torchmem.training.replay_home import MANIFEST, Home
from torchmem.training.replay_size import Schema, free_bytes, readable

log = logging.getLogger("torchmem")
OPTION = "replay.long_term"
FACTS = ("schema", "n", "rows", "length", "online", "latents")  # of the fast tier's manifest, which this one repeats

Pack = Callable[[int, int], Sequence[Any]]  # first row, count -> content of every key, (n, count, bytes of a step)


class LongTerm:
    """The copy of one replay. `follow` after every added row, `commit` at every snapshot; neither fails for a disk."""

    def __init__(self, home: Home, pack: Pack) -> None:
        """Open the copy in `home`, which `create` or `resume` took."""
        self.directory, self._home, self._pack = home.directory, home, pack
        self.layout = layout_of(home.manifest)
        self._ring = Ring(home.data / "chunks", self.layout, home.manifest["token"])
        self._commits = Commits(home.data)
        self._table = Table(0, secrets.token_hex(16))
        self._safe = self._table.copy()  # what the newest commit on the disk says
        self._safe_head = 0
        self.failing = False

    @classmethod
    def create(cls, directory: Path, fast: Home, pack: Pack) -> LongTerm:
        """A new copy of the replay in `fast`. Raises as `Home.claim` does, OSError where the disk is too small."""
        facts = {key: fast.manifest[key] for key in FACTS}
        layout = Layout.plan(schema_of(facts), facts["rows"], facts["n"])
        free = free_bytes(directory)
        if layout.bytes > free:
            raise OSError(
                f"the long-term copy of the replay needs {readable(layout.bytes)} in {directory}, where "
                f"{readable(free)} are free; set a smaller replay.capacity, or {OPTION} to another disk"
            )
        facts |= {"tier": "long_term", "chunk": layout.chunk, "slots": layout.slots}
        token, owner = fast.manifest["token"], fast.manifest["owner"]
        home = Home.claim(directory, owner, facts, token=token, option=OPTION)
        log.info(
            "long-term copy of the replay: at most %s in %s, chunks of %d steps",
            *(readable(layout.bytes), directory, layout.chunk * layout.n),
        )
        return cls(home, pack)

    @classmethod
    def resume(cls, directory: Path, fast: Home, pack: Pack, journal: str) -> LongTerm:
        """The copy again, as of the snapshot with this journal, to which the fast tier has gone back.

        Where it has no such commit (it is new, or the disk failed then) everything is copied anew from the fast tier.
        """
        if not (directory / MANIFEST).exists():
            log.info("%s holds no copy of the replay yet; one is made now", directory)
            return cls.create(directory, fast, pack)
        home = enter(directory, fast.manifest["token"])
        try:
            if [home.manifest[key] for key in FACTS] != [fast.manifest[key] for key in FACTS]:
                raise ValueError(f"{directory} holds a copy of another shape than the replay in {fast.directory}")
            self = cls(home, pack)
        except BaseException:
            home.close()
            raise
        found = [record for record in self._commits.records() if record.state["journal"] == journal]
        if found:
            self._commits.keep(found[0])
            self._table, self._safe = found[0].table, found[0].table.copy()
            self._safe_head = found[0].state["head"]
        else:
            log.info("the copy of the replay in %s is not of this snapshot; everything is copied anew", directory)
        return self

    def follow(self, head: int, oldest: int) -> None:
        """The fast tier holds rows `oldest` to `head` - 1: append the chunks that are complete."""
        if not self.failing:
            try:
                self._append(head, oldest)
            except OSError as error:
                self._failed(error)

    def commit(self, head: int, oldest: int, state: Mapping[str, Any]) -> None:
        """Make a restart come back to the replay as it is now, with this snapshot state."""
        try:
            if self.failing:
                self._commits.void()
            self._append(head, oldest)
            first = max(self._table.next * self.layout.chunk, oldest)
            tail = (first, head - first)
            self._ring.sync()
            self._commits.write(state, self._table, tail, self._pack(*tail))
        except OSError as error:
            return self._failed(error)
        if self.failing:
            log.info("the long-term copy of the replay in %s is whole again", self.directory)
        self._safe, self._safe_head, self.failing = self._table.copy(), head, False

    def mark_committed(self) -> None:
        """From now on only a restore may touch this directory."""
        try:
            self._home.mark_committed()
        except OSError as error:
            self._home.manifest["committed"] = False
            self._failed(error)

    def close(self) -> None:
        """Give the directory free for another process."""
        self._ring.close()
        self._commits.close()
        self._home.close()

    def _append(self, head: int, oldest: int) -> None:
        """Write the chunks up to the one before the newest row, which may still be marked as the end of its episode."""
        chunk, table = self.layout.chunk, self._table
        if table.next * chunk < oldest:  # the fast tier has gone on without us: nothing joins what is here
            table = self._table = Table(-(-oldest // chunk), secrets.token_hex(16))
        while (table.next + 1) * chunk < head:
            following = secrets.token_hex(16)
            content = self._pack(table.next * chunk, chunk)
            entry = self._ring.write(table.next, table.promised, following, content)
            table.chunks.append(entry)
            table.promised = following
        gone = sum(1 for number in range(table.first, table.next) if (number + 1) * chunk <= oldest)
        del table.chunks[:gone]
        table.first += gone

    def _failed(self, error: OSError) -> None:
        # After a failed sync nobody knows what is on the disk: everything since the last commit is written again.
        self._table = self._safe.copy()
        if not self.failing:
            log.warning(
                "the long-term copy of the replay in %s could not be written (%s). Training goes on, and the fast tier "
                "has everything; should it be lost, a restart finds the %d steps that the copy has committed. Make "
                "room: every snapshot tries again",
                *(self.directory, error.strerror or error, self._safe_head * self.layout.n),
            )
        self.failing = True


def schema_of(manifest: Mapping[str, Any]) -> Schema:
    """The schema that a manifest tells."""
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in manifest["schema"].items()}


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """The layout that the manifest of a copy tells."""
    m = manifest
    return Layout.of(schema_of(m), m["rows"], m["n"], m["chunk"], m["slots"])


def enter(directory: Path, token: str) -> Home:
    """Take a directory that holds the copy of replay `token`. Raises FileNotFoundError or ValueError otherwise."""
    home = Home.enter(directory, token, option=OPTION)
    if home.manifest.get("tier") != "long_term":
        home.close()
        raise ValueError(f"{directory} holds a replay, not a long-term copy of one; check {OPTION}")
    return home
