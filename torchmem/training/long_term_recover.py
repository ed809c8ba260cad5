"""The fast tier of a replay, built anew from its long-term copy: on another machine, or where a disk was lost.

Everything is checked on the way: the commit record, the header of each chunk against the record, each content against
its sum. Rows are taken from the newest backwards until the first chunk that is missing or damaged, so that what
training samples has no hole in it. Afterwards the fast tier is an ordinary one, at the snapshot asked for.

Latents come back as they were when their chunk was written; write-backs since then are in the fast tier only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.training.long_term import FACTS, enter, layout_of, schema_of
from torchmem.training.long_term_commit import Commits, Record
from torchmem.training.long_term_ring import Layout, Ring
from torchmem.training.replay_home import MANIFEST, Home
from torchmem.training.replay_journal import Journal
from torchmem.training.replay_store import Store
from torchmem.training.replay_undo import journal_path

log = logging.getLogger("torchmem")


def recover(directory: Path, source: Path, state: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Build the fast tier in `directory` from the copy in `source`; returns the state that it can be restored to.

    That is `state`, if the copy holds a commit of that snapshot. Otherwise it is the newest commit before it, with
    "cut": what is collected next does not follow on its last rows. why: what is wrong with the fast tier, for messages.
    A fast tier of this replay in `directory` is deleted, but only once the copy has been found fit.
    Raises FileNotFoundError where there is no copy, ValueError for one of another replay or without such a commit,
    FileExistsError where `directory` holds something else, OSError where its disk is too small.
    """
    try:
        copy = enter(source, state["replay"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{why}. Nor is there a long-term copy: {error}") from error
    try:
        commits, layout = Commits(copy.data), layout_of(copy.manifest)
        ring = Ring(copy.data / "chunks", layout, state["replay"])
        record = choose(commits.records(), state, source)
        _build(directory, copy, ring, record, why)
        ring.close()
        commits.close()
    finally:
        copy.close()
    if record.state["journal"] == state["journal"]:
        return dict(record.state)
    lost = (state["head"] - record.state["head"]) * layout.n
    log.warning(
        "the long-term copy in %s is from before this snapshot: its newest %d steps are lost, and every open episode "
        "is cut there",
        *(source, lost),
    )
    return {**record.state, "cut": True}


def newest(source: str | Path) -> dict[str, Any]:
    """The snapshot state of the newest commit in the copy at `source`, to restore where no snapshot is left."""
    found = []
    if (Path(source) / MANIFEST).exists():
        commits = Commits(Path(source) / "data")
        found = commits.records()
        commits.close()
    if not found:
        raise FileNotFoundError(f"{source} holds no commit of a replay")
    return found[0].state


def choose(records: Sequence[Record], state: Mapping[str, Any], source: Path) -> Record:
    """The record of the snapshot `state`, or the newest one before it. Raises ValueError where there is none."""
    for record in records:  # newest first
        if record.state["journal"] == state["journal"]:
            return record
    for record in records:
        if record.state["head"] <= state["head"]:
            return record
    raise ValueError(
        f"the long-term copy in {source} holds {'only commits of later snapshots' if records else 'no whole commit'}; "
        f"{'resume from the newest snapshot of this run' if records else 'start anew with another logdir='}"
    )


def _build(directory: Path, copy: Home, ring: Ring, record: Record, why: str) -> None:
    """Make `directory` a replay that holds the rows of `record`, and can be rewound to its snapshot."""
    token, facts = copy.manifest["token"], {key: copy.manifest[key] for key in FACTS}
    first = chain(ring, record)
    log.warning("%s: the replay is rebuilt from its long-term copy in %s", why, copy.directory)
    # Until it is whole the manifest says so: a kill in between leaves what the next restart deletes, and nothing else.
    home = Home.claim(directory, copy.manifest["owner"], {**facts, "filling": True}, token=token, replaces=token)
    try:
        store = Store.create(home.data, schema_of(facts), facts["rows"], facts["n"])
        floor = fill(store, ring, record, first)
        store.sync()
        Journal.create(journal_path(home.journal, record.state["epoch"]), record.state["journal"])
    except BaseException:
        home.abandon()
        raise
    missing = (floor - max(0, record.state["head"] - facts["rows"])) * facts["n"]
    if missing:
        log.warning("%d of the oldest steps are not in the copy: overwritten since the snapshot, or damaged", missing)
    home.manifest |= {"filling": False, "floor": floor, "committed": True}
    home.write()
    home.close()


def chain(ring: Ring, record: Record) -> int:
    """Number of the oldest chunk from which on every slot holds the chunk that the record says."""
    table = record.table
    for number in range(table.next - 1, table.first - 1, -1):
        if not ring.holds(number, table.chunks[number - table.first], table.successor(number)):
            return number + 1
    return table.first


def fill(store: Store, ring: Ring, record: Record, first: int) -> int:
    """Put the rows of the chunks from `first` on, and those behind them, into the store.

    Returns the oldest row from which on all are there and whole.
    """
    layout, table, chunk = ring.layout, record.table, ring.layout.chunk
    low = max(0, record.state["head"] - layout.rows)
    floor = record.tail[0]
    if first < table.next and table.next * chunk == floor:
        floor = max(low, first * chunk)
        for number in range(first, table.next):
            content = ring.content(number, table.chunks[number - table.first])
            if content is None:
                log.warning("chunk %d in %s is damaged: nothing before it can be used", number, ring.file)
                floor = max(low, (number + 1) * chunk)
            else:
                put(store, layout, number * chunk, chunk, content, low)
    put(store, layout, *record.tail, record.rows, low)
    return floor


def put(store: Store, layout: Layout, row: int, count: int, content: bytes, low: int) -> None:
    """Write `count` rows from `row` on into the store, except those below `low`, whose places newer rows take."""
    skip, place = max(0, low - row), 0
    rows = np.arange(row + skip, row + count) % layout.rows
    cells = (np.arange(layout.n)[:, None] * layout.rows + rows).reshape(-1)
    for key, width in zip(store.shapes, layout.widths, strict=True):
        size = layout.n * count * width
        block = np.frombuffer(content, np.uint8, size, place).reshape(layout.n, count, width)
        if len(rows):
            store.scatter(key, cells, block[:, skip:].reshape(-1, width))
        place += size
