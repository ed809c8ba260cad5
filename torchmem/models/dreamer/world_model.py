"""DreamerV3's world model: encode, observe, imagine, decode, and the losses that train it (spec sections 4 to 8)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models import dists
from torchmem.models.decoder import Decoder
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.dreamer.rssm import RSSM, State, feature
from torchmem.models.encoder import Encoder
from torchmem.models.heads import BinaryHead, TwoHotHead
from torchmem.models.inputs import concat_keys
from torchmem.types import EnvSpec


class WorldModel(nn.Module):
    """Encoder, dynamics, decoder, reward and continuation head."""

    def __init__(self, spec: EnvSpec, config: DreamerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.spec = spec
        self.dtype = torch.float32  # of the computation; parameters stay float32
        stoch = c.stoch * c.classes
        self.encoder = Encoder(spec.obs, c)
        self.dynamics = RSSM(self.encoder.size, sum(s.one_hot_size for s in spec.action.values()), c)
        self.decoder = Decoder(spec.obs, c.deter, stoch, c)
        self.reward = TwoHotHead(c.deter + stoch, c.units, c.reward_layers, c.bins)
        self.cont = BinaryHead(c.deter + stoch, c.units, c.cont_layers)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """obs[key] (B, T, ...) -> tokens (B, T, E)."""
        lead = next(iter(obs.values())).shape[:2]
        flat = {key: obs[key].flatten(0, 1) for key in self.spec.obs}
        return self.encoder(flat, self.dtype).unflatten(0, lead)

    def action_vector(self, action: Mapping[str, Tensor]) -> Tensor:
        """Actions per key (..., *shape) -> one vector (..., A): integers one-hot, keys sorted."""
        return concat_keys(action, self.spec.action, squash=False).to(self.dtype)

    def start(self, deter: Tensor, stoch: Tensor) -> State:
        """Stored latents as a state: deter (B, D); stoch as class indices (B, S) or one-hot (B, S, K)."""
        if stoch.dim() == 2:
            stoch = F.one_hot(stoch.long(), self.config.classes)
        return State(deter.to(self.dtype), stoch.to(self.dtype))

    def world_loss(
        self, batch: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[dict[str, Tensor], State, dict[str, Tensor]]:
        """Losses of the world model on a replayed batch.

        batch[key] (B, 1 + T, ...): step 0 is the context, whose stored latents `deter` and `stoch` start the pass and
        whose action is the first previous action. noise (B, T, S, K) Gumbel or None. Returns losses (B, T) by name, the
        posterior states (B, T, ...) and metrics.
        """
        c = self.config
        obs = {key: batch[key][:, 1:] for key in self.spec.obs}
        actions = self.action_vector({key: batch[key][:, :-1] for key in self.spec.action})
        carry = self.start(batch["deter"][:, 0], batch["stoch"][:, 0])
        states, logits = self.dynamics.observe(carry, actions, self.encode(obs), batch["is_first"][:, 1:], noise)
        post = dists.unimix(logits, c.unimix)
        prior = dists.unimix(self.dynamics.prior(states.deter), c.unimix)
        dyn = dists.categorical_kl(post.detach(), prior)
        rep = dists.categorical_kl(post, prior.detach())
        losses = {"dyn": dyn.clamp(min=c.free_nats), "rep": rep.clamp(min=c.free_nats)}
        feat = feature(states)
        reward_feat = feat if c.reward_grad else feat.detach()
        losses["rew"] = self.reward.loss(self.reward(reward_feat), batch["reward"][:, 1:])
        goes_on = 1 - batch["is_terminal"][:, 1:].float()
        losses["con"] = dists.binary_loss(self.cont(feat), goes_on * (1 - 1 / c.horizon if c.contdisc else 1.0))
        flat = State(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        targets = {key: value.flatten(0, 1) for key, value in obs.items()}
        for key, loss in self.decoder.loss(self.decoder(*flat), targets).items():
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
