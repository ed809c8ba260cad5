"""The recurrent state-space model of DreamerV3: block GRU, posterior and prior (spec section 5).

State: deter h (B, D), and stoch z (B, S, K), one-hot samples of S categorical variables.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.deferred import deferred_weight_gradients
from torchmem.models.dists import straight_through, unimix
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.layers import BlockLinear, ConcatLinear, Dense, Linear, RMSNorm, Tap


class State(NamedTuple):
    """deter (B, D) and stoch (B, S, K); over a sequence (B, T, ...)."""

    deter: Tensor
    stoch: Tensor


class Core(nn.Module):
    """One step of the block GRU: (h, z, action features) -> h'."""

    def __init__(self, action: int, config: DreamerConfig) -> None:
        super().__init__()
        c = config
        self.blocks = c.blocks
        self.deter_in = Dense(c.deter, c.hidden)
        self.stoch_in = Dense(c.stoch * c.classes, c.hidden)
        self.action_in = Dense(action, c.hidden)
        self.hidden = nn.ModuleList()
        self.hidden_norm = nn.ModuleList()
        for i in range(c.dyn_layers):
            size_in = c.deter + c.blocks * 3 * c.hidden if i == 0 else c.deter
            self.hidden.append(BlockLinear(size_in, c.deter, c.blocks))
            self.hidden_norm.append(RMSNorm(c.deter))
        self.gates = BlockLinear(c.deter, 3 * c.deter, c.blocks)
        self.reset, self.candidate, self.update = Tap(), Tap(), Tap()

    def embed_action(self, action: Tensor) -> Tensor:
        """Action vectors (..., A), zero where an episode begins, to features; independent of the state."""
        action = action / action.detach().abs().clamp(min=1.0)
        return self.action_in(action)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (B, D), stoch (B, S * K), action features (B, hidden) -> new deter (B, D)."""
        blocks = deter.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (g, B, D / g)
        shared = torch.cat([self.deter_in(deter), self.stoch_in(stoch), action], -1)
        x = torch.cat([blocks, shared.expand(self.blocks, *shared.shape)], -1)
        for layer, norm in zip(self.hidden, self.hidden_norm, strict=True):
            x = F.silu(norm(layer(x)))
        gates = self.gates(x).unflatten(-1, (self.blocks, 3, -1))  # each block holds its own thirds
        reset, candidate, update = (gates[:, :, i].flatten(1) for i in range(3))
        reset = self.reset(torch.sigmoid(reset))
        candidate = self.candidate(torch.tanh(reset * candidate))
        update = self.update(torch.sigmoid(update - 1))  # bias -1: mostly keep
        return torch.lerp(deter, candidate, update)  # u c + (1 - u) h


class Posterior(nn.Module):
    """q(z | h, tokens): raw logits (B, S, K)."""

    def __init__(self, embed: int, config: DreamerConfig) -> None:
        super().__init__()
        c = config
        self.absolute = c.absolute
        self.linear = Linear(embed, c.hidden) if c.absolute else ConcatLinear(c.deter, embed, c.hidden)
        self.norm = RMSNorm(c.hidden)
        self.layers = nn.Sequential(*(Dense(c.hidden, c.hidden) for _ in range(c.obs_layers - 1)))
        self.logit = Linear(c.hidden, c.stoch * c.classes)
        self.shape = (c.stoch, c.classes)

    def embed(self, tokens: Tensor) -> Tensor:
        """The share of the first layer that depends on the tokens alone: computed for all steps at once."""
        return self.linear.second(tokens) if isinstance(self.linear, ConcatLinear) else self.linear(tokens)

    def forward(self, deter: Tensor, embedded: Tensor) -> Tensor:
        x = embedded if self.absolute else self.linear(deter, embedded)
        x = self.layers(F.silu(self.norm(x)))
        return self.logit(x).unflatten(-1, self.shape)


class Prior(nn.Module):
    """p(z | h): raw logits (..., S, K)."""

    def __init__(self, config: DreamerConfig) -> None:
        super().__init__()
        c = config
        self.layers = nn.Sequential(
            *(Dense(c.deter if i == 0 else c.hidden, c.hidden) for i in range(c.prior_layers))
        )
        self.logit = Linear(c.hidden, c.stoch * c.classes)
        self.shape = (c.stoch, c.classes)

    def forward(self, deter: Tensor) -> Tensor:
        return self.logit(self.layers(deter)).unflatten(-1, self.shape)


class RSSM(nn.Module):
    """Observes sequences and imagines futures, one step at a time, with the noise given."""

    def __init__(self, embed: int, action: int, config: DreamerConfig) -> None:
        super().__init__()
        self.config = config
        self.core = Core(action, config)
        self.posterior = Posterior(embed, config)
        self.prior = Prior(config)
        self.deter, self.stoch = Tap(), Tap()

    def initial(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        c = self.config
        deter = torch.zeros(batch, c.deter, device=device, dtype=dtype)
        return State(deter, torch.zeros(batch, c.stoch, c.classes, device=device, dtype=dtype))

    def observe_step(
        self, state: State, action: Tensor, embedded: Tensor, keep: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        """One posterior step.

        state before the step; action features (B, hidden); embedded tokens (B, hidden); keep (B, 1), 0 where an episode
        begins; noise (B, S, K) or None for the mode. Returns the state after the step and its raw logits (B, S, K).
        """
        deter, stoch = state.deter * keep, state.stoch.flatten(1) * keep
        deter = self.deter(self.core(deter, stoch, action))
        logit = self.posterior(deter, embedded)
        return State(deter, self.draw(logit, noise, deter.dtype)), logit

    def observe(
        self, state: State, actions: Tensor, tokens: Tensor, is_first: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        """Posterior along sequences.

        state (B, ...) before step 0; actions (B, T, A): the action vectors *before* each step; tokens (B, T, E);
        is_first (B, T) bool: the state and action before such a step count as zero; noise (B, T, S, K) or None.
        Returns the states after each step, (B, T, ...), and raw posterior logits (B, T, S, K).
        """
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)  # (B, T, 1)
        action = self.core.embed_action(actions.to(tokens.dtype) * keep)
        embedded = self.posterior.embed(tokens)
        noises = [None] * tokens.shape[1] if noise is None else noise.unbind(1)
        steps = list(zip(action.unbind(1), embedded.unbind(1), keep.unbind(1), noises, strict=True))
        if torch.compiler.is_compiling():  # the compiler sums weight gradients by itself
            return self._scan(state, steps)
        with deferred_weight_gradients():
            return self._scan(state, steps)

    def _scan(self, state: State, steps: list[tuple]) -> tuple[State, Tensor]:
        deters, stochs, logits = [], [], []
        for inputs in steps:
            state, logit = self.observe_step(state, *inputs)
            deters.append(state.deter)
            stochs.append(state.stoch)
            logits.append(logit)
        return State(torch.stack(deters, 1), torch.stack(stochs, 1)), torch.stack(logits, 1)

    def imagine_step(self, state: State, action: Tensor, noise: Tensor | None) -> tuple[State, Tensor]:
        """One prior step under an action vector (B, A). Returns the state after it and raw prior logits (B, S, K)."""
        action = self.core.embed_action(action.to(state.deter.dtype))
        deter = self.deter(self.core(state.deter, state.stoch.flatten(1), action))
        logit = self.prior(deter)
        return State(deter, self.draw(logit, noise, deter.dtype)), logit

    def draw(self, logit: Tensor, noise: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Straight-through one-hot sample of the unimixed logits."""
        return self.stoch(straight_through(unimix(logit, self.config.unimix), noise).to(dtype))


def feature(state) -> Tensor:
    """[deter; flattened stoch], (..., F): what every head reads. state: anything with both (a State, a carry)."""
    return torch.cat([state.deter, state.stoch.flatten(-2)], -1)
