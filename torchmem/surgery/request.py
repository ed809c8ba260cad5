"""What a pass runs on: observations, actions, resets, carry and noise, checked and brought to one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.models.noise import Noise
from torchmem.types import RESERVED


class WrongInput(TorchmemError, ValueError):
    """What was given does not fit the agent; the message names the key, its shape and the shape that fits."""


@dataclasses.dataclass
class Request:
    """The arguments of one pass, on the agent's device. `rows` B, `steps` T (or the horizon H of imagination)."""

    kind: Literal["unroll", "imagine", "play"]
    rows: int
    steps: int
    carry: Any  # B rows
    noise: Noise
    obs: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # (B, T, ...)
    actions: dict[str, Tensor] | None = None  # (B, T, ...); None in imagination: the policy's
    is_first: Tensor | None = None  # (B, T)
    worlds: Any = None  # a live play: something whose `step(actions)` gives (data, truth), as VectorEnv


def sequence(
    agent: Any,
    obs: Any,
    actions: Any = None,
    is_first: Any = None,
    carry: Any = None,
    noise: Noise | Literal["mode"] | None = None,
    seed: int = 0,
) -> Request:
    """A request to unroll.

    obs: a mapping (dict, TensorDict, npz) that may also hold the actions and `is_first`, or one array where the agent
    sees a single key; (T, ...) or (B, T, ...), numpy or torch. is_first: where missing, step 0 opens an episode unless
    a carry is given. carry: default, the empty one. noise: None draws it from `seed`; "mode" takes the modes.
    Raises WrongInput.
    """
    spec = agent.spec
    given = _by_key(spec.obs, obs)
    taken = given if actions is None else _by_key(spec.action, actions)
    missing = [key for key in spec.action if key not in taken]
    if missing:
        raise WrongInput(
            f"no action {missing[0]!r} for the sequence: put it beside the observations, or pass actions={{...}}; "
            f"model.trace.play(steps, obs=obs) lets the policy act instead"
        )
    seen, first = observed(agent, given, carry, is_first)
    rows, steps = first.shape
    lead: dict[str, tuple[int, ...]] = {}
    acts = {key: _lead(agent, key, taken, space.shape, space.dtype, lead) for key, space in spec.action.items()}
    wrong = [key for key, shape in lead.items() if shape != (rows, steps)]
    if wrong:
        raise WrongInput(f"action {wrong[0]!r} has rows and steps {lead[wrong[0]]}, the observations {(rows, steps)}")
    return Request(
        "unroll", rows, steps, _carry(agent, carry, rows), _noise(agent, noise, rows, steps, seed), seen, acts, first
    )


def observed(agent: Any, obs: Any, carry: Any = None, is_first: Any = None) -> tuple[dict[str, Tensor], Tensor]:
    """Observations (B, T, ...) by key, and is_first (B, T). Raises WrongInput."""
    given = _by_key(agent.spec.obs, obs)
    lead: dict[str, tuple[int, ...]] = {}
    seen = {key: _lead(agent, key, given, s.shape, s.dtype, lead) for key, s in agent.spec.obs.items()}
    shapes = set(lead.values())
    if len(shapes) != 1:
        raise WrongInput("rows and steps differ: " + ", ".join(f"{key} {shape}" for key, shape in lead.items()))
    rows, steps = shapes.pop()
    flag = is_first if is_first is not None else (given["is_first"] if "is_first" in given else None)
    if flag is None:
        first = torch.zeros(rows, steps, dtype=torch.bool, device=agent.device)
        first[:, 0] = carry is None
        return seen, first
    first = torch.as_tensor(flag, device=agent.device).bool()
    first = first.unsqueeze(0) if first.dim() == 1 else first
    if first.shape != (rows, steps):
        raise WrongInput(f"is_first is {tuple(first.shape)}, the observations are {(rows, steps)}")
    return seen, first


def dream(
    agent: Any,
    carry: Any,
    horizon: int,
    actions: Mapping[str, Any] | None = None,
    noise: Noise | Literal["mode"] | None = None,
    seed: int = 0,
) -> Request:
    """A request to imagine `horizon` steps from each row of a carry; actions (B, H, ...) replace the policy's.

    Raises WrongInput, also where the agent has no world model.
    """
    if not hasattr(agent, "imagine"):
        raise WrongInput(f"a {agent.config.name} agent has no world model to imagine with")
    if horizon < 1:
        raise WrongInput(f"horizon must be at least 1, got {horizon}")
    rows = next(iter(_leaves(carry))).shape[0]
    if noise is None:
        draws = agent.imagination_noise(rows, horizon, torch.Generator(agent.device).manual_seed(seed))
    else:
        draws = Noise.mode() if isinstance(noise, str) else noise
    acts = None
    if actions is not None:
        lead: dict[str, tuple[int, ...]] = {}
        acts = {k: _lead(agent, k, actions, s.shape, s.dtype, lead) for k, s in agent.spec.action.items()}
        wrong = [k for k, shape in lead.items() if shape != (rows, horizon)]
        if wrong:
            raise WrongInput(f"action {wrong[0]!r} is {lead[wrong[0]]}, needed {(rows, horizon)}: rows and horizon")
    return Request("imagine", rows, horizon, _carry(agent, carry, rows), draws, actions=acts)


def merge(requests: Sequence[Request]) -> Request:
    """Several requests as one batch, rows in order; shorter sequences are padded at their end.

    Padding cannot reach back: agents are causal in time. Raises WrongInput where kinds differ.
    """
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    if any(r.kind != first.kind for r in requests):
        raise WrongInput("one trace either unrolls or imagines; its invokes mix both")
    if first.kind == "imagine" and len({r.steps for r in requests}) > 1:
        raise WrongInput(f"invokes imagine different horizons: {[r.steps for r in requests]}")
    if len({r.actions is None for r in requests}) > 1:
        raise WrongInput("some invokes give actions, some do not")
    steps = max(r.steps for r in requests)

    def joined(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([_pad(v, steps) for v in values])

    return Request(
        first.kind,
        sum(r.rows for r in requests),
        steps,
        _zip(lambda *v: torch.cat(v), *(r.carry for r in requests)),
        _merge_noise([r.noise for r in requests], joined),
        {key: joined([r.obs[key] for r in requests]) for key in first.obs},
        None if first.actions is None else
        {key: joined([r.actions[key] for r in requests if r.actions is not None]) for key in first.actions},
        None if first.is_first is None else joined([r.is_first for r in requests if r.is_first is not None]),
    )


def _pad(value: Tensor, steps: int) -> Tensor:
    short = steps - value.shape[1]
    if short <= 0:
        return value
    return torch.cat([value, value.new_zeros(value.shape[0], short, *value.shape[2:])], 1)


def _merge_noise(noises: Sequence[Noise], joined: Any) -> Noise:
    merged: dict[str, Any] = {}
    for field in dataclasses.fields(Noise):
        values = [getattr(noise, field.name) for noise in noises]
        if len({value is None for value in values}) > 1:
            raise WrongInput(f"some invokes draw {field.name} noise, some take the mode: give all the same")
        if values[0] is None:
            merged[field.name] = None
        elif isinstance(values[0], Mapping):
            merged[field.name] = {key: joined([value[key] for value in values]) for key in values[0]}
        else:
            merged[field.name] = joined(values)
    return Noise(**merged)


def _by_key(spaces: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """A dict, TensorDict or npz as a dict; a single array under the only key that there is."""
    if hasattr(value, "keys") and not isinstance(value, Tensor):
        return {str(key): value[key] for key in value.keys()}
    if len(spaces) != 1:
        raise WrongInput(f"got a {type(value).__name__}, but the agent needs the keys {sorted(spaces)}: pass a dict")
    return {next(iter(spaces)): value}


def _lead(
    agent: Any, key: str, given: Any, shape: tuple[int, ...], dtype: str, lead: dict[str, tuple[int, ...]]
) -> Tensor:
    """One key as (B, T, *shape) in its dtype; notes (B, T) in `lead`."""
    if key not in given:
        there = sorted(k for k in given.keys() if k not in RESERVED)
        raise WrongInput(f"observation {key!r} is missing; got {there}")
    raw = given[key]
    value = torch.as_tensor(np.asarray(raw) if not isinstance(raw, Tensor) else raw)
    extra = value.dim() - len(shape)
    if extra not in (1, 2) or tuple(value.shape[extra:]) != shape:
        raise WrongInput(f"{key} is {list(value.shape)}, the agent needs (T, *{list(shape)}) or (B, T, *{list(shape)})")
    kind = getattr(torch, dtype)
    if kind == torch.uint8 and value.is_floating_point():
        raise WrongInput(f"{key} is {value.dtype}, the agent needs uint8 (images as 0..255, not 0..1)")
    value = value.to(agent.device, kind)
    value = value.unsqueeze(0) if extra == 1 else value
    lead[key] = (value.shape[0], value.shape[1])
    return value


def _carry(agent: Any, carry: Any, rows: int) -> Any:
    if carry is None:
        return agent.initial(rows)
    wrong = [tuple(leaf.shape) for leaf in _leaves(carry) if leaf.shape[:1] != (rows,)]
    if wrong:
        raise WrongInput(f"the carry holds {wrong[0][0] if wrong[0] else 0} rows, the input {rows}")
    return carry


def _noise(agent: Any, noise: Noise | Literal["mode"] | None, rows: int, steps: int, seed: int) -> Noise:
    if noise is None:
        return agent.sequence_noise(rows, steps, torch.Generator(agent.device).manual_seed(seed))
    return Noise.mode() if isinstance(noise, str) else noise


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in _leaves(value)]
    raise WrongInput(f"a carry is a (named) tuple of tensors, got a {type(tree).__name__}")


def _zip(function: Any, *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, Mapping):
        return {key: _zip(function, *(tree[key] for tree in trees)) for key in first}
    values = [_zip(function, *parts) for parts in zip(*trees, strict=True)]
    return type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
