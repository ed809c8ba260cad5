"""How a dream may be begun: from what was remembered and seen, or from noise in the place of either.

    A    memory as it was, z from the picture             C    noise for the memory, z from the picture
    B    memory as it was, z from the prior               D    noise for the memory, z from its prior
    A'   as A, but the picture's status bar shows         E    zeros for the memory, z from its prior
         random vitals (Crafter only)

Memory is h; of R2I it is the states of the S5 layers too, as h alone carries nothing on. Source: the seed ablation of
vviggyy/dreamerv3f (its contributor notes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from torchmem.models.dists import gumbel
from torchmem.studies.dream_tracks import DreamError

SEEDS = ("A", "B", "C", "D", "E", "A'")
Null = Literal["shuffle", "matched", "matched_relu", "truncnorm"]
NULLS = ("shuffle", "matched", "matched_relu", "truncnorm")


def seeded(
    agent: Any, seed: str, states: Any, tokens: Tensor, wake: Any, null: str, generator: torch.Generator,
    modes: bool = False,
) -> Any:
    """States (n, ...) to dream from, of the kind that `states` is.

    states: as observed. tokens: (n, E) of the pictures (for A' of the changed ones). wake: states (M, ...) that the
    noise is modelled on. null: shuffle, each unit from a random waking state; matched, normal with each unit's mean and
    deviation; matched_relu, its positive part; truncnorm, cut to each unit's waking range. modes: z is its
    likeliest value, not drawn. A is `states` itself.
    """
    if seed == "A":
        return states
    memory = states._fields[:1] + states._fields[2:]  # all but z
    parts: dict[str, Tensor] = {}
    if seed in ("C", "D"):
        parts = {name: noise(getattr(wake, name), len(tokens), null, generator) for name in memory}
    elif seed == "E":
        parts = {name: torch.zeros_like(getattr(states, name)) for name in memory}
    deter = parts["deter"] if parts else states.deter
    dynamics = agent.dynamics
    logit = posterior(agent, deter, tokens) if seed in ("A'", "C") else dynamics.prior(deter)
    draw = None if modes else gumbel(tuple(logit.shape), generator, logit.device)
    kind = () if agent.config.name == "gru_dreamer" else (deter.dtype,)
    stoch = dynamics.draw(logit, draw, *kind)
    return states._replace(**parts, stoch=stoch)


def encode(agent: Any, obs: Mapping[str, Tensor]) -> Tensor:
    """Observations (n, ...) -> tokens (n, E). Raises DreamError for an agent whose world model is not known here."""
    if agent.config.name == "gru_dreamer":
        return agent.encoder(obs)
    if agent.config.name in ("dreamer", "r2i"):
        return agent.encoder(obs, agent.dtype)
    raise DreamError(f"dreams of a {agent.config.name} agent can begin as A only: how its z is inferred is not known")


def posterior(agent: Any, deter: Tensor, tokens: Tensor) -> Tensor:
    """Raw logits (n, S, K) of z given h and tokens."""
    head = agent.dynamics.posterior
    if agent.config.name == "dreamer":
        return head(deter, head.embed(tokens))
    return head(tokens) if agent.config.name == "r2i" else head(torch.cat([deter, tokens], -1))


def noise(wake: Tensor, count: int, null: str, generator: torch.Generator) -> Tensor:
    """(count, ...) like the waking values (M, ...), unit by unit."""
    flat = wake.flatten(1)
    if null == "shuffle":
        rows = torch.randint(len(flat), (count, flat.shape[1]), generator=generator, device=flat.device)
        return flat.gather(0, rows).reshape(count, *wake.shape[1:])
    mean, std = flat.mean(0), flat.std(0, correction=0)
    if null in ("matched", "matched_relu"):
        out = mean + std * torch.randn(count, flat.shape[1], generator=generator, device=flat.device)
        out = out.relu() if null == "matched_relu" else out
    elif null == "truncnorm":
        safe = std.clamp(min=1e-12)
        low, high = (torch.special.ndtr(((end - mean) / safe).double()) for end in (flat.amin(0), flat.amax(0)))
        u = torch.rand(count, flat.shape[1], generator=generator, device=flat.device, dtype=torch.float64)
        inner = torch.special.ndtri((low + u * (high - low)).clamp(1e-12, 1 - 1e-12))
        out = torch.minimum(torch.maximum((mean + std * inner).to(flat.dtype), flat.amin(0)), flat.amax(0))
    else:
        raise DreamError(f"null={null!r}: {', '.join(NULLS)}")
    return out.reshape(count, *wake.shape[1:])
