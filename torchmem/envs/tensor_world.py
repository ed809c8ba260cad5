"""TensorWorld: thousands of copies of a MiniGrid memory world that step at once, on a CPU or a GPU, by table lookup.

Equal to `make_env(name, **kwargs)` transition by transition: observations, rewards, flags, truth (tests replay both).
Starts follow the same distribution, from a random sequence of their own: the seeds of the package are not reproduced.
What a world needs for this is its family of layouts (`FAMILIES`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.make import make_config, world_class
from torchmem.envs.seeds import Split, episode_seed
from torchmem.envs.tensor_draws import Chooser, streams, uniform
from torchmem.envs.tensor_show import Column, columns, shown
from torchmem.envs.tensor_tables import RUNNING, SUCCESS, Tables, build_tables

Tensors = dict[str, Tensor]
# name -> the function that lists its layouts with their probabilities
FAMILIES = {
    "minigrid_memory": "torchmem.envs.minigrid_layouts:layouts",
    "minigrid_switching": "torchmem.envs.minigrid_switching_layouts:layouts",
    "minigrid_four_room": "torchmem.envs.minigrid_four_room_layouts:layouts",
}
PRE_CUE, DELAY, CHOICE, DONE = range(4)
TIMEOUT = 3


class TensorWorld:
    """n copies of one world. `step` is VectorEnv's, with tensors.

    name, kwargs: as for `make_env`; ids of gymnasium work too. Copy i plays episodes 0, 1, 2, ...; where episode k of
    copy i starts follows from (split, seed, i, k) alone. No two copies influence each other.
    """

    def __init__(
        self, name: str, kwargs: Mapping[str, Any] | None, n: int, *, split: Split = "train", seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}")
        episode_seed(split, seed, 0, 0)  # refuses a bad split or seed
        self.name, config = make_config(name, **dict(kwargs or {}))
        if self.name not in FAMILIES:
            raise ValueError(f"{self.name} has no batched form; worlds that have: {', '.join(FAMILIES)}")
        self.n, self.split, self.seed, self.config = n, split, seed, config
        self.spec = world_class(self.name).describe(config)
        self.kwargs = dict(self.spec.kwargs)
        self.tables = tables = family_tables(self.name, config)
        self.max_steps: int = config.max_steps or 5 * config.size**2
        self._actions: int = config.actions

        def put(array: Any) -> Tensor:
            return torch.as_tensor(array, device=device)

        idle = np.arange(len(tables.end))[:, None].repeat(config.actions - 3, 1)  # actions beyond the third do nothing
        self._following = put(np.concatenate([tables.following, idle], 1).ravel())
        self._end = put(tables.end)
        self._codes = put(tables.view_of)
        self._obs = {k: put(v) for k, v in shown(config, tables).items()}
        self._heading = put(tables.poses[:, 2].copy())
        self._columns: list[Column] = columns(tables, config.actions, device)
        self._marks = put(tables.marks)
        self._deciding = [tables.mark_names.index(name) for name in tables.layouts[0].deciding]
        self._choice = tables.mark_names.index("choice")
        self._chooser = Chooser(tables.starts, tables.chances, device)
        self._keys = streams(f"{self.split} {self.seed}", n, device)
        self._index = {layout: k for k, layout in enumerate(tables.layouts)}
        whole = functools.partial(torch.zeros, n, dtype=torch.int64, device=device)
        self._state, self._start, self._steps, self._phase, self._outcome = (whole() for _ in range(5))
        self._episode = whole() - 1
        self._since = torch.full((n, len(tables.mark_names)), -1, dtype=torch.int64, device=device)
        self._closed = torch.ones(n, dtype=torch.bool, device=device)
        self._fresh = True  # no copy has an open episode, as far as this process knows without asking the device

    def step(self, actions: Mapping[str, Tensor] | None) -> tuple[Tensors, Tensors]:
        """Advance every copy: (data, truth), tensors that lead with n and that later steps never change.

        actions: {"action": int64 (n)}. A copy without an open episode is reset: its action is ignored, its reward is 0
        and is_first is True. None: allowed when every copy will be reset.
        data: observation keys, reward float32, is_first, is_last, is_terminal bool. truth: the keys of `spec.truth`.
        Raises ValueError for actions that do not fit.
        """
        opening = self._closed
        if actions is None:
            if not self._fresh and not bool(opening.all()):
                raise ValueError(f"{self.name}: step(None) with {int((~opening).sum())} open episodes")
            moved = self._state
        else:
            moved = self._following.index_select(0, self._state * self._actions + self._checked(actions))
        self._episode = self._episode + opening
        drawn = self._chooser.choose(uniform(self._keys, self._episode))
        self._start = torch.where(opening, drawn, self._start)
        return self._arrive(torch.where(opening, drawn, moved), opening)

    def reset(self, options: Mapping[str, Any] | None = None) -> tuple[Tensors, Tensors]:
        """Give up all open episodes and open the next ones: what the `step` that resets would return.

        options: the reset options of the gymnasium world, each one value for all copies or a sequence of n values.
        What they do not fix is drawn as it would have been without them: two worlds of one seed that differ in the
        option "cue" are counterfactual pairs, equal wherever no cue is in sight.
        Raises ValueError for an option that is unknown or impossible.
        """
        self._closed = torch.ones_like(self._closed)
        self._fresh = True
        if not options:
            return self.step(None)
        self._episode = self._episode + 1
        drawn = self._chooser.choose(uniform(self._keys, self._episode)).tolist()
        rows = [self._forced(state, row) for state, row in zip(drawn, spread(options, self.n), strict=True)]
        self._start = torch.as_tensor(rows, device=self._keys.device)
        return self._arrive(self._start, self._closed)

    def episodes(self) -> list[dict[str, Any]]:
        """For each copy the reset options that open the same episode anywhere, in the gymnasium world too."""
        return [self._options_of(state) for state in self._start.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Where every copy stands: a flat dict of JSON values and arrays, as VectorEnv's."""
        arrays = {k: getattr(self, f"_{k}").cpu().numpy().copy() for k in STATE}
        return {**self._identity(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        """Go on from `state`, exactly: True for every copy. Raises ValueError for the state of other worlds."""
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(f"these are the worlds of another run: {key} was {state.get(key)!r}, is {mine!r}")
        for key in STATE:
            old = getattr(self, f"_{key}")
            setattr(self, f"_{key}", torch.as_tensor(np.array(state[key]), dtype=old.dtype, device=old.device))
        self._fresh = False
        return [True] * self.n

    @property
    def device(self) -> torch.device:
        return self._keys.device

    @property
    def episode(self) -> Tensor:
        """The number of each copy's episode, int64 (n)."""
        return self._episode

    def present(self) -> tuple[Tensor, Tensor]:
        """For experts: the state of each copy, int64 (n), and the steps since each mark was seen, int64 (n, marks)."""
        return self._state, self._since

    def close(self) -> None:
        """Nothing to end; VectorEnv has it."""

    def _identity(self) -> dict[str, Any]:
        return {"name": self.name, "kwargs": self.kwargs, "n": self.n, "split": self.split, "seed": self.seed}

    def _checked(self, actions: Mapping[str, Tensor]) -> Tensor:
        if set(actions) != {"action"}:
            raise ValueError(f"{self.name}: got action keys {sorted(actions)}, expected ['action']")
        action = actions["action"]
        if action.shape != (self.n,):
            raise ValueError(f"{self.name}: action has shape {tuple(action.shape)}, expected ({self.n},)")
        if action.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(i) for i in action.aminmax())
            if low < 0 or high >= self._actions:
                raise ValueError(f"{self.name}: action must be in 0..{self._actions - 1}, got {low}..{high}")
        else:  # without waiting for the device
            torch._assert_async(((action >= 0) & (action < self._actions)).all())
        return action

    def _arrive(self, state: Tensor, opening: Tensor) -> tuple[Tensors, Tensors]:
        """Make `state` the present one, and tell what it is like."""
        self._fresh = False
        self._state = state
        steps = self._steps = torch.where(opening, 0, self._steps + 1)
        end = self._end.index_select(0, state)
        terminated = end != RUNNING
        self._outcome = torch.where(terminated | (steps < self.max_steps), end, TIMEOUT)
        self._closed = self._outcome != RUNNING
        # in float64 and then rounded, as the package's reward is on its way into a batch
        reward = torch.where(end == SUCCESS, 1 - 0.9 * (steps.double() / self.max_steps), 0.0).float()
        self._look(state, opening)
        code = self._codes.index_select(0, state)
        data = {k: table.index_select(0, code) for k, table in self._obs.items()}
        if self.config.direction:
            data["direction"] = self._heading.index_select(0, state)
        data |= {"reward": reward, "is_first": opening, "is_last": self._closed.clone(), "is_terminal": terminated}
        return data, self._truth()

    def _look(self, state: Tensor, opening: Tensor) -> None:
        """Bring up to date what has been seen how long ago."""
        self._seeing = seeing = self._marks.index_select(0, state)
        before = torch.where(opening[:, None], -1, self._since)
        self._since = torch.where(seeing, 0, before + (before >= 0))
        phase = torch.where(opening, PRE_CUE, self._phase)
        known, shown_now = self._since[:, self._deciding[0]] >= 0, seeing[:, self._deciding[0]]
        for mark in self._deciding[1:]:
            known, shown_now = known & (self._since[:, mark] >= 0), shown_now | seeing[:, mark]
        phase = torch.where(known & shown_now, DELAY, phase)
        self._phase = torch.where((phase == DELAY) & seeing[:, self._choice], CHOICE, phase)

    def _truth(self) -> Tensors:
        truth: Tensors = {}
        for column in self._columns:
            truth |= column.rows(self._state)
        for index, name in enumerate(self.tables.mark_names):
            truth[f"{name}_visible"] = self._seeing[:, index]
            if name != "choice":
                truth[f"steps_since_{name}"] = self._since[:, index].clone()  # the caller may write into it
        truth["phase"] = torch.where(self._closed, DONE, self._phase)
        truth["outcome"] = self._outcome.clone()
        truth["optimal_actions"] = truth["optimal_actions"] * ~self._closed[:, None]
        return truth

    def _options_of(self, state: int) -> dict[str, Any]:
        x, y, heading = (int(i) for i in self.tables.poses[state])
        layout = self.tables.layouts[self.tables.layout[state]]
        return {**layout.options(), "agent_pos": (x, y), "agent_dir": heading}

    def _forced(self, state: int, options: Mapping[str, Any]) -> int:
        """The state that a drawn one becomes under reset options."""
        tables, drawn = self.tables, self.tables.layouts[self.tables.layout[state]]
        valid = (*drawn.OPTIONS, "agent_pos", "agent_dir")
        for key in options:
            if key not in valid:
                raise ValueError(f"{self.name} has no reset option {key!r}; valid: {', '.join(valid)}")
        layout = drawn.changed(options)
        if layout not in self._index:
            raise ValueError(f"reset options {dict(options)} name a layout that {self.name} {self.kwargs} never draws")
        x, y, heading = layout.clip(tuple(int(i) for i in tables.poses[state]))  # type: ignore[arg-type]
        x, y = (int(i) for i in options.get("agent_pos", (x, y)))
        heading = int(options.get("agent_dir", heading))
        side = self.config.size
        inside = 0 < x < side - 1 and 0 < y < side - 1
        if not 0 <= heading < 4:
            raise ValueError(f"reset option agent_dir must be in 0..3; got {heading}")
        found = int(tables.ids[self._index[layout], x, y, heading]) if inside else -1
        if found < 0 or tables.end[found] != RUNNING:
            raise ValueError(f"reset option agent_pos {(x, y)} is a wall, an object, out of reach or an end here")
        return found


STATE = ("state", "start", "steps", "phase", "outcome", "episode", "since", "closed")


def family_tables(name: str, config: Any) -> Tables:
    """The tables of a world; those of the last few configurations are kept."""
    module, attribute = FAMILIES[name].split(":")
    layouts = tuple(getattr(importlib.import_module(module), attribute)(config))
    return _cached_tables(layouts, config.view, config.start)


@functools.lru_cache(maxsize=8)
def _cached_tables(layouts: Any, view: int, start: str) -> Tables:
    return build_tables(layouts, view, start)


def spread(options: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """One dict of options per copy. A tensor, an array or a list of n entries is one value each, the rest is shared."""
    each: dict[str, list[Any]] = {}
    for key, value in options.items():
        if isinstance(value, Tensor | np.ndarray):
            value = value.tolist()
        if isinstance(value, list):
            if len(value) != n:
                raise ValueError(f"reset option {key} has {len(value)} values for {n} copies (a shared one: a tuple)")
            each[key] = value
        else:
            each[key] = [value] * n
    return [{key: values[i] for key, values in each.items()} for i in range(n)]
