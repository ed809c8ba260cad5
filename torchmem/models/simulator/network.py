"""The simulator that is trained around a frozen agent: real frames, one start vector, a world that goes on from it.

    context frames --start encoder, GRU--> latent --converters--> state before the first step, guess of the agent's
    carry and last action;   state, action --transition--> state --decoder, heads--> observation, reward, end

Spec sections 3.1 to 3.3 (interpreting-rl-behavior); `LatentSimulator` of protocol.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.fused import widen
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.config import SimulatorConfig
from torchmem.models.simulator.latents import latents_of
from torchmem.models.simulator.observations import shown, straight_through_one_hot, to_float
from torchmem.models.simulator.packing import leaves
from torchmem.models.simulator.protocol import Context, Start, Stepped
from torchmem.models.simulator.transition import TRANSITIONS, WorldState, feature
from torchmem.models.simulator.views import Brush, Eye
from torchmem.models.simulator.vision import Head, converter, unit
from torchmem.types import EnvSpec, Space


class ContextGRU(nn.Module):
    """torch.nn.GRU's equations, written out: x (B, C, F) -> what it holds in the end (B, D). Compilation breaks off at
    the library's own."""

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, size_in: int, units: int) -> None:
        super().__init__()
        self.units = units
        bound = 1 / math.sqrt(units)
        for name, shape in (("weight_ih", (size_in,)), ("weight_hh", (units,)), ("bias_ih", ()), ("bias_hh", ())):
            value = torch.empty(3 * units, *shape).uniform_(-bound, bound)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        inputs = F.linear(x, self.weight_ih, self.bias_ih)
        hidden = inputs.new_zeros(inputs.shape[0], self.units)
        for gates in inputs.unbind(1):
            (reset, update, new), (reset_h, update_h, new_h) = (
                part.chunk(3, -1) for part in (gates, F.linear(hidden, self.weight_hh, self.bias_hh))
            )
            keep = torch.sigmoid(update + update_h)
            new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
            hidden = (1 - keep) * new + keep * hidden
        return hidden


class StartEncoder(nn.Module):
    """Float observations (B, C, ...) -> latent (B, L), or mean and log deviation (B, 2 L)."""

    def __init__(self, spec: EnvSpec, c: SimulatorConfig) -> None:
        super().__init__()
        self.eye = Eye(spec.obs, c, start=True)
        units = c.encoder_units
        self.gru = ContextGRU(self.eye.size, units)
        out = c.latent * (2 if c.bottleneck == "vae" else 1)
        self.out = nn.Sequential(
            nn.Linear(units, units), nn.ELU(), nn.Linear(units, units), nn.ELU(), nn.Linear(units, out)
        )

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        lead = next(iter(obs.values())).shape[:2]
        tokens = self.eye({key: value.flatten(0, 1) for key, value in obs.items()}).unflatten(0, lead)
        return self.out(self.gru(tokens))


class SimulatorNet(nn.Module):
    """See above. `attach` an agent before `begin` and `from_latent`; the networks alone know only its size."""

    def __init__(self, spec: EnvSpec, config: SimulatorConfig) -> None:
        super().__init__()
        c = self.config = config
        self.spec, self.context, self.latent_size = spec, c.context, c.latent
        self.actions = [space for _, space in sorted(spec.action.items())]  # in the order of an action vector
        self.action_size = sum(space.one_hot_size for space in self.actions)
        self.latents = latents_of(c)
        stoch, raw = math.prod(self.latents.shape), math.prod(self.latents.raw)
        self.encoder = StartEncoder(spec, c)
        self.embed = Eye(spec.obs, c, start=False)
        self.transition = TRANSITIONS[c.transition](self.embed.size, self.action_size, c)
        self.to_state = converter(c.latent, self.transition.size + raw)
        self.to_carry = converter(c.latent, c.guessed) if c.guessed else None
        self.to_action = converter(c.latent, self.action_size)
        self.decoder = Brush(spec.obs, c)
        self.reward = Head(c.deter + stoch, c.head_units, c.head_layers)
        self.terminal = Head(c.deter + stoch, c.head_units, c.head_layers)
        self.loop: AgentLoop | None = None
        self.foreign = False

    def attach(self, loop: AgentLoop, foreign: bool = False) -> None:
        """Plug a frozen agent in. foreign: not the one of training, so its carry is not guessed: it begins as new.

        Raises ValueError where it is of another size or world than the networks.
        """
        if not foreign and loop.packing.guessed != self.config.guessed:
            raise ValueError(
                f"this simulator guesses {self.config.guessed} numbers of an agent's carry, the agent has "
                f"{loop.packing.guessed}: give the agent it was trained with"
            )
        for kind in ("obs", "action"):
            if dict(getattr(loop.agent.spec, kind)) != dict(getattr(self.spec, kind)):
                raise ValueError(
                    f"agent and simulator differ in the {kind} of their worlds: give the agent of training"
                )
        self.loop, self.foreign = loop, foreign  # no Module, so the agent is no part of this network

    @property
    def agent_loop(self) -> AgentLoop:
        if self.loop is None:
            raise RuntimeError("no agent is attached to this simulator: call attach(AgentLoop(agent)) first")
        return self.loop

    @property
    def device(self) -> torch.device:
        return self.reward[0].weight.device  # type: ignore[return-value]

    @property
    def dtype_of_weights(self) -> torch.dtype:
        return next(self.reward.parameters()).dtype

    # Starts ------------------------------------------------------------------------------------------------------

    def encode(self, context: Context, draw: Tensor | None = None) -> Tensor:
        """(B, L); draw: standard normal (B, L) of a VAE, None for its mean."""
        return self.place(self.encode_raw(self.frames(context)), draw)

    def frames(self, context: Context) -> dict[str, Tensor]:
        """The context in float form, earlier episodes blanked out."""
        later = context.is_first[:, 1:].flip(1).cumsum(1).flip(1) > 0  # (B, C - 1): an episode begins after this step
        keep = torch.cat([~later, torch.ones_like(later[:, :1])], 1)
        obs = to_float(context.obs, self.spec.obs, self.dtype_of_weights)
        return {key: value * keep.view(*keep.shape, *[1] * (value.dim() - 2)) for key, value in obs.items()}

    def encode_raw(self, obs: Mapping[str, Tensor]) -> Tensor:
        return self.encoder(obs)

    def place(self, raw: Tensor, draw: Tensor | None) -> Tensor:
        """What the start encoder says -> a point of the latent space."""
        raw = widen(raw)
        if self.config.bottleneck == "sphere":
            return unit(raw)
        mean, log_std = raw.chunk(2, -1)
        return mean if draw is None else mean + log_std.exp() * draw

    def random_latent(self, batch: int, generator: torch.Generator | None) -> Tensor:
        return self.project(torch.randn((batch, self.latent_size), generator=generator, device=self.device))

    def project(self, latent: Tensor) -> Tensor:
        return unit(latent) if self.config.bottleneck == "sphere" else latent

    def state(self, latent: Tensor, draw: Tensor | None) -> WorldState:
        """The state one step before the first that is shown; draw (B, S, K) or None."""
        z = self.latents
        flat, raw = self.to_state(latent).split([self.transition.size, math.prod(z.raw)], -1)
        return self.transition.begin(flat, z.draw(z.read(raw.unflatten(-1, z.raw)), draw).to(flat.dtype))

    def guess(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the agent's carry before the start (B, guessed), and raw parameters of its last action (B, A)."""
        carry = latent[:, :0] if self.to_carry is None else self.to_carry(latent)
        return torch.tanh(carry) if self.config.bounded else carry, self.to_action(latent)

    def action_of(self, raw: Tensor) -> Tensor:
        """Raw parameters of an action (B, A) -> an action vector: classes one-hot and straight-through."""
        parts = []
        for space, part in zip(self.actions, raw.split([s.one_hot_size for s in self.actions], -1), strict=True):
            if space.discrete:
                part = straight_through_one_hot(part.unflatten(-1, (space.size, space.classes or 2))).flatten(1)
            parts.append(part)
        return torch.cat(parts, -1)

    def from_latent(self, latent: Tensor, draw: Tensor | None = None) -> Start:
        """A start whose agent carries what the simulator guesses. draw (B, 2, S, K) or None."""
        loop, packing = self.agent_loop, self.agent_loop.packing
        carry, raw = self.guess(latent)
        action = self.action_of(raw)
        if self.foreign:
            always = torch.ones(len(latent), dtype=torch.bool, device=latent.device)
            return Start(self._first(latent, action, draw), loop.agent.initial(len(latent)), always)
        agent = packing.unpack(torch.cat([carry, action], -1) if packing.has_action else carry)
        never = torch.zeros(len(latent), dtype=torch.bool, device=latent.device)
        return Start(self._first(latent, action, draw), agent, never)

    def begin(self, context: Context, draw: Tensor | None = None) -> Start:
        """A start whose agent carries what it really did, and whose first step follows the real action before it."""
        latent, first = self.encode(context), context.is_first[:, -1]
        taken = {key: context.actions[key][:, -2] for key in self.spec.action}
        action = self.agent_loop.action_vector(taken) * (~first).unsqueeze(-1)
        agent = self.agent_loop.packing.unpack(context.memory[:, -2])
        return Start(self._first(latent, action.to(latent.dtype), draw), agent, first)

    def _first(self, latent: Tensor, action: Tensor, draw: Tensor | None) -> WorldState:
        draws = (None, None) if draw is None else (draw[:, 0], draw[:, 1])
        return self.transition.prior(self.state(latent, draws[0]), action, draws[1])

    # Steps -------------------------------------------------------------------------------------------------------

    def world_noise(self, batch: int, horizon: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        start = self.latents.noise((batch, 2), generator, self.device)
        return start, self.latents.noise((batch, horizon), generator, self.device)

    def look(self, carry: WorldState) -> Stepped:
        feat = feature(carry)
        obs = shown(self.decoder(carry.deter, carry.stoch), self.spec.obs)
        return Stepped(carry, obs, self.reward(feat), torch.sigmoid(self.terminal(feat)))

    def step(self, carry: WorldState, action: Tensor, draw: Tensor | None) -> Stepped:
        return self.look(self.transition.prior(carry, action.to(carry.deter.dtype), draw))

    def state_of(self, carry: WorldState) -> Tensor:
        return torch.cat([part.flatten(1) for part in leaves(carry)], -1)


def cross_entropy(raw: Tensor, target: Tensor, spaces: Sequence[Space]) -> Tensor:
    """Of a guessed action: raw parameters and vector, (B, A) -> (B,): cross-entropy of classes, squared error else."""
    sizes = [space.one_hot_size for space in spaces]
    total = raw.new_zeros(raw.shape[0])
    for space, guess, truth in zip(spaces, raw.split(sizes, -1), target.split(sizes, -1), strict=True):
        if space.discrete:
            shape = (space.size, space.classes or 2)
            logp = F.log_softmax(guess.unflatten(-1, shape), -1)
            total = total - (logp * truth.unflatten(-1, shape)).sum((-2, -1))
        else:
            total = total + (guess - truth).square().sum(-1)
    return total
