"""What an agent's world model makes of recorded steps: states and sites where dreams begin, and along the real future.

A track is a stretch of one recorded episode that is observed from a blank memory: the whole episode, or a window of a
given length. Whatever a dream begins from is computed from its track alone, up to the step where it begins.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.errors import TorchmemError

ROWS, STEPS = 32, 64  # tracks and steps of one pass
Alter = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]  # observations, their rows -> others


class DreamError(TorchmemError, ValueError):
    """This agent, recording or site cannot be dreamed with; the message says what would be needed."""


@dataclasses.dataclass(frozen=True)
class Starts:
    """S places where dreams begin. row: (S,) the last observed step, of the recording. track: (S,) index into `first`,
    `stop`: (K,) rows where tracks begin and end (the last is not in it). warmup: (S,) steps from track to start."""

    row: np.ndarray
    track: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    @property
    def warmup(self) -> np.ndarray:
        return self.row - self.first[self.track] + 1


def choose_starts(
    recording: Any, warmup: int | None, horizon: int, count: int, stride: int, rng: np.random.Generator
) -> Starts:
    """Up to `count` random ones among every `stride`-th step that has `warmup` steps behind it and one step after it.

    warmup None: everything since the episode began. Raises DreamError where no step qualifies.
    """
    if (warmup is not None and warmup < 1) or horizon < 1 or count < 2 or stride < 1:
        raise DreamError(f"warmup={warmup}, horizon={horizon}, starts={count}, stride={stride}: "
                         f"at least 1 each, and 2 starts")  # fmt: skip
    table, step = recording.episodes, recording.step
    left = np.repeat(table["stop"], table["length"]) - np.arange(recording.steps) - 1
    begin = (warmup or 1) - 1
    able = np.flatnonzero((step >= begin) & ((step - begin) % stride == 0) & (left >= 1))
    if len(able) < 2:
        longest = int(table["length"].max()) if len(table) else 0
        raise DreamError(f"no step has warmup={warmup} steps behind it and one after it: the longest of "
                         f"{len(table)} episodes has {longest} steps")  # fmt: skip
    row = np.sort(rng.permutation(able)[:count])
    if warmup is None:
        used, track = np.unique(recording.episode[row], return_inverse=True)
        first = table["start"][used]
        last = np.zeros(len(used), np.int64)
        np.maximum.at(last, track, row)
        stop = np.minimum(last + horizon + 1, table["stop"][used])
    else:
        track, first = np.arange(len(row)), row - warmup + 1
        stop = np.minimum(row + horizon + 1, table["stop"][recording.episode[row]])
    return Starts(row, track, first, stop)


@contextmanager
def watching(model: Any, sites: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Site -> what it gave at each of its calls inside the block, behind all edits."""
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    handles = []
    try:
        for name in sites:
            module = model.agent.get_submodule(model.find(name).path)
            handle = module.register_forward_hook(functools.partial(_keep, found[name]))
            # hooks of edits come and go with every pass: be behind them, to see edited values
            handles += [handle, module.register_forward_pre_hook(functools.partial(_to_the_end, handle.id))]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(calls: list[Tensor], module: Any, args: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        calls.append(value.detach())


def _to_the_end(hook: int, module: Any, args: Any) -> None:
    module._forward_hooks.move_to_end(hook)


def along(calls: Sequence[Tensor], rows: int, steps: int, units: int) -> Tensor | None:
    """(rows, steps, units) of a module's calls, once per sequence or per step; None where they do not add up to it."""
    if len(calls) == 1 and calls[0].numel() == rows * steps * units:
        return calls[0].reshape(rows, steps, units)
    if len(calls) == steps and all(call.numel() == rows * units for call in calls):
        return torch.stack([call.reshape(rows, units) for call in calls], 1)
    return None


@dataclasses.dataclass(frozen=True)
class Seen:
    """Q observed steps, in the order asked for. states: a named tuple of the agent's latent state, each (Q, ...);
    sites: name -> (Q, units) float32."""

    states: Any
    sites: dict[str, np.ndarray]


def direct(agent: Any, states: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Of these sites, those that a latent state (B, ...) already holds: name -> (B, units)."""
    known = {agent.sites["dynamics.deter"].path: states.deter, agent.sites["dynamics.stoch"].path: states.stoch}
    if hasattr(states, "hidden"):
        known[agent.sites["memory"].path] = states.hidden
    paths = {name: agent.sites[name].path for name in names}
    return {name: known[path].flatten(1).float() for name, path in paths.items() if path in known}


def observe(
    model: Any, recording: Any, starts: Starts, asked: np.ndarray, track: np.ndarray, sites: Sequence[str],
    *, seed: int, modes: bool = False, alter: Alter | None = None,
) -> Seen:  # fmt: skip
    """Observe tracks and return the states at `asked` (Q,) rows of the recording, each in its track (Q,).

    alter: changes what is seen. modes: take the likeliest latents, do not sample them. Raises DreamError
    where observations were not recorded.
    """
    agent = model.agent
    other = [name for name in sites if agent.sites[name].path not in _direct_paths(agent)]
    parts: list[tuple[np.ndarray, Any, dict[str, np.ndarray]]] = []
    length = np.zeros(len(starts.first), np.int64)
    np.maximum.at(length, track, asked - starts.first[track] + 1)
    used = np.flatnonzero(length)
    used = used[np.argsort(-length[used], kind="stable")]
    number = 0
    for group in np.array_split(used, -(-len(used) // ROWS)):
        carry, slot = model.initial(len(group)), {int(k): i for i, k in enumerate(group)}
        mine = np.flatnonzero(np.isin(track, group))
        lane = np.array([slot[int(k)] for k in track[mine]])
        place = asked[mine] - starts.first[track[mine]]
        for begin in range(0, int(length[group].max()), STEPS):
            end = min(begin + STEPS, int(length[group].max()))
            rows = starts.first[group][:, None] + np.arange(begin, end)
            rows = np.minimum(rows, (starts.first + length - 1)[group][:, None])  # past its end a track is padding
            given = read_steps(agent, recording, rows, alter)
            given["is_first"][:, 0] |= begin == 0
            out, calls = _pass(model, given, carry, other, seed * 1_000_003 + number, "mode" if modes else None)
            number, carry = number + 1, out.carry
            here = np.flatnonzero((place >= begin) & (place < end))
            at = lane[here], place[here] - begin
            picked = type(out.states)(*(part[at] for part in out.states))
            values = {name: calls[name][at].float().cpu().numpy() for name in other}
            values |= {name: v.cpu().numpy() for name, v in direct(agent, picked, sites).items()}
            parts.append((mine[here], picked, values))
    order = np.argsort(np.concatenate([index for index, _, _ in parts]))
    back = torch.as_tensor(order, device=agent.device)
    kind = type(parts[0][1])
    states = kind(*(torch.cat(pieces)[back] for pieces in zip(*(states for _, states, _ in parts))))
    return Seen(states, {name: np.concatenate([values[name] for _, _, values in parts])[order] for name in sites})


def _direct_paths(agent: Any) -> set[str]:
    return {agent.sites[name].path for name in ("dynamics.deter", "dynamics.stoch", "memory")}


def _pass(
    model: Any, given: dict[str, Any], carry: Any, other: Sequence[str], seed: int, noise: Any
) -> tuple[Any, dict]:
    """Outputs with `states` and `carry`, and the sites that need the whole agent to run."""
    rows, steps = given["is_first"].shape
    if not other:
        return model.observe(given, carry=carry, seed=seed, noise=noise), {}
    with watching(model, other) as calls:
        out = model.unroll(given, carry=carry, seed=seed, noise=noise)
    found = {}
    for name in other:
        value = along(calls[name], rows, steps, int(np.prod(model.find(name).shape)))
        if value is None:
            raise DreamError(f"site {name!r} does not run once per observed step: probe another")
        found[name] = value
    return out, found


def read_steps(agent: Any, recording: Any, rows: np.ndarray, alter: Alter | None = None) -> dict[str, Any]:
    """Observations, actions and is_first of rows (B, T) of a recording, as the agent takes them. Raises DreamError."""
    spec = agent.spec
    names = {**{key: f"obs.{key}" for key in spec.obs}, **{key: key for key in spec.action}, "is_first": "is_first"}
    missing = [name for name in names.values() if name not in recording.covariates]
    if missing:
        hint = "record again without --no-observations" if missing[0].startswith("obs.") else "is it of this agent?"
        raise DreamError(f"{recording.path} holds no {missing[0]!r}, which this agent needs: {hint}")
    flat, back = np.unique(rows, return_inverse=True)
    raw = {key: np.asarray(recording.covariates[name][flat]) for key, name in names.items()}
    if alter is not None:
        raw |= alter({key: raw[key] for key in spec.obs}, flat)
    for key, space in {**spec.obs, **spec.action}.items():
        if raw[key].shape[1:] != space.shape:
            raise DreamError(f"{key} was recorded as {raw[key].shape[1:]} per step, this agent takes {space.shape}: "
                             f"the recording is of another world")  # fmt: skip
        raw[key] = raw[key].astype(space.dtype)
    lead = rows.shape
    given = {key: torch.as_tensor(value[back.reshape(-1)].reshape(*lead, *value.shape[1:])).to(agent.device)
             for key, value in raw.items()}  # fmt: skip
    given["is_first"] = given["is_first"].bool()
    return given
