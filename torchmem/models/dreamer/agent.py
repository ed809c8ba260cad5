"""The DreamerV3 agent: act, learn, imagine (Hafner et al., Nature 2025; danijar/dreamerv3 @ e3f0224, agent.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmem.models.behaviour import Behaviour
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.dreamer.rssm import State, feature
from torchmem.models.dreamer.world_model import WorldModel
from torchmem.models.follow import follow
from torchmem.models.heads import named_parameters_of
from torchmem.models.laprop import LaProp
from torchmem.models.layers import cast_once
from torchmem.models.noise import CategoricalNoise, Noise
from torchmem.models.protocol import LossOut
from torchmem.models.site_names import canonical
from torchmem.models.sites import find_sites
from torchmem.types import EnvSpec, Site


class DreamerCarry(NamedTuple):
    """What the agent remembers while acting: the latent state and its last action."""

    deter: Tensor  # (B, D)
    stoch: Tensor  # (B, S, K)
    action: Tensor  # (B, A) action vector taken after the last observation


class Imagined(NamedTuple):
    """Trajectories from N starts: index 0 is the start itself, H more follow."""

    feat: Tensor  # (N, H + 1, F)
    action: dict[str, Tensor]  # (N, H + 1, ...)


class Observed(NamedTuple):
    """The posterior along a sequence; all (B, T, ...)."""

    states: State
    posterior_logit: Tensor  # (B, T, S, K), raw
    carry: DreamerCarry  # after the last step


class Unrolled(NamedTuple):
    """What the agent computes along a sequence; all (B, T, ...)."""

    states: State
    posterior_logit: Tensor  # (B, T, S, K), raw
    prior_logit: Tensor  # (B, T, S, K), raw
    policy: dict[str, tuple[Tensor, ...]]  # parameters of each action's distribution
    value: Tensor  # (B, T)
    reward: Tensor  # (B, T), of the same step
    cont: Tensor  # (B, T), probability that the episode goes on
    decoded: dict[str, Tensor]  # predictions of each observation key
    carry: DreamerCarry  # after the last step


class DreamerAgent(CategoricalNoise, WorldModel):
    """World model plus behaviour. Methods are pure (carry in, carry out, noise given); `commit` alone changes state."""

    def __init__(self, spec: EnvSpec, config: DreamerConfig) -> None:
        super().__init__(spec, config)
        self._sites: dict[str, Site] = {}
        self.behaviour = Behaviour(config.deter + config.stoch * config.classes, spec.action, config)

    @property
    def device(self) -> torch.device:
        return self.behaviour.return_low.device

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The named parameters that the optimiser moves: all but the slow critic."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def optimiser(self) -> LaProp:
        return LaProp(self.trained(), self.config)

    def latent_schema(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What replay stores of each step, beside observation and action: (shape, dtype) by key.

        stoch is stored as class indices: the one-hot it stands for is exact, at 1/(4 K) of the bytes.
        """
        return {"deter": ((self.config.deter,), "float32"), "stoch": ((self.config.stoch,), "uint8")}

    def stored(self, state: State) -> dict[str, Tensor]:
        """A state (..., D), (..., S, K) as replay stores it."""
        return {"deter": state.deter.detach().float(), "stoch": state.stoch.detach().argmax(-1).to(torch.uint8)}

    # Acting ----------------------------------------------------------------------------------------------------------

    def initial(self, batch: int) -> DreamerCarry:
        state = self.dynamics.initial(batch, self.device, self.dtype)
        width = sum(s.one_hot_size for s in self.spec.action.values())
        return DreamerCarry(*state, torch.zeros(batch, width, device=self.device, dtype=self.dtype))

    def memory_of(self, carry: DreamerCarry) -> Tensor:
        """What the site `memory` showed last, (B, D)."""
        return carry.deter

    def read_out(self, carry: DreamerCarry) -> dict[str, Tensor]:
        """What the agent thinks of where it is: value (B,), and logits.<key>, or mean.<key> and std.<key>, (B, ...)."""
        feat = feature(State(carry.deter, carry.stoch))
        value = self.behaviour.value.mean(self.behaviour.value(feat))
        return {"value": value, **named_parameters_of(self.behaviour.policy(feat))}

    def policy(
        self, obs: Mapping[str, Tensor], carry: DreamerCarry, noise: Noise
    ) -> tuple[dict[str, Tensor], DreamerCarry, dict[str, Tensor]]:
        """One step: obs[key] (B, ...) with `is_first` (B,) -> actions (B, ...), the next carry, latents to store."""
        keep = (~obs["is_first"]).to(self.dtype).unsqueeze(-1)
        tokens = self.encoder({key: obs[key] for key in self.spec.obs}, self.dtype)
        action = self.dynamics.core.embed_action(carry.action * keep)
        embedded = self.dynamics.posterior.embed(tokens)
        state, _ = self.dynamics.observe_step(
            State(carry.deter, carry.stoch), action, embedded, keep, noise.posterior
        )
        params = self.behaviour.policy(feature(state))
        chosen = self.behaviour.policy.sample(params, noise.action)
        return chosen, DreamerCarry(*state, self.action_vector(chosen)), self.stored(state)

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: DreamerCarry,
        noise: Noise | None = None,
    ) -> Unrolled:
        """The whole agent along given sequences: what acting would have seen, computed at once.

        obs[key] and actions[key] (B, T, ...), is_first (B, T) bool; actions[:, t] was taken after obs[:, t], the one
        before step 0 is in the carry. noise.posterior (B, T, S, K); None takes the mode.
        """
        states, logit, carry = self.observe(obs, actions, is_first, carry, noise)
        feat = feature(states)
        lead = feat.shape[:2]
        decoded = self.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        return Unrolled(
            states=states,
            posterior_logit=logit,
            prior_logit=self.dynamics.prior(states.deter),
            policy=self.behaviour.policy(feat),
            value=self.behaviour.value.mean(self.behaviour.value(feat)),
            reward=self.reward.mean(self.reward(feat)),
            cont=torch.sigmoid(self.cont(feat)),
            decoded={key: value.unflatten(0, lead) for key, value in decoded.items()},
            carry=carry,
        )

    def observe(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: DreamerCarry,
        noise: Noise | None = None,
    ) -> Observed:
        """The posterior alone: `unroll` without heads and decoder."""
        taken = self.action_vector(actions)
        before = torch.cat([carry.action.unsqueeze(1), taken[:, :-1]], 1)
        draws = None if noise is None else noise.posterior
        state = State(carry.deter, carry.stoch)
        states, logit = self.dynamics.observe(state, before, self.encode(obs), is_first, draws)
        return Observed(states, logit, DreamerCarry(states.deter[:, -1], states.stoch[:, -1], taken[:, -1]))

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every submodule and tap by its path, and under the words all agents share. Found once."""
        if not self._sites:
            self._sites = canonical(find_sites(self))
        return self._sites

    # Imagining -------------------------------------------------------------------------------------------------------

    def imagine(
        self,
        start: State | DreamerCarry,
        horizon: int,
        noise: Noise,
        actions: Mapping[str, Tensor] | None = None,
    ) -> Imagined:
        """Follow the policy, or the given actions (N, H, ...), through the prior for `horizon` steps from N states.

        start deter (N, D), stoch (N, S, K). Noise and the rest: see `follow`.
        """

        def move(state: State, action: dict[str, Tensor], draw: Tensor | None) -> State:
            return self.dynamics.imagine_step(state, self.action_vector(action), draw)[0]

        begin = State(start.deter, start.stoch)
        return Imagined(*follow(self.behaviour.policy, feature, move, begin, horizon, noise, actions))

    def open_loop(self, batch: Mapping[str, Tensor]) -> Any:
        """Frames (T, 3 H, B W, 3) uint8 of what is expected beside what came; see `dreamer/open_loop.py`."""
        from torchmem.models.dreamer.open_loop import open_loop

        return open_loop(self, batch)

    # Learning --------------------------------------------------------------------------------------------------------

    def training_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        """Noise of one update on `batch` sequences of `length` steps (context not counted)."""
        posterior = self._gumbel(generator, batch, length)
        imagined = self.imagination_noise(batch * length, self.config.imag_length, generator)
        return Noise(posterior=posterior, prior=imagined.prior, action=imagined.action)

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        """All losses on a replayed batch: keys (B, 1 + T, ...), step 0 being the context (see `world_loss`).

        noise: from `training_noise`, or `Noise.mode()`. Changes nothing: the new return range is in `state`.
        """
        with cast_once(self):
            return LossOut(*self.loss_parts(batch, noise))

    def loss_parts(self, batch: Mapping[str, Tensor], noise: Noise) -> tuple:
        """The fields of LossOut in order, as plain tensors and dictionaries: what `compile` compiles."""
        losses, states, metrics = self.world_loss(batch, noise.posterior)
        rows, steps = states.deter.shape[:2]
        with torch.no_grad():
            start = State(states.deter.detach().flatten(0, 1), states.stoch.detach().flatten(0, 1))
            imagined = self.imagine(start, self.config.imag_length, noise)
            reward = self.reward.mean(self.reward(imagined.feat))
            cont = torch.sigmoid(self.cont(imagined.feat))
        acting, returns, acting_metrics, new_range = self.behaviour.imagination_loss(
            imagined.feat, imagined.action, reward, cont
        )
        losses |= {name: value.mean(1).unflatten(0, (rows, steps)) for name, value in acting.items()}
        feat = feature(states)
        losses["repval"], _ = self.behaviour.replay_loss(
            feat if self.config.repval_grad else feat.detach(),
            *(batch[key][:, 1:] for key in ("reward", "is_last", "is_terminal")),
            boot=returns[:, 0].unflatten(0, (rows, steps)),
        )
        total = torch.stack([self.scale(name) * value.mean() for name, value in losses.items()]).sum()
        metrics |= acting_metrics | {f"loss/{name}": value.detach().mean() for name, value in losses.items()}
        metrics["loss/total"] = total.detach()
        last_action = self.action_vector({k: batch[k][:, -1] for k in self.spec.action})
        carry = DreamerCarry(states.deter[:, -1].detach(), states.stoch[:, -1].detach(), last_action)
        return total, losses, metrics, self.stored(states), new_range, carry

    def commit(self, out: LossOut) -> None:
        """Take over the running statistics of a pass and move the slow critic, after the optimiser step."""
        self.behaviour.commit(out.state)
