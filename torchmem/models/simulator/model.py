"""A simulator as the training loop sees it: losses by name, noise, optimiser. `SimulatorNet` is what it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchmem.models import dists
from torchmem.models.fused import widen
from torchmem.models.noise import Noise
from torchmem.models.protocol import LossOut
from torchmem.models.r2i.optimiser import GroupedAdam
from torchmem.models.simulator import losses as terms
from torchmem.models.simulator.config import SimulatorConfig
from torchmem.models.simulator.follow_actions import beside_truth, opens
from torchmem.models.simulator.network import SimulatorNet, cross_entropy
from torchmem.models.simulator.observations import shown, to_float
from torchmem.models.simulator.packing import cut
from torchmem.models.simulator.transition import WorldState, feature
from torchmem.models.simulator.window import MEMORY, Window, cut_window
from torchmem.models.synthetic import random_values
from torchmem.types import FLAGS, EnvSpec


@dataclasses.dataclass
class TrainingNoise(Noise):
    """posterior (B, 1 + T, S, K): of the state before the first step, and of each step. latent (B, L): of a VAE.

    agent: what the agent in the loop draws along T steps.
    """

    latent: Tensor | None = None
    agent: Noise | None = None


class SimulatorModel(SimulatorNet):
    """Methods are pure; nothing runs beside the optimiser, so `commit` has nothing to do."""

    def __init__(self, spec: EnvSpec, config: SimulatorConfig) -> None:
        super().__init__(spec, config)
        self.dtype = torch.float32  # of the computation; bfloat16 autocasts the networks, never the agent

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that the optimiser moves: all. The agent's are not among them."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def optimiser(self) -> GroupedAdam:
        """Adam at a constant rate, one limit on the norm of the gradient (of each kind of S5 tensor apart)."""
        return GroupedAdam(self.trained(), self.config.r2i)

    def latent_schema(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What replay stores of each step, beside observation and action: (shape, dtype) by key."""
        return {MEMORY: ((self.agent_loop.packing.size,), "float32")}

    def steps(self, length: int) -> int:
        """Simulated steps in a replayed sequence of 1 + length rows. Raises ValueError for too short ones."""
        steps = length + 2 - self.config.context
        if steps < 2:
            raise ValueError(
                f"length={length} leaves {steps} steps to simulate: set length={self.config.context} or more"
            )
        return steps

    def training_noise(self, batch: int, length: int, generator: torch.Generator | None) -> TrainingNoise:
        """Noise of one update on `batch` sequences of 1 + `length` rows."""
        c, steps, loop = self.config, self.steps(length), self.agent_loop
        posterior = self.latents.noise((batch, 1 + steps), generator, self.device)
        latent = None
        if c.bottleneck == "vae":
            latent = torch.randn((batch, c.latent), generator=generator, device=self.device)
        return TrainingNoise(posterior, latent=latent, agent=loop.agent.sequence_noise(batch, steps, generator))

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        """All losses on replayed rows (B, C - 1 + T, ...), see window.py. noise: from `training_noise`, or the mode."""
        return LossOut(*self.loss_parts(batch, noise))

    def loss_parts(self, batch: Mapping[str, Tensor], noise: Noise) -> tuple:
        """The fields of LossOut in order, as plain tensors and dictionaries: what `compile` compiles."""
        window = cut_window(batch, self.spec, self.config.context)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            losses, latent, decoded = self.world_losses(window, noise)
        losses |= self.agent_losses(window, latent, decoded, noise)
        metrics, total = {}, latent.new_zeros(())
        for name, value in losses.items():
            if value.dim() == 2:  # (B, T): summed over the steps of the episode
                value = (widen(value) * window.weight).sum(1)
            metrics[f"loss/{name}"] = widen(value.detach()).mean()
            total = total + self.scale(name) * widen(value).mean()
        metrics["loss/total"], metrics["counted"] = total.detach(), window.weight.mean()
        return total, losses, metrics, {}, {}, ()

    def scale(self, name: str) -> float:
        """Weight of a named loss; every observation key that is no image shares `vector`."""
        if name in self.spec.obs:
            name = "image" if self.spec.obs[name].image else "vector"
        return getattr(self.config.scales, name)

    def world_losses(self, window: Window, noise: Noise) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Everything that needs no agent, teacher-forced: losses (B, T), (B,) or (); the starts (B, L); and the
        decoded predictions (B, T, ...)."""
        c, lead = self.config, window.weight.shape
        raw = self.encode_raw(self.frames(window.context))
        latent = self.place(raw, getattr(noise, "latent", None))
        draws = None if noise.posterior is None else noise.posterior
        begin = self.state(latent, None if draws is None else draws[:, 0])
        obs = to_float(window.obs, self.spec.obs, self.dtype_of_weights)
        tokens = self.embed({key: value.flatten(0, 1) for key, value in obs.items()}).unflatten(0, lead)
        states, posterior, prior = self.transition.posterior(
            begin, self.actions_before(window), tokens, None if draws is None else draws[:, 1:]
        )
        flat = WorldState(*(part.flatten(0, 1) for part in states))
        decoded = self.decoder(flat.deter, flat.stoch)
        errors = self.decoder.loss(decoded, {key: value.flatten(0, 1) for key, value in obs.items()})
        feat = feature(states)
        losses = {key: error.unflatten(0, lead) for key, error in errors.items()}
        losses |= {
            "reward": terms.half_square(self.reward(feat), window.reward),
            "terminal": dists.binary_loss(self.terminal(feat), window.terminal),
            "kl": terms.balanced_kl(posterior, prior, c.balance, self.latents.kl),
            "update": terms.update_loss(states.deter, begin.deter),
        }
        if c.bottleneck == "sphere":
            losses["repulsion"] = terms.repulsion(latent, c.legacy_repulsion)
        else:
            losses["latent"] = terms.latent_kl(widen(raw))
        return losses, latent, {key: value.unflatten(0, lead) for key, value in decoded.items()}

    def actions_before(self, window: Window) -> Tensor:
        """(B, T, A): the action vector before each simulated step, zeros before one that opens an episode."""
        vectors = self.agent_loop.action_vector(window.before).to(self.dtype_of_weights)
        return vectors * (~opens(window)).unsqueeze(-1)

    def agent_losses(
        self, window: Window, latent: Tensor, decoded: Mapping[str, Tensor], noise: Noise
    ) -> dict[str, Tensor]:
        """How the agent's memory moves along simulated observations (B, T), from what it really carried, never put
        right on the way; and the guess of carry and action before the start (B,), which trains its converters only."""
        loop, packing = self.agent_loop, self.agent_loop.packing
        rows = window.weight.shape[0]
        before = packing.unpack(window.context.memory[:, -2])
        out = {}
        if self.config.scales.memory:
            seen = shown({key: widen(value) for key, value in decoded.items()}, self.spec.obs)
            draws = getattr(noise, "agent", None) or Noise.mode()
            memory = loop.memories(seen, window.actions, opens(window), before, draws, self.config.truncate)
            real = packing.unpack(window.memory.flatten(0, 1))
            truth = loop.agent.memory_of(real).reshape(memory.shape)
            out["memory"] = terms.memory_loss(memory, truth)
        carry, raw = self.guess(latent.detach())
        known = packing.pack(before)
        with torch.no_grad():
            fresh = packing.pack(cut(loop.agent.initial(rows)))
        known = torch.where(window.first.unsqueeze(1), fresh, known)[:, : packing.guessed]
        action = self.actions_before(window)[:, 0]
        guess = (carry - known).square().sum(-1)
        out["start"] = guess + cross_entropy(raw, action, self.actions)  # no action before a start: nothing is asked
        return out

    @torch.no_grad()
    def reconstruct(self, window: Window) -> dict[str, Tensor]:
        """The simulated steps drawn by a simulator that sees them all (modes of the posterior), float (B, T, ...)."""
        _, _, decoded = self.world_losses(window, Noise.mode())
        return shown(decoded, self.spec.obs)

    def open_loop(self, batch: Mapping[str, Tensor]) -> Any:
        """Frames of what is expected under the real actions beside what came; see `beside_truth`."""
        return beside_truth(self, batch)

    def commit(self, out: LossOut) -> None:
        """Nothing runs beside the optimiser."""

    def random_batch(self, rows: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
        """Made-up rows as `loss` takes them: (rows, 1 + steps, ...), with episodes that end inside."""
        generator, lead = torch.Generator().manual_seed(seed), (rows, 1 + steps)
        spaces: dict[str, Any] = {**self.spec.obs, **self.spec.action}
        batch = {key: random_values(space, lead, generator) for key, space in spaces.items()}
        batch |= {name: torch.rand(lead, generator=generator) < 0.1 for name in FLAGS}
        batch["is_first"][:, 0] = True
        batch["reward"] = torch.randn(lead, generator=generator)
        packing = self.agent_loop.packing
        with torch.no_grad():
            carry = packing.pack(cut(self.agent_loop.agent.initial(1))).cpu()
        batch[MEMORY] = carry.expand(*lead, -1).clone()
        return {key: value.to(self.device) for key, value in batch.items()}
