"""The scalars that gradients are asked of, by name. Each is a function (rollout, step) -> (B,).

    value  value_change  entropy  reward  done     of the step; value_change since the step before
    chosen                                         log-probability of the action that is taken
    logp:A  prob:A  odds:A  logit:A                of action A; A+B+C: of any of these (not for logit)
    mean:I                                         of number I of a continuous action
    unit:N                                         number N of the agent's memory
    direction:K  directions                        y_K of a DirectionsResult; all of them, one scalar each
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.analysis.find_directions import DirectionsResult
from torchmem.models.simulator.protocol import Rollout, Turn
from torchmem.studies.slopes import Scalar


def read_scalars(
    names: Sequence[str], loop: Any, directions: DirectionsResult | None = None
) -> dict[str, Scalar]:
    """Name -> function. Raises ValueError naming what is wrong."""
    found: dict[str, Scalar] = {}
    for name in names:
        if name == "directions":
            count = _need(directions, name).count
            found |= {f"direction:{k}": _scalar(f"direction:{k}", loop, directions) for k in range(count)}
        else:
            found[name] = _scalar(name, loop, directions)
    return found


def direction_scores(directions: DirectionsResult, turn: Turn) -> Tensor:
    """y (B, K) of a turn, with its graph: of the agent's memory, or of the world's state (site `world`)."""
    if directions.site == "world":
        carry = turn.seen.carry
        h = torch.cat([carry.deter, carry.stoch.flatten(1)], -1)
        if len(directions.centre) != h.shape[1] and hasattr(carry, "hidden"):
            h = torch.cat([h, carry.hidden.flatten(1)], -1)
    else:
        h = turn.acted.memory
    if h.shape[1] != len(directions.centre):
        raise ValueError(
            f"the directions are of {directions.site} with {len(directions.centre)} numbers, this simulator's has "
            f"{h.shape[1]}: find them on a recording of the same agent"
        )
    parts = (directions.centre, directions.encode)
    centre, encode = (torch.as_tensor(v, dtype=h.dtype, device=h.device) for v in parts)
    return (h - centre) @ encode.T


def _need(directions: DirectionsResult | None, name: str) -> DirectionsResult:
    if directions is None:
        raise ValueError(f"scalar {name!r} needs directions: give the folder that torchmem directions wrote")
    return directions


def _scalar(name: str, loop: Any, directions: DirectionsResult | None) -> Scalar:
    kind, _, rest = name.partition(":")
    plain: Mapping[str, Scalar] = {
        "value": lambda play, t: play.turns[t].acted.value,
        "value_change": _change,
        "reward": lambda play, t: play.turns[t].seen.reward,
        "done": lambda play, t: play.turns[t].seen.done,
        "entropy": lambda play, t: _entropy(play.turns[t]),
        "chosen": lambda play, t: _chosen(play.turns[t]),
    }
    if kind in plain and not rest:
        return plain[kind]
    if kind in ("logp", "prob", "odds", "logit"):
        key, classes = _only_choice(loop, name)
        numbers = [_number(part, classes, name) for part in rest.split("+")]
        return _of_action(kind, f"logits.{key}", numbers, name)
    if kind == "mean":
        key, size = _only_continuous(loop, name)
        number = _number(rest, size, name)
        return lambda play, t: play.turns[t].acted.params[f"mean.{key}"].flatten(1)[:, number]
    if kind == "unit":
        size = loop.agent.memory_of(loop.agent.initial(1)).shape[-1]
        number = _number(rest, size, name)
        return lambda play, t: play.turns[t].acted.memory[:, number]
    if kind == "direction":
        known = _need(directions, name)
        number = _number(rest, known.count, name)
        return lambda play, t: direction_scores(known, play.turns[t])[:, number]
    raise ValueError(
        f"there is no scalar {name!r}: take value, value_change, chosen, entropy, reward, done, logp:A, prob:A, "
        f"odds:A, logit:A, mean:I, unit:N, direction:K or directions"
    )


def _change(play: Rollout, t: int) -> Tensor:
    if t < 1:
        raise ValueError("value_change needs a step before it: ask at step 1 or later")
    return play.turns[t].acted.value - play.turns[t - 1].acted.value


def _entropy(turn: Turn) -> Tensor:
    total = torch.zeros_like(turn.acted.value)
    for name, value in turn.acted.params.items():
        if name.startswith("logits."):
            logp = torch.log_softmax(value, -1)
            total = total - (logp.exp() * logp).flatten(1).sum(-1)
        elif name.startswith("std."):
            total = total + value.log().flatten(1).sum(-1)  # up to a constant
    return total


def _chosen(turn: Turn) -> Tensor:
    total = torch.zeros_like(turn.acted.value)
    for key, action in turn.acted.action.items():
        if (logits := turn.acted.params.get(f"logits.{key}")) is None:
            raise ValueError("scalar chosen is for discrete actions: take mean:I")
        logp = torch.log_softmax(logits, -1).gather(-1, action.long().unsqueeze(-1))
        total = total + logp.flatten(1).sum(-1)
    return total


def _of_action(kind: str, key: str, numbers: list[int], name: str) -> Scalar:
    if kind == "logit" and len(numbers) > 1:
        raise ValueError(f"{name!r}: a logit is of one action: take logp, prob or odds")
    shape: dict[str, Callable[[Tensor], Tensor]] = {
        "logp": lambda p: p, "prob": torch.exp, "odds": lambda p: p - torch.log(-torch.expm1(p.clamp(max=-1e-7)))
    }  # fmt: skip

    def scalar(play: Rollout, t: int) -> Tensor:
        logits = play.turns[t].acted.params[key]
        if kind == "logit":
            return logits[:, numbers[0]]
        return shape[kind](torch.logsumexp(torch.log_softmax(logits, -1)[:, numbers], -1))

    return scalar


def _only_choice(loop: Any, name: str) -> tuple[str, int]:
    chosen = [(key, s.classes or 2) for key, s in loop.spaces.items() if s.discrete and not s.shape]
    if len(chosen) != 1:
        raise ValueError(f"scalar {name!r} is for worlds with one discrete action; this one has {len(chosen)}")
    return chosen[0]


def _only_continuous(loop: Any, name: str) -> tuple[str, int]:
    chosen = [(key, s.one_hot_size) for key, s in loop.spaces.items() if not s.discrete]
    if len(chosen) != 1:
        raise ValueError(f"scalar {name!r} is for worlds with one continuous action; this one has {len(chosen)}")
    return chosen[0]


def _number(text: str, size: int, name: str) -> int:
    if not text.isdigit() or not int(text) < size:
        raise ValueError(f"scalar {name!r}: {text or 'nothing'!r} is not a number from 0 to {size - 1}")
    return int(text)
