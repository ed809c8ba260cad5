"""The agent of NM512/dreamerv3-torch, for looking into: acts, unrolls and imagines as the original; does not train.

Sequences run step by step. Unlike `dreamer`, features are [stoch, deter], every layer has a LayerNorm, an episode
starts from a learned state, and a discrete policy has a uniform share mixed in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchmem.models.dists import bounded_normal, unimix
from torchmem.models.dreamer.agent import DreamerCarry, Imagined, Observed, Unrolled
from torchmem.models.dreamer.rssm import State
from torchmem.models.follow import follow
from torchmem.models.gru_dreamer.config import GRUDreamerConfig
from torchmem.models.gru_dreamer.layers import MLP, ImageDecoder, ImageEncoder, SymlogBins
from torchmem.models.gru_dreamer.rssm import RSSM
from torchmem.models.heads import GaussianOut, PolicyHead, named_parameters_of
from torchmem.models.inputs import concat_keys, split_spaces
from torchmem.models.noise import CategoricalNoise, Noise
from torchmem.models.site_names import canonical
from torchmem.models.sites import find_sites
from torchmem.types import EnvSpec, Site, Space


class Encoder(nn.Module):
    """obs[key] (N, *shape) -> tokens (N, E): images first, then vectors (symlog)."""

    def __init__(self, spaces: Mapping[str, Space], config: GRUDreamerConfig) -> None:
        super().__init__()
        self.images, self.vectors = split_spaces(spaces)
        self.size = 0
        if self.images:
            sides = {s.shape[:2] for s in self.images.values()}
            if len(sides) != 1 or len(set(next(iter(sides)))) != 1:
                raise ValueError(f"images must be square and of one size, got {sorted(sides)}")
            channels = sum(s.shape[2] for s in self.images.values())
            self.cnn = ImageEncoder(next(iter(sides))[0], channels, config.depth, config.kernel, config.minres)
            self.size += self.cnn.size
        if self.vectors:
            width = sum(s.one_hot_size for s in self.vectors.values())
            self.mlp = MLP(width, config.vector_units, config.vector_layers)
            self.size += config.vector_units

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.images:
            parts.append(self.cnn(torch.cat([obs[k] for k in self.images], -1).float() / 255 - 0.5))
        if self.vectors:
            parts.append(self.mlp(concat_keys(obs, self.vectors, squash=True)))
        return torch.cat(parts, -1)


class Decoder(nn.Module):
    """feat (N, F) -> predictions of each key: image means, and symlog means of vectors."""

    def __init__(self, spaces: Mapping[str, Space], size_in: int, config: GRUDreamerConfig) -> None:
        super().__init__()
        c = config
        images, vectors = split_spaces(spaces)
        self.images, self.vectors = images if c.decode_image else {}, vectors if c.decode_vector else {}
        if self.images:
            side, channels = next(iter(images.values())).shape[0], sum(s.shape[2] for s in images.values())
            self.cnn = ImageDecoder(size_in, side, channels, c.depth, c.kernel, c.minres, c.sigmoid_image)
        if self.vectors:
            self.mlp = MLP(size_in, c.vector_units, c.vector_layers)
            self.heads = nn.ModuleDict({k: nn.Linear(c.vector_units, s.one_hot_size) for k, s in self.vectors.items()})

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if self.images:
            parts = self.cnn(feat).split([s.shape[2] for s in self.images.values()], -1)
            out |= dict(zip(self.images, parts, strict=True))
        if self.vectors:
            hidden = self.mlp(feat)
            out |= {k: self.heads[k](hidden).unflatten(-1, s.shape or (1,)) for k, s in self.vectors.items()}
        return out


class Actor(PolicyHead):
    """feat (..., F) -> log-probabilities with the uniform share mixed in, or (mean, std) of a bounded Gaussian."""

    def __init__(self, size_in: int, spaces: Mapping[str, Space], config: GRUDreamerConfig) -> None:
        nn.Module.__init__(self)  # another head's layers are not wanted; sampling and densities are
        self.spaces = dict(sorted(spaces.items()))
        self.share, self.bounds = config.actor_unimix, (config.min_std, config.max_std)
        self.mlp = MLP(size_in, config.units, config.actor_layers)
        self.out = nn.ModuleDict({
            key: nn.Linear(config.units, s.one_hot_size) if s.discrete else _gaussian(config.units, s.size)
            for key, s in self.spaces.items()
        })  # fmt: skip

    def forward(self, feat: Tensor) -> dict[str, tuple[Tensor, ...]]:
        hidden, out = self.mlp(feat), {}
        for key, space in self.spaces.items():
            raw = self.out[key](hidden)
            if space.discrete:
                out[key] = (unimix(raw.unflatten(-1, (*space.shape, space.classes or 2)), self.share),)
            else:
                mean, std = bounded_normal(raw[0], raw[1], *self.bounds)
                out[key] = (mean.unflatten(-1, space.shape), std.unflatten(-1, space.shape))
        return out


def _gaussian(units: int, size: int) -> GaussianOut:
    out = GaussianOut(units, size, 1.0)
    out.mean, out.std = nn.Linear(units, size), nn.Linear(units, size)  # type: ignore[assignment]
    return out


class GRUDreamerAgent(CategoricalNoise, nn.Module):
    """World model and behaviour. Methods are pure (carry in, carry out, noise given)."""

    def __init__(self, spec: EnvSpec, config: GRUDreamerConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.dtype = torch.float32
        self._sites: dict[str, Site] = {}
        c = config
        feat = c.stoch * c.classes + c.deter
        self.encoder = Encoder(spec.obs, c)
        self.dynamics = RSSM(self.encoder.size, sum(s.one_hot_size for s in spec.action.values()), c)
        self.decoder = Decoder(spec.obs, feat, c)
        self.reward = SymlogBins(feat, c.units, c.reward_layers, c.bins)
        self.cont = nn.Sequential(MLP(feat, c.units, c.cont_layers), nn.Linear(c.units, 1))
        self.actor = Actor(feat, spec.action, c)
        self.critic = SymlogBins(feat, c.units, c.critic_layers, c.bins)
        self.slow_critic = SymlogBins(feat, c.units, c.critic_layers, c.bins).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.critic.out.weight.device

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that its own program moves by gradient: all but the slow critic."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every submodule and tap by its path, and under the words all agents share. Found once."""
        if not self._sites:
            self._sites = canonical(find_sites(self))
        return self._sites

    # Acting ----------------------------------------------------------------------------------------------------------

    def action_vector(self, action: Mapping[str, Tensor]) -> Tensor:
        """Actions per key (..., *shape) -> one vector (..., A): integers one-hot, keys sorted."""
        return concat_keys(action, self.spec.action, squash=False)

    def initial(self, batch: int) -> DreamerCarry:
        state = self.dynamics.initial(batch)
        width = sum(s.one_hot_size for s in self.spec.action.values())
        return DreamerCarry(state.deter, state.stoch, torch.zeros(batch, width, device=self.device))

    def memory_of(self, carry: DreamerCarry) -> Tensor:
        """What the site `memory` showed last, (B, D)."""
        return carry.deter

    def read_out(self, carry: DreamerCarry) -> dict[str, Tensor]:
        """What the agent thinks of where it is: value (B,), and logits.<key>, or mean.<key> and std.<key>, (B, ...)."""
        feat = feature(carry)
        return {"value": self.critic.mean(self.critic(feat)), **named_parameters_of(self.actor(feat))}

    def policy(
        self, obs: Mapping[str, Tensor], carry: DreamerCarry, noise: Noise
    ) -> tuple[dict[str, Tensor], DreamerCarry, dict[str, Tensor]]:
        """One step: obs[key] (B, ...) with `is_first` (B,) -> actions (B, ...), the next carry, nothing to store."""
        tokens = self.encoder({key: obs[key] for key in self.spec.obs})
        before = State(carry.deter, carry.stoch)
        state, _ = self.dynamics.observe_step(before, carry.action, tokens, obs["is_first"], noise.posterior)
        chosen = self.actor.sample(self.actor(feature(state)), noise.action)
        return chosen, DreamerCarry(state.deter, state.stoch, self.action_vector(chosen)), {}

    def observe(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: DreamerCarry,
        noise: Noise | None = None,
    ) -> Observed:
        """The posterior alone: `unroll` without heads and decoder."""
        rows, steps = is_first.shape
        taken = self.action_vector(actions)
        before = torch.cat([carry.action.unsqueeze(1), taken[:, :-1]], 1)
        tokens = self.encoder({k: obs[k].flatten(0, 1) for k in self.spec.obs}).unflatten(0, (rows, steps))
        draws = None if noise is None else noise.posterior
        state, states, logits = State(carry.deter, carry.stoch), [], []
        for t in range(steps):
            draw = None if draws is None else draws[:, t]
            state, logit = self.dynamics.observe_step(state, before[:, t], tokens[:, t], is_first[:, t], draw)
            states.append(state)
            logits.append(logit)
        along = State(*(torch.stack([getattr(s, name) for s in states], 1) for name in State._fields))
        return Observed(along, torch.stack(logits, 1), DreamerCarry(state.deter, state.stoch, taken[:, -1]))

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: DreamerCarry,
        noise: Noise | None = None,
    ) -> Unrolled:
        """The whole agent along given sequences; arguments as for `dreamer`. noise None takes the mode."""
        states, logit, carry = self.observe(obs, actions, is_first, carry, noise)
        feat = feature(states)
        decoded = self.decoder(feat.flatten(0, 1))
        return Unrolled(
            states=states,
            posterior_logit=logit,
            prior_logit=self.dynamics.prior(states.deter),
            policy=self.actor(feat),
            value=self.critic.mean(self.critic(feat)),
            reward=self.reward.mean(self.reward(feat)),
            cont=torch.sigmoid(self.cont(feat).squeeze(-1)),
            decoded={key: value.unflatten(0, feat.shape[:2]) for key, value in decoded.items()},
            carry=carry,
        )

    def imagine(
        self, start: State | DreamerCarry, horizon: int, noise: Noise, actions: Mapping[str, Tensor] | None = None
    ) -> Imagined:
        """Follow the policy, or the given actions (N, H, ...), through the prior for `horizon` steps from N states."""

        def move(state: State, action: dict[str, Tensor], draw: Tensor | None) -> State:
            return self.dynamics.imagine_step(state, self.action_vector(action), draw)[0]

        begin = State(start.deter, start.stoch)
        return Imagined(*follow(self.actor, feature, move, begin, horizon, noise, actions))


def feature(state: State | DreamerCarry) -> Tensor:
    """[flattened stoch; deter], (..., F): what every head reads."""
    return torch.cat([state.stoch.flatten(-2), state.deter], -1)


