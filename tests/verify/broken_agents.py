"""Agents with one defect each, and the checks that must find it."""

from __future__ import annotations

import torch

from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.ppo.agent import PPOAgent


class StaleCarry(PPOAgent):
    """Acts on through the end of an episode as if it had not ended."""

    def policy(self, obs, carry, noise):
        return super().policy({**obs, "is_first": torch.zeros_like(obs["is_first"])}, carry, noise)


class UnrollsThroughResets(PPOAgent):
    def unroll(self, obs, actions, is_first, carry, noise=None):
        return super().unroll(obs, actions, torch.zeros_like(is_first), carry, noise)


class LearnsThroughResets(PPOAgent):
    def loss_parts(self, batch, noise):
        return super().loss_parts({**batch, "is_first": torch.zeros_like(batch["is_first"])}, noise)


class ResetsTooLate(PPOAgent):
    """The carry is emptied one step after the episode opened."""

    late = None

    def policy(self, obs, carry, noise):
        first, self.late = self.late, obs["is_first"]
        first = torch.zeros_like(obs["is_first"]) if first is None else first
        return super().policy({**obs, "is_first": first}, carry, noise)


class KeepsItsOwnCarry(PPOAgent):
    kept = None

    def policy(self, obs, carry, noise):
        actions, self.kept, told = super().policy(obs, self.kept or carry, noise)
        return actions, self.kept, told


class LooksAtNeighbours(PPOAgent):
    def policy(self, obs, carry, noise):
        vector = obs["vector"]
        return super().policy({**obs, "vector": vector - vector.mean(0)}, carry, noise)


class ReadsTruth(PPOAgent):
    def policy(self, obs, carry, noise):
        vector = obs["vector"] + obs["place"].unsqueeze(-1) if "place" in obs else obs["vector"]
        return super().policy({**obs, "vector": vector}, carry, noise)


class LearnsFromTruth(PPOAgent):
    def loss_parts(self, batch, noise):
        target = batch["target"] + batch["place"] if "place" in batch else batch["target"]
        return super().loss_parts({**batch, "target": target}, noise)


class TellsAnotherLogp(PPOAgent):
    """Writes down the log-probability of the likeliest action in place of the one it took."""

    def policy(self, obs, carry, noise):
        actions, carry, told = super().policy(obs, carry, noise)
        best = self.actor.sample(self.actor(carry.hidden), None)
        return actions, carry, {**told, "logp": self.actor.logp(self.actor(carry.hidden), best)}


class TellsAnOldValue(PPOAgent):
    def policy(self, obs, carry, noise):
        old = self.critic(carry.hidden)
        actions, carry, told = super().policy(obs, carry, noise)
        return actions, carry, {**told, "value": old}


AGENTS = {
    StaleCarry: {"step = sequence", "step = cut sequence", "step = loss path", "act = train", "reset: acting"},
    UnrollsThroughResets: {"step = sequence", "step = cut sequence", "reset: sequence"},
    LearnsThroughResets: {"step = loss path", "act = train", "reset: loss"},
    ResetsTooLate: {
        "step = sequence", "step = cut sequence", "step = loss path", "act = train", "reset: acting", "nothing kept",
    },
    KeepsItsOwnCarry: {"nothing kept", "step = loss path", "act = train"},  # a rollout looks one row ahead
    LooksAtNeighbours: {"step = sequence", "step = cut sequence", "step = loss path", "act = train", "rows apart"},
    ReadsTruth: {"truth unreachable"},
    LearnsFromTruth: {"truth unreachable"},
    TellsAnotherLogp: {"act = train"},
    TellsAnOldValue: {"act = train"},
}  # fmt: skip


class StaleDreamer(DreamerAgent):
    def policy(self, obs, carry, noise):
        return super().policy({**obs, "is_first": torch.zeros_like(obs["is_first"])}, carry, noise)


class DreamerStoresLate(DreamerAgent):
    """Hands out the state before the step as the one after it."""

    def policy(self, obs, carry, noise):
        before = self.stored(carry)
        actions, carry, _ = super().policy(obs, carry, noise)
        return actions, carry, before


class DreamerLearnsThroughResets(DreamerAgent):
    def loss_parts(self, batch, noise):
        return super().loss_parts({**batch, "is_first": torch.zeros_like(batch["is_first"])}, noise)


DREAMERS = {
    StaleDreamer: {"step = sequence", "step = cut sequence", "step = loss path", "act = train", "reset: acting"},
    DreamerStoresLate: {"act = train", "step = loss path"},
    DreamerLearnsThroughResets: {"act = train", "step = loss path", "reset: loss"},
}
