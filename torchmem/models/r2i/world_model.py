"""R2I's world model: encode, observe in parallel, decode, and the losses that train it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models import dists
from torchmem.models.inputs import concat_keys
from torchmem.models.r2i.config import R2IConfig
from torchmem.models.r2i.dynamics import Dynamics, State, feature
from torchmem.models.r2i.networks import ContHead, R2IDecoder, R2IEncoder, SymlogHead
from torchmem.types import EnvSpec


class WorldModel(nn.Module):
    """Encoder, dynamics, decoder, reward and continuation head."""

    def __init__(self, spec: EnvSpec, config: R2IConfig) -> None:
        super().__init__()
        c = self.config = config
        self.spec = spec
        self.dtype = torch.float32  # of the computation; parameters and S5 states stay float32
        self.action_size = sum(space.one_hot_size for space in spec.action.values())
        feat = c.deter + c.stoch * c.classes
        self.encoder = R2IEncoder(spec.obs, c)
        self.dynamics = Dynamics(self.encoder.size, self.action_size, c)
        self.decoder = R2IDecoder(spec.obs, feat, c)
        self.reward = SymlogHead(feat, c.head_units, c.reward_layers, c.bins)
        self.cont = ContHead(feat, c.head_units, c.cont_layers)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """obs[key] (B, T, ...) -> tokens (B, T, E)."""
        lead = next(iter(obs.values())).shape[:2]
        flat = {key: obs[key].flatten(0, 1) for key in self.spec.obs}
        return self.encoder(flat, self.dtype).unflatten(0, lead)

    def action_vector(self, action: Mapping[str, Tensor]) -> Tensor:
        """Actions per key (..., *shape) -> one vector (..., A): integers one-hot, keys sorted."""
        return concat_keys(action, self.spec.action, squash=False).to(self.dtype)

    def start(self, batch: Mapping[str, Tensor]) -> tuple[State, Tensor]:
        """The state before step 1 of a replayed batch (B, 1 + T, ...), and is_first (B, T) from there on.

        With `stored_start` what acting had after step 0, the context; else every sequence begins as an episode does.
        """
        first = batch["is_first"][:, 1:]
        state = self.dynamics.initial(first.shape[0], self.dtype)
        if self.config.stored_start:
            stoch = F.one_hot(batch["stoch"][:, 0].long(), self.config.classes).to(self.dtype)
            return State(state.deter, stoch, batch["hidden"][:, 0]), first
        return state, torch.cat([torch.ones_like(first[:, :1]), first[:, 1:]], 1)

    def world_loss(
        self, batch: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[dict[str, Tensor], State, dict[str, Tensor]]:
        """Losses of the world model on a replayed batch.

        batch[key] (B, 1 + T, ...): step 0 is the context, see `start`; noise (B, T, S, K) Gumbel or None. Returns
        losses (B, T) by name, the posterior states (B, T, ...) and metrics.
        """
        c = self.config
        obs = {key: batch[key][:, 1:] for key in self.spec.obs}
        actions = self.action_vector({key: batch[key][:, :-1] for key in self.spec.action})
        carry, first = self.start(batch)
        states, logits = self.dynamics.observe(carry, actions, self.encode(obs), first, noise)
        post = dists.unimix(logits, c.unimix)
        prior = dists.unimix(self.dynamics.prior(states.deter), c.unimix)
        dyn = dists.categorical_kl(post.detach(), prior)
        rep = dists.categorical_kl(post, prior.detach())
        losses = {"dyn": dyn.clamp(min=c.free_nats), "rep": rep.clamp(min=c.free_nats)}
        feat = feature(states)
        losses["rew"] = self.reward.loss(self.reward(feat), batch["reward"][:, 1:])
        losses["con"] = dists.binary_loss(self.cont(feat), 1 - batch["is_terminal"][:, 1:].float())
        targets = {key: value.flatten(0, 1) for key, value in obs.items()}
        decoded = self.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        for key, loss in self.decoder.loss(decoded, targets).items():
            losses[key] = loss.unflatten(0, states.deter.shape[:2])
        metrics = {
            "dyn_ent": dists.categorical_entropy(prior.detach()).sum(-1).mean(),
            "rep_ent": dists.categorical_entropy(post.detach()).sum(-1).mean(),
            "kl": dyn.detach().mean(),
        }
        return losses, states, metrics

    def scale(self, name: str) -> float:
        """Weight of a named loss; every observation key shares `rec`."""
        return self.config.scales.rec if name in self.spec.obs else getattr(self.config.scales, name)
