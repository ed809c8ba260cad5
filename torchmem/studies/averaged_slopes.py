"""Gradients that look around: SmoothGrad over noisy starts (Smilkov et al. 2017), and integrated gradients of what is
shown (Sundararajan et al. 2017), which add up to the difference that the pictures make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.models.simulator.packing import map_carry
from torchmem.models.simulator.protocol import RolloutNoise, Start, Stepped
from torchmem.studies.slopes import Scalar, Setting, Slopes, memory_field, slopes


def smoothed(
    world: Any, loop: Any, start: Start | Tensor, scalars: Sequence[Scalar], at: int, wrt: Sequence[str],
    ways: Sequence[str] = ("total",), how: Setting | None = None, *, copies: int = 9, noise: float = 0.1,
    generator: torch.Generator | None = None,
) -> Slopes:  # fmt: skip
    """`slopes`, averaged over `copies` of each start, the first exact, the others moved by normal noise.

    noise: its standard deviation as a share of the root mean square of what is moved: a latent start (put back into its
    space), else the agent's memory and the world's `deter`. The same gradient size for any number of copies.
    """
    if copies < 1 or noise < 0:
        raise ValueError(f"copies must be at least 1 and noise not negative, got {copies} and {noise}")
    how = how or Setting()
    exact = torch.arange(copies) == 0

    def moved(value: Tensor) -> Tensor:
        rows = value.shape[0] // copies
        size = value.detach().flatten(1).pow(2).mean(1).sqrt()
        draw = torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)
        draw[exact.repeat(rows).to(value.device)] = 0
        return value + noise * draw * size.view(-1, *[1] * (value.dim() - 1))

    if isinstance(start, Tensor):
        many: Any = world.project(moved(_again(start, copies)))
        many = torch.where(exact.repeat(len(start)).to(start.device)[:, None], _again(start, copies), many)
    else:
        field = memory_field(loop.agent)
        here, agent = (map_carry(lambda part: _again(part, copies), c) for c in (start.world, start.agent))
        agent = agent._replace(**{field: moved(getattr(agent, field))})
        many = Start(here._replace(deter=moved(here.deter)), agent, _again(start.is_first, copies))
    drawn = how.noise
    if drawn is not None:
        agents = None if drawn.agent is None else [_noise_again(one, copies) for one in drawn.agent]
        first, world_draws = (None if v is None else _again(v, copies) for v in (drawn.start, drawn.world))
        drawn = RolloutNoise(first, world_draws, agents)
    given = None if how.actions is None else {k: _again(v, copies) for k, v in how.actions.items()}
    found = slopes(world, loop, many, scalars, at, wrt, ways, dataclasses.replace(how, noise=drawn, actions=given))
    by = {
        way: {name: grad.unflatten(1, (-1, copies)).mean(2) for name, grad in nodes.items()}
        for way, nodes in found.by.items()
    }
    return Slopes(found.values.unflatten(1, (-1, copies)).mean(2), by, found.play)


@dataclasses.dataclass
class Integrated:
    """by["obs.<key>"] (K, B, S, ...): what each number shown adds to each scalar, against the baseline. difference
    (K, B): scalar there minus scalar at the baseline; gap (K, B): sum of all parts minus the difference."""

    by: dict[str, Tensor]
    difference: Tensor
    gap: Tensor


def integrated(
    world: Any, loop: Any, start: Start | Tensor, scalars: Sequence[Scalar], at: int,
    how: Setting | None = None, *, baseline: str = "mean", points: int = 32, keys: Sequence[str] | None = None,
) -> Integrated:  # fmt: skip
    """Integrated gradients by all that is shown at steps 0..at, from pictures of the baseline to the real ones.

    baseline: "mean" (over samples and steps) or "zero". points: of the midpoint rule. Discrete actions are held at
    those of the untouched rollout, since a choice that jumps has no integral: what is found is then the way through the
    agent's memory. gap is zero up to the rule's error where agent and world have no other jumps.
    """
    if baseline not in ("mean", "zero"):
        raise ValueError(f"baseline must be mean or zero, got {baseline!r}")
    how = dataclasses.replace(how or Setting(), horizon=at + 1)
    keys = list(keys or world.spec.obs)
    wrt = [f"obs.{key}" for key in keys]
    plain = slopes(world, loop, start, scalars, at, wrt, how=how).play
    if any(space.discrete for space in loop.spaces.values()) and how.actions is None:
        how = dataclasses.replace(how, actions=plain.action)
    real = {key: plain.obs[key] for key in keys}
    gaps = {
        key: value - (value.mean((0, 1), keepdim=True) if baseline == "mean" else torch.zeros_like(value))
        for key, value in real.items()
    }

    def shifted(share: float) -> Slopes:
        moved = Shifted(world, {key: (share - 1) * gap for key, gap in gaps.items()})
        return slopes(moved, loop, start, scalars, at, wrt, how=how)

    total: dict[str, Tensor] = {}
    for point in range(points):
        found = shifted((point + 0.5) / points).by["total"]
        total = {name: total.get(name, 0) + grad / points for name, grad in found.items()}
    by = {f"obs.{key}": total[f"obs.{key}"] * gap for key, gap in gaps.items()}
    difference = shifted(1.0).values - shifted(0.0).values
    return Integrated(by, difference, torch.stack([v.flatten(2).sum(2) for v in by.values()]).sum(0) - difference)


class Shifted:
    """A simulator whose agent is shown something else: shift[key] (B, H, ...) is added to what is drawn, by step."""

    def __init__(self, world: Any, shift: Mapping[str, Tensor]) -> None:
        self._world, self._shift, self._step = world, shift, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def look(self, carry: Any) -> Stepped:
        self._step = 0
        return self._shown(self._world.look(carry))

    def step(self, carry: Any, action: Tensor, draw: Tensor | None) -> Stepped:
        self._step += 1
        return self._shown(self._world.step(carry, action, draw))

    def _shown(self, seen: Stepped) -> Stepped:
        moved = {key: seen.obs[key] + value[:, self._step] for key, value in self._shift.items()}
        return seen._replace(obs={**seen.obs, **moved})


def _again(value: Tensor, copies: int) -> Tensor:
    return value.repeat_interleave(copies, 0)


def _noise_again(noise: Noise, copies: int) -> Noise:
    action = None if noise.action is None else {k: _again(v, copies) for k, v in noise.action.items()}
    return Noise(None if noise.posterior is None else _again(noise.posterior, copies), None, action)
