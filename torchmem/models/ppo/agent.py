"""Recurrent PPO: act, unroll, learn (Schulman et al. 2017; recurrent columns as in Andrychowicz et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchmem.models.heads import named_parameters_of
from torchmem.models.inputs import concat_keys
from torchmem.models.noise import Noise, action_noise
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.ppo.cores import Core, Memory, make_core
from torchmem.models.ppo.legacy import train_columns
from torchmem.models.ppo.losses import policy_loss, value_loss
from torchmem.models.ppo.network import Actor, Critic, Encoder
from torchmem.models.ppo.recall import Recall
from torchmem.models.ppo.scales import RewardScale
from torchmem.models.protocol import LossOut
from torchmem.models.site_names import canonical
from torchmem.models.sites import find_sites
from torchmem.models.synthetic import random_values
from torchmem.types import EnvSpec, Site

START = "start."  # before the fields of the carry that a batch's columns begin with


class PPOCarry(NamedTuple):
    """What the agent remembers while acting: the core's memory and the last action."""

    hidden: Tensor  # (B, D), also what actor and critic read
    cell: Tensor  # (B, D) of an LSTM, else (B, 0)
    action: Tensor  # (B, A) action vector taken after the last observation


class PPOUnrolled(NamedTuple):
    """What the agent computes along a sequence; all (B, T, ...)."""

    policy: dict[str, tuple[Tensor, ...]]  # parameters of each action's distribution
    value: Tensor  # (B, T)
    hidden: Tensor  # (B, T, D)
    carry: PPOCarry  # after the last step


class PPOAgent(nn.Module):
    """Encoder, core, actor and critic. Methods are pure (carry in, carry out, noise given)."""

    def __init__(self, spec: EnvSpec, config: PPOConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.dtype = torch.float32
        self._sites: dict[str, Site] = {}
        self.action_size = sum(space.one_hot_size for space in spec.action.values())
        self.encoder = Encoder(spec.obs, self.action_size, config)
        start_scale = config.start_scale if config.learned_start else None
        self.core = make_core(
            config.core, self.encoder.size, config.units, start_scale, config.legacy_reset, config.activation,
            config.core_layer,
        )  # fmt: skip
        if config.memory_span is not None and isinstance(self.core, Core):
            self.core.remember(config.memory_span)
        self.actor = Actor(self.core.units, spec.action, config)
        self.critic = Critic(self.core.units, config)
        self.recall = Recall(self.core.units, spec.obs, config.recall_width) if config.recall else None
        self.reward_scale = RewardScale(config.gamma, config.reward_limit) if config.scale_reward else None

    @property
    def device(self) -> torch.device:
        return self.critic.out.weight.device

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that the optimiser moves: all."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def latent_schema(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What `policy` hands out for each step beside the action: (shape, dtype) by key."""
        return {"logp": ((), "float32"), "value": ((), "float32")}

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every submodule and tap by its path, and under the words all agents share. Found once."""
        if not self._sites:
            self._sites = canonical(find_sites(self))
        return self._sites

    # Acting ----------------------------------------------------------------------------------------------------------

    def action_vector(self, action: Mapping[str, Tensor]) -> Tensor:
        """Actions per key (..., *shape) -> one vector (..., A): integers one-hot, keys sorted."""
        return concat_keys(action, self.spec.action, squash=False).to(self.dtype)

    def initial(self, batch: int) -> PPOCarry:
        empty = torch.zeros(batch, self.action_size, device=self.device, dtype=self.dtype)
        return PPOCarry(*self.core.initial(batch), empty)

    def acting_noise(self, batch: int, generator: torch.Generator | None) -> Noise:
        """Noise of one acting step for `batch` rows."""
        return Noise(action=action_noise(self.spec.action, (batch,), generator, self.device))

    def sequence_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        """Noise of one `unroll`: none, nothing in it is drawn."""
        return Noise.mode()

    def memory_of(self, carry: PPOCarry) -> Tensor:
        """What the site `memory` showed last, (B, D)."""
        return carry.hidden

    def read_out(self, carry: PPOCarry) -> dict[str, Tensor]:
        """What the agent thinks of where it is: value (B,), and logits.<key>, or mean.<key> and std.<key>, (B, ...)."""
        return {"value": self.critic(carry.hidden), **named_parameters_of(self.actor(carry.hidden))}

    def policy(
        self, obs: Mapping[str, Tensor], carry: PPOCarry, noise: Noise
    ) -> tuple[dict[str, Tensor], PPOCarry, dict[str, Tensor]]:
        """One step: obs[key] (B, ...) with `is_first` (B,) -> actions (B, ...), the next carry, logp and value (B,)."""
        first = obs["is_first"]
        action = carry.action * (~first).to(self.dtype).unsqueeze(-1)
        x = self.encoder({key: obs[key] for key in self.spec.obs}, action)
        memory = self.core.one(x, first, Memory(carry.hidden, carry.cell))
        params = self.actor(memory.hidden)
        chosen = self.actor.sample(params, noise.action)
        told = {"logp": self.actor.logp(params, chosen), "value": self.critic(memory.hidden)}
        return chosen, PPOCarry(*memory, self.action_vector(chosen)), told

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: PPOCarry,
        noise: Noise | None = None,
    ) -> PPOUnrolled:
        """The whole agent along given sequences, step by step through every tap.

        obs[key] and actions[key] (B, T, ...), is_first (B, T) bool; actions[:, t] was taken after obs[:, t], the one
        before step 0 is in the carry. Nothing is drawn: noise is not read.
        """
        x, taken = self._encode(obs, actions, is_first, carry)
        hidden, memory = self.core.stepwise(x, is_first, Memory(carry.hidden, carry.cell))
        return PPOUnrolled(self.actor(hidden), self.critic(hidden), hidden, PPOCarry(*memory, taken[:, -1]))

    def _encode(
        self, obs: Mapping[str, Tensor], actions: Mapping[str, Tensor], is_first: Tensor, carry: PPOCarry
    ) -> tuple[Tensor, Tensor]:
        """Inputs of the core (B, T, F) and the action vectors (B, T, A)."""
        taken = self.action_vector(actions)
        before = torch.cat([carry.action.unsqueeze(1), taken[:, :-1]], 1)
        before = before * (~is_first).to(self.dtype).unsqueeze(-1)
        return self.encoder({key: obs[key] for key in self.spec.obs}, before), taken

    # Learning --------------------------------------------------------------------------------------------------------

    def training_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        """Noise of one update: none."""
        return Noise.mode()

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        """The clipped losses on whole columns of a rollout.

        batch, each (B, T, ...): observations, actions, is_first; `logp` and `value` as recorded; `advantage`, `target`;
        `weight`, 0 where a row is no decision, else about 1 (its mean over the rollout is 1). And `start.hidden`,
        `start.cell`, `start.action` (B, ...): the carry before the first row. With recall also `shown`, see
        `Recall.history`; with legacy_reset `ends`, see `recompute`. noise is not read.
        """
        return LossOut(*self.loss_parts(batch, noise))

    def loss_parts(self, batch: Mapping[str, Tensor], noise: Noise) -> tuple:
        """The fields of LossOut in order, as plain tensors and dictionaries."""
        c, now = self.config, self.recompute(batch)
        actions = {key: batch[key] for key in self.spec.action}
        params, value, logp = now.policy, now.value, self.actor.logp(now.policy, actions)
        acting, ratio = policy_loss(logp, batch["logp"], batch["advantage"], c.clip)
        weight = batch["weight"]
        losses = {
            "policy": acting * weight,
            "value": value_loss(value, batch["value"], batch["target"], c.value_clip) * weight,
            "entropy": -torch.stack(list(self.actor.entropy(params).values())).sum(0) * weight,
        }
        if self.recall is not None:
            losses["recall"] = self.recall.loss(now.hidden, batch["shown"])
        means = {name: value.mean() for name, value in losses.items()}
        total = means["policy"] + c.value_scale * means["value"] + c.entropy * means["entropy"]
        if self.recall is not None:
            total = total + c.recall * means["recall"]
        with torch.no_grad():
            # (r - 1) - log r is an unbiased estimate of the divergence that is never negative (Schulman 2020).
            kl = ((ratio - 1 - (logp - batch["logp"])) * weight).mean()
            clipped = (((ratio - 1).abs() > c.clip) * weight).mean()
        metrics = {f"loss/{name}": value.detach() for name, value in means.items()}
        metrics |= {"loss/total": total.detach(), "entropy": -metrics["loss/entropy"], "kl": kl, "clipped": clipped}
        return total, losses, metrics, {}, {}, PPOCarry(*(part.detach() for part in now.carry))

    def recompute(self, batch: Mapping[str, Tensor]) -> PPOUnrolled:
        """What today's weights make of the columns of `loss`: the same as was collected, before any update.

        Not so with `legacy_reset`: there it is what the original program recomputed (legacy.py), and batch holds `ends`
        (B, T) bool too, where an action ended its episode.
        """
        first, start = batch["is_first"], PPOCarry(*(batch[START + name] for name in PPOCarry._fields))
        x, taken = self._encode(batch, {key: batch[key] for key in self.spec.action}, first, start)
        memory = Memory(start.hidden, start.cell)
        if self.config.legacy_reset:
            assert isinstance(self.core, Core)  # PPOConfig allows the gru only
            hidden, memory = train_columns(self.core, x, batch["ends"], batch["weight"] == 0, memory)
        else:
            hidden, memory = self.core(x, first, memory)
        carry = PPOCarry(memory.hidden, memory.cell, taken[:, -1])
        return PPOUnrolled(self.actor(hidden), self.critic(hidden), hidden, carry)

    def commit(self, out: LossOut) -> None:
        """Nothing: running scales move once per rollout, after its last update (training/rollout.py)."""

    def random_batch(self, rows: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
        """Made-up columns as `loss` takes them: (rows, steps, ...), with resets inside."""
        generator = torch.Generator().manual_seed(seed)
        spaces = {**self.spec.obs, **self.spec.action}
        batch = {key: random_values(space, (rows, steps), generator) for key, space in spaces.items()}
        first = torch.rand((rows, steps), generator=generator) < 0.1
        first[::2, 0] = True
        for name in ("advantage", "target", "value"):
            batch[name] = torch.randn((rows, steps), generator=generator)
        batch |= {"is_first": first, "weight": (~first.roll(-1, 1)).float()}
        if self.recall is not None:
            batch["shown"] = self.recall.history(batch, first, torch.zeros(rows, self.recall.width))
        if self.config.legacy_reset:
            batch["ends"] = first.roll(-2, 1) & ~first  # two rows on, behind the one that closes an episode
        batch[START + "hidden"] = torch.randn((rows, self.core.units), generator=generator).tanh()
        cells = self.core.units if self.config.core == "lstm" else 0
        batch[START + "cell"] = torch.randn((rows, cells), generator=generator)
        batch[START + "action"] = self.action_vector({k: batch[k][:, 0] for k in self.spec.action})
        batch = {key: value.to(self.device) for key, value in batch.items()}
        with torch.no_grad():
            start = PPOCarry(*(batch[START + name] for name in PPOCarry._fields))
            actions = {key: batch[key] for key in self.spec.action}
            params = self.unroll(batch, actions, batch["is_first"], start).policy
            batch["logp"] = self.actor.logp(params, actions) + 0.1 * batch["value"]
        return batch
