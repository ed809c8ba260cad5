"""VectorEnv: n worlds in lock-step, in this process or in workers, always in the same order."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from torchmem.envs.group import GroupFailed, LocalGroup, WorkerGroup
from torchmem.envs.host import Block
from torchmem.envs.make import env_spec
from torchmem.envs.protocol import Arrays
from torchmem.envs.seeds import Split, episode_seed
from torchmem.errors import TorchmemError

MAX_RESTARTS = 3  # in a row, of one group of worlds
log = logging.getLogger("torchmem")


class WorldFailed(TorchmemError):
    """A world raised or died and the run ends; the message holds its traceback."""


class VectorEnv:
    """n worlds of one kind. Env i plays episodes 0, 1, 2, ... with seeds `episode_seed(split, seed, i, episode)`.

    workers: processes that hold the worlds, about n / workers each; 0: this process (then each world fails alone).
    on_error: what happens when a world raises or its process dies. "restart": the traceback is logged, the worlds of
    that process are built anew and start their next episodes, which `restarted` shows; after 3 restarts in a row
    without a good step in between, or with "raise" at once, all is closed and WorldFailed raised.

    restarted: bool (n), True where the last `step` gave up an open episode. The step before was not `is_last`, and
    the caller marks it truncated.
    """

    def __init__(
        self, name: str, kwargs: Mapping[str, Any] | None, n: int, *, split: Split, seed: int, workers: int = 0,
        on_error: Literal["restart", "raise"] = "restart",
    ) -> None:
        if n < 1 or workers < 0:
            raise ValueError(f"n must be at least 1 and workers at least 0; got n={n}, workers={workers}")
        if on_error not in ("restart", "raise"):
            raise ValueError(f"on_error must be restart or raise; got {on_error!r}")
        self.name, self.kwargs, self.n = name, dict(kwargs or {}), n
        self.split: Split = split
        self.seed, self.on_error = seed, on_error
        self.spec = env_spec(name, **self.kwargs)
        episode_seed(split, seed, n - 1, 0)  # refuse a bad split or seed before anything starts
        self.restarted = np.zeros(n, bool)
        self._episode = np.full(n, -1, np.int64)
        self._closed = np.ones(n, bool)  # no open episode: the next step resets
        self._whole = True  # False while a step is under way, and afterwards if it was interrupted
        kind, parts = (WorkerGroup, min(workers, n)) if workers else (LocalGroup, n)
        self._slices = [slice(int(p[0]), int(p[-1]) + 1) for p in np.array_split(np.arange(n), parts)]
        self._groups = [kind(name, self.kwargs, s.stop - s.start) for s in self._slices]
        self._failures = [0] * parts
        self._finalizer = weakref.finalize(self, _close, self._groups)
        self._start()

    def _start(self) -> None:
        """Fresh worlds, without an open episode. Where one cannot be built, all is closed and WorldFailed raised."""
        try:
            for group in self._groups:
                group.start()
            for group in self._groups:
                group.result()
        except GroupFailed as failure:  # a world that cannot even be built will not get better
            self.close()
            raise WorldFailed(f"could not make {self.name} {self.kwargs}:\n{failure}") from failure
        except BaseException:
            self.close()
            raise

    def step(self, actions: Mapping[str, np.ndarray] | None) -> tuple[Arrays, Arrays]:
        """Advance every world: (data, truth), arrays that lead with n.

        actions: one array (n, *shape) for each action key. A world without an open episode is reset, its row is
        ignored, its reward is 0 and is_first is True. None: allowed when every world will be reset.
        data: observation keys, reward float32, is_first, is_last, is_terminal bool. truth: the keys of `spec.truth`.
        Raises WorldFailed, ValueError for actions that do not fit, and RuntimeError after a step that was
        interrupted (the worlds are ahead of the caller's record, and answers may still wait in the pipes).
        """
        self._check_whole()
        actions = self._check_actions(actions)
        self._whole = False
        self.restarted = np.zeros(self.n, bool)
        first = self._closed.copy()
        seeds: list[int | None] = [self._next_seed(i) if first[i] else None for i in range(self.n)]
        for group, part in zip(self._groups, self._slices, strict=True):
            group.submit("step", seeds[part], {k: v[part] for k, v in actions.items()})
        blocks: list[Block] = []
        for index, group in enumerate(self._groups):
            try:
                blocks.append(group.result())
                self._failures[index] = 0
            except GroupFailed as failure:
                part = self._slices[index]
                self.restarted[part] = ~first[part]
                first[part] = True
                blocks.append(self._restart(index, failure))
        obs, reward, terminated, truncated, truth = join(blocks)
        self._closed = terminated | truncated
        self._whole = True
        flags = {"is_first": first, "is_last": self._closed.copy(), "is_terminal": terminated}
        return {**obs, "reward": reward, **flags}, truth

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError(f"{self.name}: the last step was interrupted, so the worlds are ahead of the record: "
                               "load a state_dict to go on from there, or close the worlds")

    def _check_actions(self, actions: Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray]:
        if actions is None:
            if not self._closed.all():
                raise ValueError(f"{self.name}: step(None) with {int((~self._closed).sum())} open episodes")
            return {}
        if set(actions) != set(self.spec.action):
            raise ValueError(f"{self.name}: got action keys {sorted(actions)}, expected {sorted(self.spec.action)}")
        for key, space in self.spec.action.items():
            if np.shape(actions[key]) != (self.n, *space.shape):
                expected = (self.n, *space.shape)
                raise ValueError(f"{self.name}: {key} has shape {np.shape(actions[key])}, expected {expected}")
        return actions

    def _next_seed(self, i: int) -> int:
        self._episode[i] += 1
        return episode_seed(self.split, self.seed, i, int(self._episode[i]))

    def _restart(self, index: int, failure: GroupFailed) -> Block:
        """Build the worlds of a failed group again and open their next episodes."""
        group, part = self._groups[index], self._slices[index]
        which = f"{self.name}, envs {part.start} to {part.stop - 1}"
        while True:
            self._failures[index] += 1
            if self.on_error == "raise" or self._failures[index] > MAX_RESTARTS:
                self.close()
                times = "" if self.on_error == "raise" else f" {self._failures[index]} times in a row"
                raise WorldFailed(f"{which} failed{times}:\n{failure}") from failure
            log.warning(
                "%s failed and restart (%d of %d in a row):\n%s", which, self._failures[index], MAX_RESTARTS, failure)
            try:
                group.start()
                group.result()
                group.submit("step", [self._next_seed(i) for i in range(part.start, part.stop)], {})
                return group.result()
            except GroupFailed as again:
                failure = again

    def state_dict(self) -> dict[str, Any]:
        """Where every world stands: a flat dict of JSON values and arrays (keys "env<i>.<key>" for open episodes).

        Raises RuntimeError after a step that was interrupted, for then the worlds are ahead of the caller's record.
        """
        self._check_whole()
        state = {**self._identity(), "episode": self._episode.copy(), "closed": self._closed.copy()}
        for i, world in enumerate(self._everywhere("save", [not closed for closed in self._closed])):
            state |= {f"env{i}.{key}": value for key, value in (world or {}).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        """Go on from `state`. One bool per env: False where its open episode could not be continued exactly.

        Such an env opens its next episode at the next step, and the caller marks the lost one truncated.
        Raises ValueError when `state` belongs to other worlds, seeds or another n, WorldFailed where a world fails.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(f"these are the worlds of another run: {key} was {state.get(key)!r}, is {mine!r}")
        if not self._whole:  # fresh worlds, for late answers of the interrupted step may wait in the old ones' pipes
            self._start()
        self._episode = np.array(state["episode"], np.int64)
        self._closed = np.array(state["closed"], bool)
        worlds = [
            None if closed else {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"env{i}.")}
            for i, closed in enumerate(self._closed)
        ]
        reasons = self._everywhere("load", worlds)
        for i, reason in enumerate(reasons):
            if reason:
                log.warning("env %d: its open episode was lost and is marked truncated: %s", i, reason)
                self._closed[i] = True
        self._whole = True
        return [not reason for reason in reasons]

    def _identity(self) -> dict[str, Any]:
        return {"name": self.name, "kwargs": self.kwargs, "n": self.n, "split": self.split, "seed": self.seed}

    def _everywhere(self, method: str, rows: Sequence[Any]) -> list[Any]:
        """Call a Host method with one argument per env; a failure here ends the run."""
        try:
            for group, part in zip(self._groups, self._slices, strict=True):
                group.submit(method, rows[part])
            return [answer for group in self._groups for answer in group.result()]
        except GroupFailed as failure:
            self.close()
            raise WorldFailed(f"{self.name} failed to {method} its state:\n{failure}") from failure

    def close(self) -> None:
        """End all workers. Safe to repeat; also done when the object is garbage or the interpreter ends."""
        self._finalizer()

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def join(blocks: Sequence[Block]) -> Block:
    """The blocks of all groups as one block over all worlds."""
    obs, reward, terminated, truncated, truth = zip(*blocks, strict=True)
    return (
        {k: np.concatenate([o[k] for o in obs]) for k in obs[0]},
        np.concatenate(reward), np.concatenate(terminated), np.concatenate(truncated),
        {k: np.concatenate([t[k] for t in truth]) for k in truth[0]},
    )


def _close(groups: Sequence[LocalGroup | WorkerGroup]) -> None:
    for group in groups:
        group.close()
