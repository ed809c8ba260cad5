"""ProcgenPool: n copies of one Procgen game that EnvPool's threads step at once. It speaks as VectorEnv does."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.make import make_config, world_class
from torchmem.envs.procgen_config import levels
from torchmem.envs.procgen_engine import ACTIONS, Engine, Frames
from torchmem.envs.protocol import Arrays
from torchmem.envs.seeds import Split, episode_seed, narrow_seed

log = logging.getLogger("torchmem")


class ProcgenPool:
    """Copy i plays levels of its split's range, drawn by Procgen's own generator from (split, seed, i) alone.

    They are other levels than those of `make_env` with the seeds of a VectorEnv, from the same ranges; on one level and
    with the same actions both go through the same frames, rewards and ends.

    name, kwargs: as for `make_env`. Raises TorchmemError where EnvPool or Qt is missing.
    """

    def __init__(
        self, name: str, kwargs: Mapping[str, Any] | None, n: int, *, split: Split = "train", seed: int = 0
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}")
        self.name, config = make_config(name, **dict(kwargs or {}))
        if self.name != "procgen":
            raise ValueError(f"{self.name} has no pool; only procgen has")
        self.n, self.config, self.seed = n, config, seed
        self.split: Split = split
        self.spec = world_class(self.name).describe(config)
        self.kwargs = dict(self.spec.kwargs)
        self.restarted = np.zeros(n, bool)  # never
        episode_seed(split, seed, n - 1, 0)  # refuses a bad split or seed
        self._start(0)

    def _start(self, life: int) -> None:
        """Games that have opened no level yet. life: other levels for those whose state could not be restored."""
        self._life = life
        seeds = [narrow_seed(episode_seed(self.split, self.seed, i, life)) for i in range(self.n)]
        self._engine = Engine(self.config, levels(self.config, self.split), seeds, self.config.threads)
        self._closed = np.ones(self.n, bool)
        self._opened = np.zeros(self.n, np.int64)  # levels so far
        self._steps = np.zeros(self.n, np.int64)  # actions since the level opened, an end included
        self._actions = np.zeros((self.n, 512), np.uint8)  # those actions, as no game can be asked for its state
        self._now: Frames | None = None

    def step(self, actions: Mapping[str, np.ndarray] | None) -> tuple[Arrays, Arrays]:
        """Advance every copy: (data, truth), as VectorEnv.step. A copy whose last step was is_last opens a level."""
        first = self._closed
        chosen = self._checked(actions)
        if self._now is None:
            now = self._engine.reset()
        else:
            now = self._engine.step(np.where(first, 0, chosen))
        if not np.array_equal(now.time == 0, first):
            raise RuntimeError("procgen: EnvPool did not open levels where they had ended; this is a fault of torchmem")
        self._note(first, chosen)
        self._now = now
        self._closed = now.terminated | now.truncated
        flags = {"is_first": first.copy(), "is_last": self._closed.copy(), "is_terminal": now.terminated}
        return {"image": now.image, "reward": np.where(first, np.float32(0), now.reward), **flags}, now.truth()

    def _checked(self, actions: Mapping[str, np.ndarray] | None) -> np.ndarray:
        if actions is None:
            if not self._closed.all():
                raise ValueError(f"procgen: step(None) with {int((~self._closed).sum())} open episodes")
            return np.zeros(self.n, np.int64)
        if set(actions) != {"action"}:
            raise ValueError(f"procgen: got action keys {sorted(actions)}, expected ['action']")
        chosen = np.asarray(actions["action"])
        if chosen.shape != (self.n,):
            raise ValueError(f"procgen: action has shape {chosen.shape}, expected ({self.n},)")
        played = chosen[~self._closed]
        if played.size and not (0 <= played.min() and played.max() < ACTIONS):
            raise ValueError(f"procgen: action must be in 0..{ACTIONS - 1}, got {played.min()}..{played.max()}")
        return chosen

    def _note(self, first: np.ndarray, chosen: np.ndarray) -> None:
        """Write down what was done, for `state_dict`."""
        self._opened += first
        self._steps[first] = 0
        went = np.flatnonzero(~first)
        if went.size and self._steps.max() == self._actions.shape[1]:
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)], 1)
        self._actions[went, self._steps[went]] = chosen[went]
        self._steps[went] += 1

    # State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where every copy stands: how many levels it has opened and what it did in the last one."""
        state = {**self._identity(), "life": self._life, "opened": self._opened.copy(), "steps": self._steps.copy()}
        counts = np.arange(self._steps.max()) < self._steps[:, None]  # the rest is of earlier levels
        actions = np.where(counts, self._actions[:, : counts.shape[1]], 0).astype(np.uint8)
        return {**state, "actions": actions, "check": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        """Go on from `state`: every level so far is opened again, the last one is played again.

        Takes about 0.3 ms of CPU per level. Exact and True for every copy; should one then show something else (another
        EnvPool, another processor), all open other levels than before, and all are False. Raises ValueError for the
        state of other worlds.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(f"these are the worlds of another run: {key} was {state.get(key)!r}, is {mine!r}")
        self._start(int(state["life"]))
        opened = np.array(state["opened"], np.int64)
        if not opened.any():
            return [True] * self.n
        if opened.sum() > 10_000:
            log.info("procgen: opening %d levels again to go on where the run stopped", opened.sum())
        self._replay(opened, np.array(state["steps"], np.int64), np.array(state["actions"], np.uint8))
        if self._fingerprint() == state["check"]:
            return [True] * self.n
        log.warning("procgen: the replayed games differ from the saved ones; all %d start new levels", self.n)
        self._start(int(state["life"]) + 1)
        return [False] * self.n

    def _replay(self, opened: np.ndarray, steps: np.ndarray, actions: np.ndarray) -> None:
        image = np.zeros((self.n, *self.spec.obs["image"].shape), np.uint8)
        rows = [image, np.zeros(self.n, np.float32), *np.zeros((2, self.n), bool)]
        rows += [np.zeros(self.n, kind) for kind in (np.int64, np.uint8, np.int64)]
        now = Frames(*rows)
        for level in range(int(opened.max())):
            which = np.flatnonzero(opened > level)
            put(now, which, self._engine.reset(which))
        for step in range(int(steps.max())):
            which = np.flatnonzero(steps > step)
            put(now, which, self._engine.step(actions[which, step], which))
        self._now, self._closed, self._opened, self._steps = now, now.terminated | now.truncated, opened, steps
        self._actions = np.zeros((self.n, max(512, actions.shape[1])), np.uint8)
        self._actions[:, : actions.shape[1]] = actions

    def _fingerprint(self) -> list[int]:
        """32 bits of what each copy shows and of its truth."""
        if self._now is None:
            return []
        rows = zip(self._now.image, self._now.level, self._now.time, self._closed, strict=True)
        return [zlib.crc32(image.tobytes(), zlib.crc32(repr([int(i) for i in rest]).encode())) for image, *rest in rows]

    def _identity(self) -> dict[str, Any]:
        played = {key: value for key, value in self.kwargs.items() if key not in ("backend", "threads")}
        return {"name": self.name, "kwargs": played, "n": self.n, "split": self.split, "seed": self.seed}

    def close(self) -> None:
        """End EnvPool's threads."""
        self.__dict__.pop("_engine", None)

    def __enter__(self) -> ProcgenPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def put(rows: Frames, which: np.ndarray, part: Frames) -> None:
    """Write the frames of some copies over theirs."""
    for mine, theirs in zip(rows, part, strict=True):
        mine[which] = theirs
