"""Gradients of what an agent does in a simulator: of many scalars at once, by everything before, way by way.

One rollout serves all scalars. A step's nodes are the graph's own tensors:

    memory        what the agent remembers after the step (site `memory`)      (B, M)
    carry         all that it carries on, its last action apart, packed        (B, P)
    world         the state that the world stands at                           (B, F)
    action        the action as it enters the world                            (B, A)
    obs.<key>     what is shown, in float form                                 (B, ...)
    latent        the start, for simulators that have a space of starts        (B, L), at step 0 alone

Ways: total; internal (no action enters the world: the agent's own memory, and the world's by itself); external (what
enters the world by actions). total = internal + external, each found by itself (spec 3.3, R9).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.models.simulator.packing import leaves, with_gradient
from torchmem.models.simulator.protocol import Paths, Rollout, RolloutNoise, Start
from torchmem.models.simulator.rollout import rollout

WAYS = ("total", "internal", "external")
Scalar = Callable[[Rollout, int], Tensor]  # (rollout, step) -> (B,)


@dataclasses.dataclass
class Slopes:
    """values (K, B) of K scalars; by[way][node] (K, B, S, ...), S steps; the rollout they were found on, detached."""

    values: Tensor
    by: dict[str, dict[str, Tensor]]
    play: Rollout


@dataclasses.dataclass(frozen=True)
class Setting:
    """How rollouts are made. horizon: None ends at the step of the scalars, after which all gradients are zero.
    batched: all scalars in one backward pass by vmap; False, one pass each over the kept graph (faster on a CPU)."""

    noise: RolloutNoise | None = None
    actions: Mapping[str, Tensor] | None = None
    through: str = "probs"
    sees: str = "frames"
    horizon: int | None = None
    memory: bool = True
    frames: bool = True
    batched: bool = False


def slopes(
    world: Any,
    loop: Any,
    start: Start | Tensor,
    scalars: Sequence[Scalar],
    at: int,
    wrt: Sequence[str],
    ways: Sequence[str] = ("total",),
    how: Setting | None = None,
) -> Slopes:
    """Gradients of K scalars at step `at` of a rollout from `start` (a latent (B, L) where wrt names `latent`).

    Weights must be frozen, else their gradients are computed for nothing. Raises ValueError for unknown nodes or ways.
    """
    how = how or Setting()
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"there is no way {way!r}: take some of {', '.join(WAYS)}")
    if not scalars or not wrt or not ways:
        raise ValueError("scalars, wrt and ways must name at least one each")
    by: dict[str, dict[str, Tensor]] = {}
    shares: list[list[Tensor]] = []
    plain: tuple[Rollout, Tensor] | None = None
    if "total" in ways or "external" in ways:
        play, nodes, outputs = _graph(world, loop, start, scalars, at, wrt, how, env=True)
        inputs = [leaf for parts in nodes.values() for step in parts for leaf in step] if "total" in ways else []
        vectors = [turn.acted.vector for turn in play.turns] if "external" in ways else []
        found = _backward(outputs, [*inputs, *vectors], None, how.batched)
        if "total" in ways:
            by["total"] = _gather(nodes, found[: len(inputs)])
        shares = [found[len(inputs) :]]
        plain = _told(play, outputs)
    if "internal" in ways or "external" in ways:
        play, nodes, outputs = _graph(world, loop, start, scalars, at, wrt, how, env=False)
        inputs = [leaf for parts in nodes.values() for step in parts for leaf in step]
        if "internal" in ways:
            by["internal"] = _gather(nodes, _backward(outputs, inputs, None, how.batched))
        if "external" in ways:
            acted = [turn.acted.vector for turn in play.turns]
            by["external"] = _gather(nodes, _backward(acted, inputs, shares[0], how.batched))
        plain = plain or _told(play, outputs)
    assert plain is not None
    return Slopes(plain[1], {way: by[way] for way in ways}, plain[0])


def memory_field(agent: Any) -> str:
    """The field of the agent's carry that `memory_of` reads."""
    like = agent.initial(1)
    for name in getattr(like, "_fields", ()):
        part = getattr(like, name)
        if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
            moved = agent.memory_of(like._replace(**{name: part + 1}))
            if moved.numel() == part.numel() and not torch.equal(moved, agent.memory_of(like)):
                return name
    raise ValueError(f"the memory of a {agent.config.name} agent is no part of its carry")


def _graph(
    world: Any, loop: Any, start: Start | Tensor, scalars: Sequence[Scalar], at: int, wrt: Sequence[str],
    how: Setting, *, env: bool,
) -> tuple[Rollout, dict[str, list[list[Tensor]]], list[Tensor]]:  # fmt: skip
    latent = None
    if isinstance(start, Tensor):
        if not hasattr(world, "from_latent"):
            raise ValueError("an agent's own world model has no space of starts: begin from a context")
        latent = start.detach().clone().requires_grad_()
        begin = world.from_latent(latent, None if how.noise is None else how.noise.start)
    else:
        begin = Start(with_gradient(start.world), with_gradient(start.agent), start.is_first)
    steps = at + 1 if how.horizon is None else how.horizon
    if not 0 <= at < steps:
        raise ValueError(f"step {at} is not within a horizon of {steps}")
    paths = Paths(env=env, memory=how.memory, frames=how.frames, through=how.through)
    with torch.enable_grad():
        play = rollout(world, loop, begin, steps, how.noise, actions=how.actions, paths=paths, sees=how.sees)
        outputs = [scalar(play, at) for scalar in scalars]
    field = memory_field(loop.agent)
    nodes: dict[str, list[list[Tensor]]] = {}
    for name in wrt:
        if name == "latent":
            if latent is None:
                raise ValueError("wrt=latent: begin from a latent of the simulator (init=random, or guess)")
            nodes[name] = [[latent]]
            continue
        nodes[name] = [_node(turn, name, field, loop) for turn in play.turns]
    return play, nodes, outputs


def _node(turn: Any, name: str, field: str, loop: Any) -> list[Tensor]:
    if name == "memory":
        return [getattr(turn.acted.carry, field)]
    if name == "carry":
        parts = leaves(turn.acted.carry)
        return parts[:-1] if loop.packing.has_action else parts
    if name == "world":
        carry = turn.seen.carry
        return leaves(carry)[:-1] if getattr(carry, "_fields", ("",))[-1] == "action" else leaves(carry)
    if name == "action":
        return [turn.acted.vector]
    key = name.removeprefix("obs.")
    if name.startswith("obs.") and key in turn.seen.obs:
        return [turn.seen.obs[key]]
    known = ["memory", "carry", "world", "action", "latent", *(f"obs.{k}" for k in turn.seen.obs)]
    raise ValueError(f"there is no {name!r} to differentiate by: take some of {', '.join(known)}")


def _backward(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor] | None, batched: bool
) -> list[Tensor]:
    """(K, ...) by each input. grads None: of K outputs (B,); else of all outputs together, grads[i] (K, B, ...)."""
    live = [i for i, node in enumerate(inputs) if node.requires_grad]
    count = len(outputs) if grads is None else len(grads[0])
    found = [torch.zeros((count, *node.shape), dtype=node.dtype, device=node.device) for node in inputs]
    if grads is None:
        of = [i for i, value in enumerate(outputs) if value.requires_grad]
    else:
        of = [i for i, value in enumerate(outputs) if value.requires_grad and bool(grads[i].any())]
    if not live or not of:
        return found
    targets = [inputs[i] for i in live]
    if batched:
        chosen = [outputs[i] for i in of]
        if grads is None:
            rows = torch.tensor(of, device=inputs[0].device)
            given = [(rows == k).to(v.dtype)[:, None].expand(-1, len(v)).contiguous() for k, v in zip(of, chosen)]
            places = of
        else:
            given, places = [grads[i] for i in of], list(range(count))
        parts = torch.autograd.grad(
            chosen, targets, given, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        for i, part in zip(live, parts, strict=True):
            if part is not None:
                found[i][places] = part
        return found
    for k in of if grads is None else range(count):
        if grads is None:
            parts = torch.autograd.grad(outputs[k].sum(), targets, retain_graph=True, allow_unused=True)
        else:
            given = [grads[i][k] for i in of]
            parts = torch.autograd.grad(
                [outputs[i] for i in of], targets, given, retain_graph=True, allow_unused=True
            )
        for i, part in zip(live, parts, strict=True):
            if part is not None:
                found[i][k] = part
    return found


def _gather(nodes: Mapping[str, list[list[Tensor]]], found: Sequence[Tensor]) -> dict[str, Tensor]:
    """By node (K, B, S, ...)."""
    rest = iter(found)
    out = {}
    for name, steps in nodes.items():
        taken = [[next(rest) for _ in step] for step in steps]
        whole = name.startswith("obs.")
        out[name] = torch.stack([s[0] if whole else torch.cat([p.flatten(2) for p in s], -1) for s in taken], 2)
    return out


def _told(play: Rollout, outputs: Sequence[Tensor]) -> tuple[Rollout, Tensor]:
    def loose(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, Mapping):
            return {key: loose(part) for key, part in value.items()}
        if isinstance(value, tuple):
            parts = [loose(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    return Rollout(loose(play.turns) if isinstance(play.turns, tuple) else [loose(t) for t in play.turns],
                   play.state.detach()), torch.stack([value.detach() for value in outputs])  # fmt: skip
