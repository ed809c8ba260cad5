"""What surrounds the core: the encoder of observations and last action, actor and critic."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchmem.models.fused import widen
from torchmem.models.heads import PolicyHead
from torchmem.models.inputs import concat_keys, split_spaces
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.ppo.impala import Impala
from torchmem.models.ppo.scales import ObsScale
from torchmem.types import Space

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Dense(nn.Sequential):
    """Linear and activation, orthogonal at first."""

    def __init__(self, size_in: int, size_out: int, activation: str) -> None:
        super().__init__(orthogonal(nn.Linear(size_in, size_out), math.sqrt(2)), ACTIVATIONS[activation]())


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def layers(size_in: int, units: int, count: int, activation: str) -> nn.Sequential:
    return nn.Sequential(*(Dense(size_in if i == 0 else units, units, activation) for i in range(count)))


class Encoder(nn.Module):
    """obs[key] (..., *shape) and the last action (..., A) -> (..., size).

    Integers become one-hot; floats pass as they are, or scaled by running moments; images go through IMPALA stages.
    """

    def __init__(self, obs: Mapping[str, Space], action_size: int, config: PPOConfig) -> None:
        super().__init__()
        self.images, self.vectors = split_spaces(obs)
        floats = {key: space for key, space in self.vectors.items() if not space.discrete}
        self.scale = ObsScale(floats, config.obs_limit) if config.scale_obs and floats else None
        self.see_action = config.shows_action
        self.size = 0
        width = sum(s.one_hot_size for s in self.vectors.values()) + (action_size if self.see_action else 0)
        if width:
            self.mlp = layers(width, config.encoder_units, config.encoder_layers, config.activation)
            self.size += config.encoder_units if config.encoder_layers else width
        if self.images:
            sides = {space.shape[:2] for space in self.images.values()}
            if len(sides) != 1:
                raise ValueError(f"image keys {list(self.images)} differ in size: {sorted(sides)}")
            (side,) = sides
            channels = sum(s.shape[2] for s in self.images.values())
            self.cnn = Impala((side[0], side[1]), channels, config.image_channels, config.image_units)
            self.size += config.image_units
        if not self.images and not self.vectors:
            raise ValueError("the world offers no observation that the agent may see")

    def forward(self, obs: Mapping[str, Tensor], action: Tensor) -> Tensor:
        parts = []
        if self.scale is not None:
            obs = {**obs, **self.scale(obs)}
        if self.vectors or self.see_action:
            vector = [concat_keys(obs, self.vectors, squash=False)] if self.vectors else []
            parts.append(self.mlp(torch.cat([*vector, action] if self.see_action else vector, -1)))
        if self.images:
            image = torch.cat([obs[key] for key in self.images], -1)
            lead = image.shape[:-3]
            parts.append(self.cnn(widen(image.flatten(0, -4)) / 255).unflatten(0, lead))
        return torch.cat(parts, -1)


class Actor(PolicyHead):
    """hidden (..., D) -> parameters of one distribution per action key.

    Discrete keys: a categorical. Continuous keys: a Gaussian with a free mean and one learned deviation per dimension;
    the worlds clip what they cannot do. Starts almost uniform.
    """

    def __init__(self, size_in: int, spaces: Mapping[str, Space], config: PPOConfig) -> None:
        nn.Module.__init__(self)  # another head's layers are not wanted; sampling and densities are
        self.spaces = dict(sorted(spaces.items()))
        self.mlp = layers(size_in, config.head_units, config.head_layers, config.activation)
        units = config.head_units if config.head_layers else size_in
        outputs, deviations = {}, {}
        for key, space in self.spaces.items():
            if not space.discrete:
                if not space.shape:
                    raise ValueError(f"continuous action {key!r} needs a shape such as (1,)")
                deviations[key] = nn.Parameter(torch.full(space.shape, math.log(config.initial_std)))
            width = space.one_hot_size
            outputs[key] = orthogonal(nn.Linear(units, width), 0.01)
        self.out = nn.ModuleDict(outputs)
        self.log_std = nn.ParameterDict(deviations)

    def forward(self, feat: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Discrete: (logits (..., *shape, classes),); continuous: (mean, std), each (..., *shape)."""
        hidden = self.mlp(feat)
        out = {}
        for key, space in self.spaces.items():
            flat = self.out[key](hidden)
            if space.discrete:
                out[key] = (flat.unflatten(-1, (*space.shape, space.classes or 2)),)
            else:
                mean = flat.unflatten(-1, space.shape)
                out[key] = (mean, self.log_std[key].exp().expand_as(mean))
        return out


class Critic(nn.Module):
    """hidden (..., D) -> value (...)."""

    def __init__(self, size_in: int, config: PPOConfig) -> None:
        super().__init__()
        self.mlp = layers(size_in, config.head_units, config.head_layers, config.activation)
        self.out = orthogonal(nn.Linear(config.head_units if config.head_layers else size_in, 1), 1.0)

    def forward(self, feat: Tensor) -> Tensor:
        return self.out(self.mlp(feat)).squeeze(-1)
