"""The R2I agent: act, learn, imagine (Samsami et al. 2024, arXiv:2403.04253; chandar-lab/Recall2Imagine @ 6e317e7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmem.models.follow import follow
from torchmem.models.heads import named_parameters_of
from torchmem.models.layers import cast_once
from torchmem.models.noise import CategoricalNoise, Noise
from torchmem.models.protocol import LossOut
from torchmem.models.r2i.config import R2IConfig
from torchmem.models.r2i.dynamics import State, feature, policy_feature
from torchmem.models.r2i.networks import R2IBehaviour
from torchmem.models.r2i.optimiser import GroupedAdam
from torchmem.models.r2i.world_model import WorldModel
from torchmem.models.site_names import canonical
from torchmem.models.sites import find_sites
from torchmem.types import EnvSpec, Site


class R2ICarry(NamedTuple):
    """What the agent remembers while acting: the latent state and its last action."""

    deter: Tensor  # (B, D); read by heads, not by the next step
    stoch: Tensor  # (B, S, K)
    hidden: Tensor  # (B, N, 2 P) float32, states of all S5 layers: the memory
    action: Tensor  # (B, A) action vector taken after the last observation


class R2IImagined(NamedTuple):
    """Trajectories from N starts: index 0 is the start itself, H more follow."""

    feat: Tensor  # (N, H + 1, F), what actor and critic read
    action: dict[str, Tensor]  # (N, H + 1, ...)
    states: State  # (N, H + 1, ...)


class R2IObserved(NamedTuple):
    """The posterior along a sequence; all (B, T, ...)."""

    states: State
    posterior_logit: Tensor  # (B, T, S, K), raw
    carry: R2ICarry  # after the last step


class R2IUnrolled(NamedTuple):
    """What the agent computes along a sequence; all (B, T, ...)."""

    states: State
    posterior_logit: Tensor  # (B, T, S, K), raw
    prior_logit: Tensor  # (B, T, S, K), raw
    policy: dict[str, tuple[Tensor, ...]]  # parameters of each action's distribution
    value: Tensor  # (B, T)
    reward: Tensor  # (B, T), of the same step
    cont: Tensor  # (B, T), probability that the episode goes on
    decoded: dict[str, Tensor]  # predictions of each observation key
    carry: R2ICarry  # after the last step


class R2IAgent(CategoricalNoise, WorldModel):
    """World model plus behaviour. Methods are pure (carry in, carry out, noise given); `commit` alone changes state."""

    def __init__(self, spec: EnvSpec, config: R2IConfig) -> None:
        super().__init__(spec, config)
        self._sites: dict[str, Site] = {}
        self.behaviour = R2IBehaviour(spec.action, config)

    @property
    def device(self) -> torch.device:
        return self.behaviour.return_low.device

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The named parameters that the optimiser moves: all but the slow critic and `dynamics.start_deter`."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def optimiser(self) -> GroupedAdam:
        return GroupedAdam(self.trained(), self.config)

    def latent_schema(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What replay stores of each step, beside observation and action: nothing, unless `stored_start`."""
        c = self.config
        if not c.stored_start:
            return {}
        return {"hidden": ((c.ssm.layers, c.hidden), "float32"), "stoch": ((c.stoch,), "uint8")}

    def stored(self, state: State) -> dict[str, Tensor]:
        """A state as replay stores it."""
        if not self.config.stored_start:
            return {}
        return {"hidden": state.hidden.detach().float(), "stoch": state.stoch.detach().argmax(-1).to(torch.uint8)}

    def feat(self, state: State | R2ICarry) -> Tensor:
        """What actor and critic read of a state, (..., F)."""
        return policy_feature(state, self.config.policy_input)

    # Acting ----------------------------------------------------------------------------------------------------------

    def initial(self, batch: int) -> R2ICarry:
        state = self.dynamics.initial(batch, self.dtype)
        action = torch.zeros(batch, self.action_size, device=self.device, dtype=self.dtype)
        return R2ICarry(*State(*(part.detach().clone() for part in state)), action)

    def memory_of(self, carry: R2ICarry) -> Tensor:
        """What the site `memory` showed last, (B, N * 2 P)."""
        return carry.hidden.flatten(1)

    def read_out(self, carry: R2ICarry) -> dict[str, Tensor]:
        """What the agent thinks of where it is: value (B,), and logits.<key>, or mean.<key> and std.<key>, (B, ...)."""
        feat = self.feat(carry)
        value = self.behaviour.value.mean(self.behaviour.value(feat))
        return {"value": value, **named_parameters_of(self.behaviour.policy(feat))}

    def policy(
        self, obs: Mapping[str, Tensor], carry: R2ICarry, noise: Noise
    ) -> tuple[dict[str, Tensor], R2ICarry, dict[str, Tensor]]:
        """One step: obs[key] (B, ...) with `is_first` (B,) -> actions (B, ...), the next carry, latents to store."""
        tokens = self.encoder({key: obs[key] for key in self.spec.obs}, self.dtype)
        state = State(carry.deter, carry.stoch, carry.hidden)
        state, _ = self.dynamics.observe_step(state, carry.action, tokens, obs["is_first"], noise.posterior)
        params = self.behaviour.policy(self.feat(state))
        chosen = self.behaviour.policy.sample(params, noise.action)
        return chosen, R2ICarry(*state, self.action_vector(chosen)), self.stored(state)

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: R2ICarry,
        noise: Noise | None = None,
    ) -> R2IUnrolled:
        """The whole agent along given sequences, in recurrent mode through every tap.

        obs[key] and actions[key] (B, T, ...), is_first (B, T) bool; actions[:, t] was taken after obs[:, t], the one
        before step 0 is in the carry. noise.posterior (B, T, S, K); None takes the mode.
        """
        states, logit, carry = self.observe(obs, actions, is_first, carry, noise)
        feat, acting = feature(states), self.feat(states)
        lead = feat.shape[:2]
        decoded = self.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        return R2IUnrolled(
            states=states,
            posterior_logit=logit,
            prior_logit=self.dynamics.prior(states.deter),
            policy=self.behaviour.policy(acting),
            value=self.behaviour.value.mean(self.behaviour.value(acting)),
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
        carry: R2ICarry,
        noise: Noise | None = None,
    ) -> R2IObserved:
        """The posterior alone: `unroll` without heads and decoder."""
        taken = self.action_vector(actions)
        before = torch.cat([carry.action.unsqueeze(1), taken[:, :-1]], 1)
        draws = None if noise is None else noise.posterior
        state = State(carry.deter, carry.stoch, carry.hidden)
        states, logit = self.dynamics.observe(state, before, self.encode(obs), is_first, draws, stepwise=True)
        last = State(*(part[:, -1] for part in states))
        return R2IObserved(states, logit, R2ICarry(*last, taken[:, -1]))

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every submodule and tap by its path, and under the words all agents share. Found once."""
        if not self._sites:
            self._sites = canonical(find_sites(self))
        return self._sites

    # Imagining -------------------------------------------------------------------------------------------------------

    def imagine(
        self,
        start: State | R2ICarry,
        horizon: int,
        noise: Noise,
        actions: Mapping[str, Tensor] | None = None,
    ) -> R2IImagined:
        """Follow the policy, or the given actions (N, H, ...), through the prior for `horizon` steps from N states.

        start: deter (N, D), stoch (N, S, K), hidden (N, L, 2 P). Noise and the rest: see `follow`.
        """
        states = [State(start.deter, start.stoch, start.hidden)]

        def move(state: State, action: dict[str, Tensor], draw: Tensor | None) -> State:
            states.append(self.dynamics.imagine_step(state, self.action_vector(action), draw)[0])
            return states[-1]

        feats, taken = follow(self.behaviour.policy, self.feat, move, states[0], horizon, noise, actions)
        return R2IImagined(feats, taken, State(*(torch.stack(part, 1) for part in zip(*states))))

    def open_loop(self, batch: Mapping[str, Tensor]) -> Any:
        """Frames (T, 3 H, B W, 3) uint8 of what is expected beside what came; see `r2i/open_loop.py`."""
        from torchmem.models.r2i.open_loop import open_loop

        return open_loop(self, batch)

    # Learning --------------------------------------------------------------------------------------------------------

    def training_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        """Noise of one update on `batch` sequences of `length` steps (context not counted)."""
        imagined = self.imagination_noise(batch * length, self.config.imag_length, generator)
        posterior = self._gumbel(generator, batch, length)
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
        lead = states.deter.shape[:2]
        acting, new_range, acting_metrics = self.acting_loss(states, batch["is_terminal"][:, 1:], noise)
        losses |= {name: value.mean(1).unflatten(0, lead) for name, value in acting.items()}
        total = torch.stack([self.scale(name) * value.mean() for name, value in losses.items()]).sum()
        metrics |= acting_metrics | {f"loss/{name}": value.detach().mean() for name, value in losses.items()}
        metrics["loss/total"] = total.detach()
        last_action = self.action_vector({k: batch[k][:, -1] for k in self.spec.action})
        carry = R2ICarry(*State(*(part[:, -1].detach() for part in states)), last_action)
        return total, losses, metrics, self.stored(states), new_range, carry

    def acting_loss(
        self, states: State, is_terminal: Tensor, noise: Noise
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Losses {policy, value} (B * T, H) on futures imagined from every state (B, T, ...), return range, metrics."""
        with torch.no_grad():
            start = State(*(part.detach().flatten(0, 1) for part in states))
            imagined = self.imagine(start, self.config.imag_length, noise)
            feat = feature(imagined.states)
            reward = self.reward.mean(self.reward(feat))
            cont = (self.cont(feat) > 0).float()  # the mode
            cont[:, 0] = 1 - is_terminal.flatten().float()
        losses, _, metrics, new_range = self.behaviour.imagination_loss(imagined.feat, imagined.action, reward, cont)
        return losses, new_range, metrics

    def commit(self, out: LossOut) -> None:
        """Take over the running statistics of a pass and move the slow critic, after the optimiser step."""
        self.behaviour.commit(out.state)
