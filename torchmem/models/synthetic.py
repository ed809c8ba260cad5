"""Made-up batches of the right form: for probing, checks before a run, and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchmem.types import EnvSpec, Space


def empty_sequence(
    spec: EnvSpec, device: torch.device, rows: int, steps: int
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor]:
    """Zero observations and actions (rows, steps, ...) and an is_first (rows, steps) that opens each row."""

    def zeros(space: Space) -> Tensor:
        return torch.zeros((rows, steps, *space.shape), dtype=getattr(torch, space.dtype), device=device)

    is_first = torch.zeros((rows, steps), dtype=torch.bool, device=device)
    is_first[:, 0] = True
    return ({k: zeros(s) for k, s in spec.obs.items()}, {k: zeros(s) for k, s in spec.action.items()}, is_first)


def random_batch(agent, rows: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """A training batch as replay gives it: each key (rows, 1 + steps, ...), latents (rows, 1, ...), random content.

    agent: anything with `spec`, `device` and `latent_schema`. Episodes end now and then, some of them terminally.
    An agent whose batches look otherwise has a `random_batch(rows, steps, seed)` of its own, which answers.
    """
    if hasattr(agent, "random_batch"):
        return agent.random_batch(rows, steps, seed)
    generator = torch.Generator().manual_seed(seed)
    lead = (rows, 1 + steps)

    def fill(shape: tuple[int, ...], dtype: torch.dtype, classes: int | None) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        high = classes or (256 if dtype == torch.uint8 else 2)
        return torch.randint(high, shape, generator=generator).to(dtype)

    spaces = {**agent.spec.obs, **agent.spec.action}
    batch = {k: fill((*lead, *s.shape), getattr(torch, s.dtype), s.classes) for k, s in spaces.items()}
    for key, (shape, dtype) in agent.latent_schema().items():
        batch[key] = fill((rows, 1, *shape), getattr(torch, dtype), agent.config.classes)
    last = torch.rand(lead, generator=generator) < 0.05
    batch["is_last"] = last
    batch["is_terminal"] = last & (torch.rand(lead, generator=generator) < 0.5)
    batch["is_first"] = last.roll(1, 1)
    batch["is_first"][:, 0] = True
    batch["reward"] = torch.randn(lead, generator=generator)
    return {key: value.to(agent.device) for key, value in batch.items()}


def random_values(space: Space, lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random content of one key, (*lead, *shape), on the CPU."""
    dtype, shape = getattr(torch, space.dtype), (*lead, *space.shape)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    high = space.classes or (256 if dtype == torch.uint8 else 2)
    return torch.randint(high, shape, generator=generator).to(dtype)
