"""What moves a simulated world: a LayerNorm GRU with categorical latents (the original), or R2I's S5 layers.

Both offer: `size`, how many numbers of the state the start must give beside z; `begin`, the state from these; `prior`,
one step without looking; `posterior`, a whole sequence with looking. Actions are vectors, zeros where there was none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.dists import unimix
from torchmem.models.fused import widen
from torchmem.models.r2i.dynamics import Dynamics
from torchmem.models.r2i.dynamics import State as S5State
from torchmem.models.simulator.config import SimulatorConfig
from torchmem.models.simulator.latents import latents_of
from torchmem.models.simulator.packing import cut


class WorldState(NamedTuple):
    """A simulator's carry; over a sequence (B, T, ...)."""

    deter: Tensor  # (B, D)
    stoch: Tensor  # (B, S, K) one-hot; (B, S, 1) where z is Gaussian
    hidden: Tensor  # (B, N, 2 P) states of the S5 layers, else (B, 0)


def feature(state: WorldState) -> Tensor:
    """[deter; flattened stoch], (..., F): what decoder and heads read."""
    return torch.cat([state.deter, state.stoch.flatten(-2)], -1)


class NormGRU(nn.Module):
    """A GRU with a LayerNorm before each nonlinearity; the update gate weighs the new value."""

    def __init__(self, size_in: int, units: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(size_in, 3 * units, bias=False)
        self.from_state = nn.Linear(units, 3 * units, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(units, 1e-3) for _ in range(3))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        (reset, update, new), (reset_h, update_h, new_h) = (
            y.chunk(3, -1) for y in (self.from_input(x), self.from_state(state))
        )
        reset = torch.sigmoid(self.norms[0](reset + reset_h))
        update = torch.sigmoid(self.norms[1](update + update_h))
        new = torch.tanh(self.norms[2](new + reset * new_h))
        return update * new + (1 - update) * state


class Latent(nn.Module):
    """Raw numbers of z (logits), (..., S, K), from h, or from h and tokens."""

    def __init__(self, c: SimulatorConfig, embed: int = 0) -> None:
        super().__init__()
        self.from_deter = nn.Linear(c.deter, c.hidden)
        if embed:
            self.from_tokens = nn.Linear(embed, c.hidden, bias=False)
        self.norm = nn.LayerNorm(c.hidden, 1e-3)
        self.shape = latents_of(c).raw
        self.logit = nn.Linear(c.hidden, math.prod(self.shape))

    def forward(self, deter: Tensor, embedded: Tensor | None = None) -> Tensor:
        x = self.from_deter(deter)
        if embedded is not None:
            x = x + embedded
        return self.logit(F.elu(self.norm(x))).unflatten(-1, self.shape)


class RSSM(nn.Module):
    """z and action move h; h gives the prior of z, h and what is seen its posterior."""

    def __init__(self, embed: int, action: int, c: SimulatorConfig) -> None:
        super().__init__()
        self.config, self.size, self.latents = c, c.deter, latents_of(c)
        self.from_stoch = nn.Linear(math.prod(self.latents.shape), c.hidden)
        self.from_action = nn.Linear(action, c.hidden, bias=False)
        self.norm = nn.LayerNorm(c.hidden, 1e-3)
        self.gru = NormGRU(c.hidden, c.deter)
        self.prior_logit = Latent(c)
        self.posterior_logit = Latent(c, embed)

    def begin(self, flat: Tensor, stoch: Tensor) -> WorldState:
        return WorldState(flat, stoch, flat[:, :0])

    def move(self, state: WorldState, action: Tensor) -> Tensor:
        """The next h, (B, D)."""
        x = self.from_stoch(state.stoch.flatten(-2)) + self.from_action(action)
        return self.gru(F.elu(self.norm(x)), state.deter)

    def prior(self, state: WorldState, action: Tensor, draw: Tensor | None) -> WorldState:
        """One step; draw (B, S, K) or None for the mode."""
        deter = self.move(state, action)
        known = self.latents.read(self.prior_logit(deter))
        return WorldState(deter, self.latents.draw(known, draw).to(deter.dtype), state.hidden)

    def posterior(
        self, state: WorldState, actions: Tensor, tokens: Tensor, noise: Tensor | None
    ) -> tuple[WorldState, Tensor, Tensor]:
        """actions (B, T, A) before each step, tokens (B, T, E), noise (B, T, S, K) -> states, distributions of z after
        and before looking (log-probabilities (B, T, S, K), of Gaussians (B, T, S, 2))."""
        embedded = self.posterior_logit.from_tokens(tokens)  # all steps at once
        deters, stochs, knowns = [], [], []
        for t in range(actions.shape[1]):
            if self.config.truncate and t and t % self.config.truncate == 0:
                state = cut(state)
            deter = self.move(state, actions[:, t])
            known = self.latents.read(self.posterior_logit(deter, embedded[:, t]))
            stoch = self.latents.draw(known, None if noise is None else noise[:, t]).to(deter.dtype)
            state = WorldState(deter, stoch, state.hidden)
            for values, value in zip((deters, stochs, knowns), (deter, stoch, known), strict=True):
                values.append(value)
        deter, hidden = torch.stack(deters, 1), state.hidden.unsqueeze(1).expand(-1, actions.shape[1], -1)
        prior = self.latents.read(self.prior_logit(deter))
        return WorldState(deter, torch.stack(stochs, 1), hidden), torch.stack(knowns, 1), prior


class S5(nn.Module):
    """R2I's dynamics: z comes from what is seen alone, so that a sequence is observed in parallel.

    Always in float32 (or wider): its states decay over thousands of steps, which bfloat16 cannot tell from none.
    """

    def __init__(self, embed: int, action: int, c: SimulatorConfig) -> None:
        super().__init__()
        self.config, r2i = c, c.r2i
        self.dynamics = Dynamics(embed, action, r2i)
        self.layout = (r2i.ssm.layers, r2i.hidden)
        self.size = r2i.memory_size

    def begin(self, flat: Tensor, stoch: Tensor) -> WorldState:
        return WorldState(flat.new_zeros(flat.shape[0], self.config.deter), stoch, flat.unflatten(-1, self.layout))

    def prior(self, state: WorldState, action: Tensor, draw: Tensor | None) -> WorldState:
        with torch.autocast(action.device.type, enabled=False):
            wide = (widen(part) for part in state)
            after, _ = self.dynamics.imagine_step(S5State(*wide), widen(action), draw)
        return WorldState(*after)

    def posterior(
        self, state: WorldState, actions: Tensor, tokens: Tensor, noise: Tensor | None
    ) -> tuple[WorldState, Tensor, Tensor]:
        never = torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        share = self.config.unimix
        with torch.autocast(actions.device.type, enabled=False):
            wide = (widen(part) for part in state)
            states, logit = self.dynamics.observe(S5State(*wide), widen(actions), widen(tokens), never, noise)
            prior = self.dynamics.prior(states.deter)
        return WorldState(*states), unimix(logit, share), unimix(prior, share)


TRANSITIONS = {"rssm": RSSM, "s5": S5}
