"""An agent on a tape, three ways: step by step, as one sequence, and through the data path and loss of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmem.envs.collector import Collector
from torchmem.models.heads import named_parameters_of
from torchmem.models.noise import Noise
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout
from torchmem.training.world_views import ArrayView
from torchmem.verify.tape import HALF, STEPS, Tape

Tensors = dict[str, Tensor]


def shake(agent: Any, seed: int = 0) -> Any:
    """Move every weight a little, in place: fresh heads are near zero, where differences would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.parameters():
            scale = 0.5 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return agent


def draws_its_state(agent: Any) -> bool:
    """Whether rounding can change the agent's state by more than rounding: it takes the largest of noisy logits."""
    return agent.acting_noise(1, None).posterior is not None


class Acted(NamedTuple):
    """What acting step by step came to, (B, T, ...)."""

    actions: Tensors
    thought: Tensors  # what `read_out` tells, and the memory
    carry: Any  # after the last step
    noise: Noise  # with `posterior` (B, T, ...), where the agent draws one
    told: Tensors  # what `policy` hands out beside actions


@torch.no_grad()
def act(
    agent: Any, tape: Tape, seed: int = 0, extra: Mapping[str, Tensor] | None = None, between: Tape | None = None
) -> Acted:
    """Step by step. extra: keys (B, T, ...) that lie beside the observations and that no agent may look at.

    between: another tape, on which the agent acts a step, with a carry of its own, before each step of this one.
    """
    generator = torch.Generator(agent.device).manual_seed(seed)
    carry, tape = agent.initial(tape.n), tape.rewound()
    other = between and Elsewhere(agent, between)
    actions, thought, told = ([] for _ in range(3))
    draws: list[Tensor] = []
    for t in range(STEPS):
        if other is not None:
            other.step()
        data, _ = tape.step(None)
        noise = agent.acting_noise(tape.n, generator)
        beside = {key: value[:, t] for key, value in (extra or {}).items()}
        chosen, carry, more = agent.policy({**beside, **data}, carry, noise)
        actions.append(chosen)
        thought.append({**agent.read_out(carry), "memory": agent.memory_of(carry)})
        told.append(more)
        draws += [] if noise.posterior is None else [noise.posterior]
    posterior = torch.stack(draws, 1) if draws else None
    return Acted(stacked(actions), stacked(thought), carry, Noise(posterior=posterior), stacked(told))


class Elsewhere:
    """The same agent acting somewhere else: it must not matter here."""

    def __init__(self, agent: Any, tape: Tape) -> None:
        self.agent, self.tape, self.carry = agent, tape.rewound(), agent.initial(tape.n)
        self.generator = torch.Generator(agent.device).manual_seed(3)

    def step(self) -> None:
        data, _ = self.tape.step(None)
        _, self.carry, _ = self.agent.policy(data, self.carry, self.agent.acting_noise(self.tape.n, self.generator))


def stacked(steps: list[Tensors]) -> Tensors:
    """One dict (B, ...) per step -> one dict (B, T, ...)."""
    return {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}


@torch.no_grad()
def unroll(agent: Any, tape: Tape, acted: Acted, cut: int | None = None) -> tuple[Tensors, Tensor]:
    """The same as a sequence, in one piece or cut in two: (read-outs (B, T, ...), memory after the last step)."""
    carry, pieces = agent.initial(tape.n), []
    for part in ([slice(None)] if cut is None else [slice(0, cut), slice(cut, None)]):
        posterior = None if acted.noise.posterior is None else acted.noise.posterior[:, part]
        obs, actions = ({k: v[:, part] for k, v in x.items()} for x in (tape.obs, acted.actions))
        out = agent.unroll(obs, actions, tape.told["is_first"][:, part], carry, Noise(posterior=posterior))
        carry = out.carry
        pieces.append({"value": out.value, **named_parameters_of(out.policy)})
    return {key: torch.cat([p[key] for p in pieces], 1) for key in pieces[0]}, agent.memory_of(carry)


class Batch(NamedTuple):
    """The second half of a tape as training sees it."""

    batch: Tensors  # what `loss` takes
    noise: Noise
    memory: Tensor  # (B, D): acting's, after the last step of the batch
    latents: Tensors  # (B, HALF, ...): what acting stored of these steps
    context: int  # steps of the batch before the first that the loss counts

    @property
    def known(self) -> Tensor:
        """(B,): rows whose state at the end the loss can know: all where the batch holds the state that it starts from,
        else those that open an episode."""
        opens = self.batch["is_first"][:, self.context :].any(1)
        return opens | bool(self.latents or any(key.startswith("start.") for key in self.batch))


@torch.no_grad()
def training_batch(agent: Any, tape: Tape, seed: int = 0) -> Batch:
    """Act along the tape as training does: in rollouts where the policy tells log-probabilities, else for a replay."""
    tape = tape.rewound()
    generator = torch.Generator(agent.device).manual_seed(seed)
    if "logp" in agent.latent_schema():
        rollout = Rollout(agent, tape, HALF, generator)
        for _ in range(2):
            rollout.collect()
            rollout.finish(Processes())
        batch = rollout.columns(torch.arange(tape.n))
        return Batch(batch, Noise.mode(), agent.memory_of(rollout.carry), {}, 0)
    collector = Collector(ArrayView(tape), agent.initial(tape.n), agent.device)
    draws: list[Noise] = []

    def policy(obs: Any, carry: Any) -> Any:
        draws.append(agent.acting_noise(tape.n, generator))
        return agent.policy(obs, carry, draws[-1])

    steps = [{k: torch.as_tensor(v) for k, v in collector.step(policy).items()} for _ in range(2 * HALF)]
    batch = {key: value.to(agent.device) for key, value in stacked(steps[HALF - 1 :]).items()}
    latents = {key: batch[key][:, 1:] for key in agent.latent_schema()}
    batch |= {key: batch[key][:, :1] for key in agent.latent_schema()}
    noise = agent.training_noise(tape.n, HALF, generator)
    if noise.posterior is not None:
        drawn = [draw.posterior for draw in draws[HALF:] if draw.posterior is not None]
        noise = dataclasses.replace(noise, posterior=torch.stack(drawn, 1))
    return Batch(batch, noise, agent.memory_of(collector.carry), latents, 1)


def before_reset(agent: Any, batch: Batch, other: Mapping[str, Tensor], step: int) -> Tensors:
    """The batch with all that came before loss step `step` exchanged: observations, actions, the state at its start."""
    out = {key: value.clone() for key, value in batch.batch.items()}
    generator = torch.Generator().manual_seed(1)
    for key, value in out.items():
        upto = batch.context + step
        if key in agent.spec.obs:
            value[:, :upto] = other[key][:, :upto].to(value.device)
        elif key in agent.spec.action:
            value[:, :upto] = value.flip(0)[:, :upto].clone()
        elif key.startswith("start.") or (batch.context and key in agent.latent_schema()):
            value.copy_(value.flip(0) if not value.is_floating_point() else
                        value + torch.randn(value.shape, generator=generator).to(value))  # fmt: skip
    return out


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry of b where that is above 1. NaN and other shapes: infinite."""
    if a.shape != b.shape:
        return math.inf
    if not b.numel():
        return 0.0
    difference = float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1))
    return difference if difference == difference else math.inf


def gaps(a: Mapping[str, Tensor], b: Mapping[str, Tensor], at: Any = slice(None)) -> tuple[float, str]:
    """The largest `gap` over keys and the key it belongs to. at: index into both."""
    if set(a) != set(b):
        return math.inf, f"{sorted(set(a) ^ set(b))} are in one only"
    found = {key: gap(a[key][at], b[key][at]) for key in b}
    worst = max(found, key=lambda key: found[key], default="")
    return found.get(worst, 0.0), worst
