"""The replay of world-model training: a ring of lock-step rows on disk, sampled as sequences.

Row r is one step of all n envs; a sequence of env e is its steps in consecutive rows, across episode boundaries. Every
step has an absolute id = r * n + e, where r counts rows since the run began, and lives at place r % rows of its env.
Semantics follow danijar/dreamerv3, embodied/core/replay.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.training.long_term import LongTerm
from torchmem.training.long_term_recover import recover
from torchmem.training.replay_home import Home
from torchmem.training.replay_size import Schema, auto_capacity, bytes_per_step, estimate, free_bytes, readable
from torchmem.training.replay_store import Store, check_schema
from torchmem.training.replay_undo import LATENTS, REST, Undo

__all__ = ["Replay", "Schema", "auto_capacity", "bytes_per_step", "estimate", "free_bytes", "readable"]

log = logging.getLogger("torchmem")


class Replay:
    """A ring of steps from n lock-step envs. One thread uses it; one directory belongs to one process.

    schema: key -> (shape, dtype name) of one step of one env, "is_first" and "is_last" among them.
    capacity: steps over all envs. length: steps per sampled sequence, context included (T + context).
    latents: the keys that `write_back` may overwrite. pin: sample into pinned host memory.
    owner: id of the run; lets a run that died before its first committed snapshot start over in its own directory.
    long_term: folder of a second copy on slow, persistent storage (long_term.py), which `restore` falls back on.

    Raises FileExistsError where `directory` belongs to another run or holds other files, RuntimeError where another
    process uses it, OSError with numbers where the disk is too small, ValueError for an impossible schema or size.
    """

    _copy: LongTerm | None = None

    def __init__(
        self,
        schema: Schema,
        n: int,
        capacity: int,
        length: int,
        directory: str | Path,
        seed: int,
        online: bool = True,
        latents: Sequence[str] = ("deter", "stoch"),
        *,
        owner: str = "",
        pin: bool = False,
        long_term: str | Path | None = None,
    ) -> None:
        check_schema(schema, latents)
        rows = capacity // n
        if rows < length:
            raise ValueError(
                f"replay capacity {capacity} is {rows} steps for each of {n} envs, "
                f"less than one sequence of {length}; set it to {n * length} or more"
            )
        facts = {
            "schema": {key: [list(shape), str(dtype)] for key, (shape, dtype) in schema.items()},
            "n": n,
            "rows": rows,
            "length": length,
            "online": online,
            "latents": list(latents),
        }
        home = Home.claim(Path(directory), owner, facts)
        try:
            store = Store.create(home.data, schema, rows, n)
            if long_term is not None:
                self._copy = LongTerm.create(Path(long_term), home, self._pack)
        except BaseException:
            home.abandon()
            raise
        log.info("replay: %d steps, %s in %s", rows * n, readable(estimate(schema, rows * n)), home.directory)
        self._open(home, store, np.random.Generator(np.random.PCG64(seed)), pin)

    def _open(self, home: Home, store: Store, rng: np.random.Generator, pin: bool) -> None:
        facts = home.manifest
        self.schema: Schema = {key: (tuple(shape), dtype) for key, (shape, dtype) in facts["schema"].items()}
        self.n, self.rows, self.length, self.online = facts["n"], facts["rows"], facts["length"], facts["online"]
        self.latents = tuple(facts["latents"])
        self.directory, self.pin = home.directory, pin
        self._home, self._store, self._rng = home, store, rng
        rest = [key for key in self.schema if key not in self.latents]
        self._undo = Undo(home.journal, store, (self.latents, rest))
        self._head = 0  # rows ever added
        self._floor = facts.get("floor", 0)  # rows before it never were in this directory
        self._cut = False  # the next row does not follow on the newest one
        self.lost = 0  # steps of the snapshot that a long-term copy did not have
        self._served = 0  # pieces taken from the online queue, see _fresh

    # -- collecting ---------------------------------------------------------------------------------------------------

    def add(self, step: Mapping[str, np.ndarray | torch.Tensor]) -> None:
        """Append one lock-step: each key (n, *shape). Raises ValueError naming a key that is missing or unknown."""
        if step.keys() != self.schema.keys():
            missing, unknown = self.schema.keys() - step.keys(), step.keys() - self.schema.keys()
            raise ValueError(f"replay step lacks {sorted(missing)} and has unknown {sorted(unknown)}")
        content = {key: self._store.encode(key, value, (self.n,)) for key, value in step.items()}
        if self._cut:
            content["is_first"] = np.ones_like(content["is_first"])
        cells = self._cells(self._head * self.n + np.arange(self.n))
        self._undo.protect(LATENTS, cells)
        self._undo.protect(REST, cells)
        for key, value in content.items():
            self._store.scatter(key, cells, value)
        self._head, self._cut = self._head + 1, False
        if self._copy is not None:
            self._copy.follow(self._head, self.oldest)

    def _pack(self, first: int, count: int) -> list[np.ndarray]:
        """What `count` rows from `first` on hold: of each key uint8 (n * count, bytes of a step), env by env."""
        ids = np.arange(first, first + count) * self.n + np.arange(self.n)[:, None]
        return self._store.pack(list(self.schema), self._cells(ids.reshape(-1)))

    def mark_truncated(self, env: int) -> None:
        """Close the open episode of `env` at its newest stored step (is_last), for an env that starts anew.

        Nothing happens in an empty replay. Raises IndexError for an env that is not there.
        """
        if not 0 <= env < self.n:
            raise IndexError(f"env {env} of a replay with {self.n} envs")
        if self._head == 0:
            return
        cell = self._cells(np.array([(self._head - 1) * self.n + env]))
        self._undo.protect(REST, cell)
        self._store.scatter("is_last", cell, np.ones((1, 1), np.uint8))

    # -- sampling -----------------------------------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """The first row still held."""
        return max(self._floor, self._head - self.rows)

    @property
    def steps(self) -> int:
        """Steps held now, over all envs."""
        return (self._head - self.oldest) * self.n

    def __len__(self) -> int:
        """Sampleable sequences: start steps with `length` steps from there on."""
        return max(0, self._head - self.oldest - self.length + 1) * self.n

    def ready(self, items: int) -> bool:
        """Whether at least `items` sequences can be sampled (DreamerV3 trains from batch * T items on).

        Raises ValueError where this replay is too small ever to get there.
        """
        most = (self.rows - self.length + 1) * self.n
        if items > most:
            raise ValueError(
                f"training waits for {items} sequences, but a replay of {self.rows * self.n} steps holds at most "
                f"{most}; set replay.capacity to {(-(-items // self.n) + self.length - 1) * self.n} or more"
            )
        return len(self) >= items

    def sample(self, batch: int) -> dict[str, torch.Tensor]:
        """`batch` sequences: each key (B, L, *shape), latents (B, 1, *shape), `index` (B, L) int64: ids of the steps.

        Fresh pieces first, the rest uniform over all starts. is_first[:, 0] is True; is_last also holds in front of
        every is_first, for an episode that was cut. Host memory (pinned if `pin`); no device is touched.
        Raises RuntimeError while nothing can be sampled.
        """
        if len(self) == 0:
            raise RuntimeError(
                f"the replay holds {self.steps} steps, less than a sequence of {self.length} for each of {self.n} envs"
            )
        fresh = self._fresh(batch)
        # Ids of valid starts are one range, so a uniform draw is one integer each, whatever the size.
        drawn = self.oldest * self.n + self._rng.integers(0, len(self), batch - len(fresh))
        return self._sequences(np.concatenate([fresh, drawn]))

    def peek(self, batch: int, seed: int) -> dict[str, torch.Tensor]:
        """`sample` for a look: uniform, from `seed`, and as if it had not happened to those who sample after it."""
        drawn = np.random.default_rng(seed).integers(0, len(self), batch)
        return self._sequences(self.oldest * self.n + drawn)

    def _sequences(self, starts: np.ndarray) -> dict[str, torch.Tensor]:
        """The sequences that begin at the steps with these ids (B,)."""
        index = starts[:, None] + self.n * np.arange(self.length)
        cells = self._cells(index)
        self._store.prefetch(cells)
        data = {key: self._store.gather(key, cells, self.pin) for key in self.schema}
        data["is_last"][:, :-1] |= data["is_first"][:, 1:]
        data["is_first"][:, 0] = True
        data["index"] = torch.from_numpy(index)
        return data

    def _fresh(self, batch: int) -> np.ndarray:
        """Start ids from the online queue, at most `batch`.

        The queue needs no list: streams run in lock-step, so piece k of the run covers rows [k L, (k + 1) L) and is
        served for env 0, 1, ...; one counter says how far. Pieces that the ring has overwritten are dropped.
        """
        if not self.online:
            return np.empty(0, np.int64)
        self._served = max(self._served, -(-self.oldest // self.length) * self.n)
        ready = self._head // self.length * self.n
        items = np.arange(self._served, min(ready, self._served + batch))
        self._served += len(items)
        return items // self.n * self.length * self.n + items % self.n

    def _cells(self, ids: np.ndarray) -> np.ndarray:
        """Where the steps with these ids are, or were, in the store."""
        row, env = np.divmod(ids, self.n)
        return env * self.rows + row % self.rows

    def write_back(self, index: torch.Tensor | np.ndarray, latents: Mapping[str, torch.Tensor | np.ndarray]) -> None:
        """Overwrite stored latents by fresher ones; steps that the ring has overwritten since are skipped.

        index: (B, T) int64, as sampled. latents: exactly the keys `self.latents`, each (B, T, *shape). A step named
        twice keeps its last value. Hand it CPU tensors: a CUDA tensor is fetched, which waits for the device.
        """
        if latents.keys() != set(self.latents):
            raise ValueError(f"write-back of {sorted(latents)}, the replay's latents are {sorted(self.latents)}")
        index = np.asarray(index)
        content = {key: self._store.encode(key, value, index.shape) for key, value in latents.items()}
        flat = index.reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < self._head * self.n:
            made = f"0..{self._head * self.n - 1}"
            raise IndexError(f"write-back to ids {flat.min()}..{flat.max()}, but this replay holds ids of {made} only")
        held = flat >= self.oldest * self.n
        cells = self._cells(flat[held])
        self._undo.protect(LATENTS, cells)
        for key, value in content.items():
            self._store.scatter(key, cells, value[held])

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """JSON-able state to come back to. Copies no rows: from here on, what is overwritten is written down first.

        Keep the returned state with the run's other state, make that the newest snapshot, then call `commit`. Until
        then the snapshot before this one can be restored too.
        """
        self._store.sync()
        self._undo.sync()
        state = {
            "replay": self._home.manifest["token"],
            "head": self._head,
            "served": self._served,
            "cut": self._cut,
            "rng": self._rng.bit_generator.state,
        }
        token = self._undo.begin(min(self._head, self.rows))
        state |= {"epoch": self._undo.epoch, "journal": token}
        if self._copy is not None:
            self._copy.commit(self._head, self.oldest, state)
        return state

    def commit(self, keep: int = 1) -> None:
        """The newest snapshot is safely kept: drop what only snapshots before the `keep` newest need."""
        if self._undo.epoch == 0:
            raise RuntimeError("commit without a snapshot")
        self._home.mark_committed()
        if self._copy is not None:
            self._copy.mark_committed()
        self._undo.forget(keep)

    @classmethod
    def restore(
        cls,
        directory: str | Path,
        state: Mapping[str, Any],
        *,
        pin: bool = False,
        long_term: str | Path | None = None,
    ) -> Replay:
        """The replay in `directory` as it was when `snapshot` returned `state`.

        Sampling then gives what it gave after that snapshot. May be killed and called again. Raises FileNotFoundError
        or ValueError where the directory holds another replay, or one that has moved on past this snapshot. With
        `long_term` the rows then come from that copy, as long_term_recover.py tells; `lost` counts what it lacked.
        """
        place, asked = Path(directory), state
        try:
            self = cls._rewound(place, state, pin)
        except (FileNotFoundError, ValueError) as error:
            if long_term is None:
                raise
            state = recover(place, Path(long_term), asked, str(error))
            self = cls._rewound(place, state, pin)
        if state["journal"] != asked["journal"]:
            self.lost = (asked["head"] - self._head) * self.n
            for env in range(self.n):
                self.mark_truncated(env)
        if long_term is not None:
            try:
                self._copy = LongTerm.resume(Path(long_term), self._home, self._pack, state["journal"])
            except BaseException:
                self.close()
                raise
        return self

    @classmethod
    def _rewound(cls, directory: Path, state: Mapping[str, Any], pin: bool) -> Replay:
        """The replay that `directory` holds, at this snapshot."""
        home = Home.enter(directory, state["replay"])
        try:
            facts = home.manifest
            schema = {key: (tuple(shape), dtype) for key, (shape, dtype) in facts["schema"].items()}
            store = Store(home.data, schema, facts["rows"], facts["n"])
            self = cls.__new__(cls)
            self._open(home, store, np.random.Generator(np.random.PCG64()), pin)
            self._head, self._served, self._cut = state["head"], state["served"], state.get("cut", False)
            self._rng.bit_generator.state = state["rng"]
            self._undo.rewind(state["epoch"], state["journal"], min(self._head, self.rows))
            home.mark_committed()
        except BaseException:
            home.close()
            raise
        return self

    @property
    def journal_bytes(self) -> int:
        """Disk taken by the undo journals; a new committed snapshot sets it back."""
        return self._undo.bytes

    def close(self) -> None:
        """Give the directory free for another process."""
        if self._copy is not None:
            self._copy.close()
        self._undo.close()
        self._home.close()
