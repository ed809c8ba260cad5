"""R2I's dynamics: a stack of S5 layers carries memory, and z comes from the observation alone.

    z_t ~ q(z | tokens_t)                      u_t = Dense([z_{t-1}, a_{t-1}])
    y_t, x_t = S5 stack(u_t, x_{t-1})          h_t = silu(W y_t + b)              p(z_t | h_t) is the prior

Since no z needs an h, a whole sequence is observed in parallel. State: deter h (B, D), stoch z (B, S, K) one-hot, and
hidden x (B, N, 2 P), the float32 states of all N layers, real and imaginary parts in turn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.dists import straight_through, unimix
from torchmem.models.layers import Tap
from torchmem.models.r2i.block import Stack
from torchmem.models.r2i.config import R2IConfig
from torchmem.models.r2i.layers import Dense, LayerNorm, Plain


class State(NamedTuple):
    """deter (B, D), stoch (B, S, K), hidden (B, N, 2 P); over a sequence (B, T, ...)."""

    deter: Tensor
    stoch: Tensor
    hidden: Tensor


class Latent(nn.Module):
    """Raw logits of z, (..., S, K), from the tokens (posterior) or from h (prior)."""

    def __init__(self, size_in: int, config: R2IConfig) -> None:
        super().__init__()
        self.hidden = Dense(size_in, config.units)
        self.logit = Plain(config.units, config.stoch * config.classes)
        self.shape = (config.stoch, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit(self.hidden(x)).unflatten(-1, self.shape)

    def unseen(self, x: Tensor) -> Tensor:
        """The same past every hook: no site, trace or edit knows of it."""
        x = LayerNorm.forward(self.hidden.norm, Plain.forward(self.hidden.linear, x))
        return Plain.forward(self.logit, F.silu(x)).unflatten(-1, self.shape)


class Dynamics(nn.Module):
    """Observes sequences and imagines futures, with the noise given."""

    def __init__(self, embed: int, action: int, config: R2IConfig) -> None:
        super().__init__()
        c = self.config = config
        self.input = Dense(c.stoch * c.classes + action, c.units)
        self.core = Stack(c.units, c.ssm)
        self.output = Plain(c.units, c.deter)
        self.posterior = Latent(embed, c)
        self.prior = Latent(c.deter, c)
        self.deter, self.stoch = Tap(), Tap()
        self.start_hidden = nn.Parameter(torch.zeros(c.ssm.layers, c.hidden), requires_grad=c.start == "learned")
        # Only the mode of the prior at this h is ever used, which passes no gradient: in the original it is a parameter
        # that stays 0 as well.
        self.start_deter = nn.Parameter(torch.zeros(c.deter), requires_grad=False)

    def initial(self, batch: int, dtype: torch.dtype) -> State:
        """The state before an episode's first step; hidden with gradient."""
        c = self.config
        hidden = self.start_hidden.expand(batch, -1, -1)
        if c.start == "zeros":
            deter = torch.zeros(1, c.deter, dtype=dtype, device=hidden.device)
            stoch = torch.zeros(1, c.stoch, c.classes, dtype=dtype, device=hidden.device)
        else:
            with torch.no_grad():
                deter = torch.tanh(self.start_deter).to(dtype).unsqueeze(0)
                stoch = F.one_hot(self.prior.unseen(deter).argmax(-1), c.classes).to(dtype)
        return State(deter.expand(batch, -1), stoch.expand(batch, -1, -1), hidden)

    def observe(
        self, state: State, actions: Tensor, tokens: Tensor, is_first: Tensor, noise: Tensor | None,
        stepwise: bool = False,
    ) -> tuple[State, Tensor]:  # fmt: skip
        """The posterior along sequences, parallel in time.

        state (B, ...) before step 0; actions (B, T, A): the action vectors *before* each step; tokens (B, T, E);
        is_first (B, T) bool: before such a step the state is the initial one and the action counts as zero; noise
        (B, T, S, K) or None for the mode. stepwise: run the S5 layers step by step, in recurrent mode.
        Returns the states after each step, (B, T, ...), and raw posterior logits (B, T, S, K).
        """
        logit = self.posterior(tokens)
        stoch = self.draw(logit, noise, tokens.dtype)
        fresh = self.initial(tokens.shape[0], tokens.dtype)
        earlier = torch.cat([state.stoch.unsqueeze(1), stoch[:, :-1]], 1)
        hidden = state.hidden
        if self.config.ssm.legacy_reset:  # z of the episode before, or of another batch, goes in; see legacy.py
            before, hidden = earlier, torch.where(is_first[:, :1, None], fresh.hidden, hidden)
        else:
            before = torch.where(is_first[..., None, None], fresh.stoch.unsqueeze(1), earlier)
        u = self.feed(before, actions * (~is_first).to(actions.dtype).unsqueeze(-1))
        y, hidden = self.core.sequence(u, hidden, fresh.hidden, is_first, stepwise)
        return State(self.read(y), stoch, hidden), logit

    def observe_step(
        self, state: State, action: Tensor, tokens: Tensor, is_first: Tensor, noise: Tensor | None
    ) -> tuple[State, Tensor]:
        """One posterior step in recurrent mode: everything (B, ...), as in `observe`."""
        fresh = self.initial(tokens.shape[0], tokens.dtype)
        stoch = torch.where(is_first[:, None, None], fresh.stoch, state.stoch)
        hidden = torch.where(is_first[:, None, None], fresh.hidden, state.hidden)
        y, hidden = self.core.step(self.feed(stoch, action * (~is_first).to(action.dtype).unsqueeze(-1)), hidden)
        deter = self.read(y)
        logit = self.posterior(tokens)
        return State(deter, self.draw(logit, noise, deter.dtype), hidden), logit

    def imagine_step(self, state: State, action: Tensor, noise: Tensor | None) -> tuple[State, Tensor]:
        """One prior step under an action vector (B, A). Returns the state after it and raw prior logits (B, S, K)."""
        y, hidden = self.core.step(self.feed(state.stoch, action.to(state.deter.dtype)), state.hidden)
        deter = self.read(y)
        logit = self.prior(deter)
        return State(deter, self.draw(logit, noise, deter.dtype), hidden), logit

    def feed(self, stoch: Tensor, action: Tensor) -> Tensor:
        """z (..., S, K) and an action vector (..., A), cut to magnitude 1, -> the stack's input (..., H)."""
        action = action / action.detach().abs().clamp(min=1.0)
        return self.input(torch.cat([stoch.flatten(-2), action], -1))

    def read(self, y: Tensor) -> Tensor:
        """The stack's output (..., H) -> h (..., D)."""
        return self.deter(F.silu(self.output(y)))

    def draw(self, logit: Tensor, noise: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Straight-through one-hot sample of the unimixed logits."""
        return self.stoch(straight_through(unimix(logit, self.config.unimix), noise).to(dtype))


def feature(state) -> Tensor:
    """[deter; flattened stoch], (..., F): what the world model's heads read."""
    return torch.cat([state.deter, state.stoch.flatten(-2)], -1)


def policy_feature(state, reads: str) -> Tensor:
    """What actor and critic read, (..., F): of h, z and the S5 states those that `R2IConfig.policy_input` names."""
    stoch, hidden = state.stoch.flatten(-2), state.hidden.flatten(-2).to(state.stoch.dtype)
    parts = {"output": (state.deter, stoch), "hidden": (stoch, hidden), "full": (state.deter, stoch, hidden)}
    return torch.cat(parts[reads], -1)


def policy_feature_size(config: R2IConfig) -> int:
    deter, stoch = config.deter, config.stoch * config.classes
    return stoch + {"output": deter, "hidden": config.memory_size, "full": deter + config.memory_size}[
        config.policy_input
    ]
