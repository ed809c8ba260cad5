"""Every number of recurrent PPO, with its meaning. Defaults learn MiniGrid-Memory with 256 copies x 32 steps."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torchmem.options import option


@dataclasses.dataclass
class PPOConfig:
    """Architecture, losses and optimiser of recurrent PPO (Schulman et al. 2017, arXiv:1707.06347).

    Beside these: `envs` x `length` is one rollout, `ratio` the number of passes over it (epochs), and `batch` the
    columns (whole rows of `length` steps) of one update.
    """

    name: str = option("ppo", "Which agent this is.")
    # Architecture.
    core: Literal["gru", "lstm", "mlp"] = option("gru", "What carries memory; mlp carries none: a control.")
    units: int = option(64, "Units of the core.")
    core_layer: bool = option(True, "Whether core=mlp has a layer; false: it hands the encoding on as it is.")
    activation: Literal["relu", "tanh"] = option("relu", "Of every dense layer outside the image encoder.")
    encoder_units: int = option(64, "Units of each layer that encodes vectors and the last action.")
    encoder_layers: int = option(1, "Layers of the vector encoder; 0 hands the vectors to the core as they are.")
    image_channels: list[int] = option([16, 32, 32], "Channels of the IMPALA stages; each halves the resolution.")
    image_units: int = option(64, "Units that an image is encoded into.")
    head_layers: int = option(0, "Hidden layers of actor and critic, each apart; 0 reads the core directly.")
    head_units: int = option(64, "Units of these hidden layers.")
    see_action: bool | Literal["auto"] = option(
        "auto", "Show the last action beside the observation; auto: unless core=mlp, for which it would be a memory."
    )
    memory_span: float | None = option(
        None, "Units of a recurrent core keep what they hold for 1 to this many steps at first; null: torch's gates."
    )
    learned_start: bool = option(True, "Learn the state that every episode starts from; false: zeros.")
    start_scale: float = option(0.1, "Standard deviation of the learned state's first values.")
    legacy_reset: bool = option(
        False, "Reset memory as the program behind imported procgen-ppo checkpoints did; only to replay them."
    )
    initial_std: float = option(1.0, "Standard deviation of a continuous policy before training.")
    # Losses.
    gamma: float = option(0.99, "Discount per agent step.")
    lam: float = option(0.95, "Lambda of the generalised advantage estimate.")
    clip: float = option(0.2, "Ratios of new to old probability count up to 1 -+ this.")
    value_clip: float | None = option(0.2, "The value may move this far from the recorded one; null: freely.")
    value_scale: float = option(0.5, "Weight of the value loss, which is half the squared error.")
    entropy: float = option(0.02, "Entropy bonus per nat.")
    recall: float = option(0.0, "Weight of naming from memory what the episode has shown; 0: no such loss.")
    recall_width: int | None = option(
        None, "Numbers per cell of a symbolic view, which recall pools over cells; null: every number by itself."
    )
    normalise_advantage: bool = option(True, "Advantages of a whole rollout to mean 0, deviation 1.")
    target_kl: float | None = option(None, "Leave a rollout once the policy moved by this many nats; null: never.")
    # Running scales; both are part of the checkpoint.
    scale_reward: bool = option(False, "Divide rewards by the running deviation of their discounted sum.")
    reward_limit: float = option(10.0, "Scaled rewards are cut at -+ this.")
    scale_obs: bool = option(False, "Shift and divide float observations by their running mean and deviation.")
    obs_limit: float = option(10.0, "Scaled observations are cut at -+ this.")
    # Optimiser.
    lr: float = option(2e-3, "Learning rate of Adam.")
    eps: float = option(1e-5, "Adam's epsilon.")
    schedule: Literal["constant", "linear"] = option("constant", "Learning rate over the run; linear: to 0.")
    clip_norm: float = option(0.5, "Largest norm of the whole gradient.")
    parts: int = option(1, "Cut each update's columns into this many passes, to save memory; changes no number.")

    @property
    def shows_action(self) -> bool:
        """What `see_action` comes to. A policy without memory learns to note a cue in the action it takes."""
        return self.core != "mlp" if self.see_action == "auto" else self.see_action

    def __post_init__(self) -> None:
        for name in ("units", "encoder_units", "image_units", "head_units", "parts"):
            _check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("encoder_layers", "head_layers", "start_scale", "entropy", "value_scale", "recall"):
            _check(getattr(self, name) >= 0, self, name, "at least 0")
        for name in ("gamma", "lam"):
            _check(0 <= getattr(self, name) <= 1, self, name, "in 0..1")
        for name in ("clip", "initial_std", "reward_limit", "obs_limit", "lr", "eps", "clip_norm"):
            _check(getattr(self, name) > 0, self, name, "above 0")
        for name in ("value_clip", "target_kl"):
            value = getattr(self, name)
            _check(value is None or value > 0, self, name, "above 0, or null")
        _check(self.memory_span is None or self.memory_span >= 2, self, "memory_span", "at least 2, or null")
        _check(self.recall_width is None or self.recall_width >= 1, self, "recall_width", "at least 1, or null")
        _check(self.core in ("gru", "lstm", "mlp"), self, "core", "gru, lstm or mlp")
        _check(self.core == "gru" or not self.legacy_reset, self, "legacy_reset", "false unless core=gru")
        _check(self.core == "mlp" or self.core_layer, self, "core_layer", f"true for core={self.core}")
        _check(self.activation in ("relu", "tanh"), self, "activation", "relu or tanh")
        _check(bool(self.image_channels), self, "image_channels", "one number or more")


def _check(ok: bool, config: PPOConfig, key: str, meaning: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {meaning}; got {getattr(config, key)!r}")
