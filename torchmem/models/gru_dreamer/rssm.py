"""Its recurrent state-space model: one GRU with a LayerNorm over all gates, and a learned start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchmem.models.dists import straight_through, unimix
from torchmem.models.dreamer.rssm import State
from torchmem.models.gru_dreamer.config import GRUDreamerConfig
from torchmem.models.gru_dreamer.layers import EPS, Dense
from torchmem.models.layers import Tap


class Core(nn.Module):
    """One step: (h, z, action vector) -> h'. Gates in the order reset, candidate, update; update bias -1."""

    def __init__(self, action: int, config: GRUDreamerConfig) -> None:
        super().__init__()
        c = config
        self.input = Dense(c.stoch * c.classes + action, c.hidden)
        self.linear = nn.Linear(c.hidden + c.deter, 3 * c.deter, bias=False)
        self.norm = nn.LayerNorm(3 * c.deter, eps=EPS)
        self.reset, self.candidate, self.update = Tap(), Tap(), Tap()

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (B, D), stoch (B, S * K), action (B, A) -> (B, D)."""
        x = self.input(torch.cat([stoch, action], -1))
        reset, candidate, update = self.norm(self.linear(torch.cat([x, deter], -1))).chunk(3, -1)
        reset = self.reset(torch.sigmoid(reset))
        candidate = self.candidate(torch.tanh(reset * candidate))
        update = self.update(torch.sigmoid(update - 1))
        return update * candidate + (1 - update) * deter


class Logits(nn.Module):
    """(B, F) -> raw logits (B, S, K)."""

    def __init__(self, size_in: int, config: GRUDreamerConfig) -> None:
        super().__init__()
        self.layer = Dense(size_in, config.hidden)
        self.logit = nn.Linear(config.hidden, config.stoch * config.classes)
        self.shape = (config.stoch, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit(self.layer(x)).unflatten(-1, self.shape)


class RSSM(nn.Module):
    """Observes and imagines, one step at a time, with the noise given."""

    def __init__(self, embed: int, action: int, config: GRUDreamerConfig) -> None:
        super().__init__()
        self.config = config
        self.core = Core(action, config)
        self.posterior = Logits(config.deter + embed, config)
        self.prior = Logits(config.deter, config)
        self.start = nn.Parameter(torch.zeros(1, config.deter)) if config.learned_start else None
        self.deter, self.stoch = Tap(), Tap()

    def initial(self, batch: int) -> State:
        """tanh of the learned start, and the mode of its prior; or zeros."""
        c = self.config
        if self.start is None:
            zeros = self.prior.logit.weight.new_zeros
            return State(zeros(batch, c.deter), zeros(batch, c.stoch, c.classes))
        # Not through the modules: a site counts their calls as steps of time.
        deter = torch.tanh(self.start)
        logit = _quietly(self.prior, deter)
        return State(deter.expand(batch, -1), straight_through(unimix(logit, c.unimix), None).expand(batch, -1, -1))

    def observe_step(
        self, state: State, action: Tensor, tokens: Tensor, first: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        """state (B, ...) before the step; action (B, A) before it; tokens (B, E); first (B,) bool: the state and the
        action before such a step are replaced by the start and zeros. noise (B, S, K) or None for the mode."""
        start = self.initial(len(first))
        deter = torch.where(first[:, None], start.deter, state.deter)
        stoch = torch.where(first[:, None, None], start.stoch, state.stoch)
        deter = self.deter(self.core(deter, stoch.flatten(1), action * ~first[:, None]))
        logit = self.posterior(torch.cat([deter, tokens], -1))
        return State(deter, self.draw(logit, noise)), logit

    def imagine_step(self, state: State, action: Tensor, noise: Tensor | None) -> tuple[State, Tensor]:
        """One prior step under an action vector (B, A)."""
        deter = self.deter(self.core(state.deter, state.stoch.flatten(1), action))
        logit = self.prior(deter)
        return State(deter, self.draw(logit, noise)), logit

    def draw(self, logit: Tensor, noise: Tensor | None) -> Tensor:
        """Straight-through one-hot sample of the unimixed logits."""
        return self.stoch(straight_through(unimix(logit, self.config.unimix), noise))


def _quietly(head: Logits, x: Tensor) -> Tensor:
    """`head(x)` without running the hooks of its modules."""
    layer = head.layer
    y = nn.functional.linear(x, layer.linear.weight)
    y = nn.functional.silu(nn.functional.layer_norm(y, y.shape[-1:], layer.norm.weight, layer.norm.bias, EPS))
    return nn.functional.linear(y, head.logit.weight, head.logit.bias).unflatten(-1, head.shape)
