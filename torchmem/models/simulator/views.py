"""From observations to tokens and from features back, the same calls for both kinds of vision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.decoder import Decoder
from torchmem.models.dists import symlog
from torchmem.models.encoder import Encoder
from torchmem.models.simulator.config import SimulatorConfig
from torchmem.models.simulator.latents import latents_of
from torchmem.models.simulator.vision import SIDE, ImageDecoder, ImageEncoder, ResNet
from torchmem.types import Space


def only_image(spaces: Mapping[str, Space]) -> str:
    """The key of a world that shows one 64 x 64 colour image and nothing else. Raises ValueError."""
    if len(spaces) == 1:
        ((key, space),) = spaces.items()
        if space.image and space.shape == (SIDE, SIDE, 3):
            return key
    shapes = {key: space.shape for key, space in spaces.items()}
    raise ValueError(f"agent.vision=irl sees one 64 x 64 x 3 image, this world shows {shapes}: set agent.vision=shared")


class Eye(nn.Module):
    """Float observations (N, ...) -> tokens (N, size)."""

    def __init__(self, spaces: Mapping[str, Space], c: SimulatorConfig, start: bool) -> None:
        super().__init__()
        self.irl = c.vision == "irl"
        if self.irl:
            self.key = only_image(spaces)
            self.net = ResNet() if start else ImageEncoder()
        else:
            self.net = Encoder(spaces, c)  # type: ignore[arg-type]  # it reads the fields both configs have
        self.size = self.net.size

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        if self.irl:
            return self.net(obs[self.key] / 255)
        return self.net(obs, next(iter(obs.values())).dtype)


class Brush(nn.Module):
    """deter (N, D), stoch (N, S, K) -> prediction of each key: image means in [0, 1], symlog means, logits."""

    def __init__(self, spaces: Mapping[str, Space], c: SimulatorConfig) -> None:
        super().__init__()
        self.spaces, self.irl = dict(spaces), c.vision == "irl"
        stoch = math.prod(latents_of(c).shape)
        if self.irl:
            self.key = only_image(spaces)
            self.net = ImageDecoder(c.deter + stoch)
        else:
            self.net = Decoder(spaces, c.deter, stoch, c)  # type: ignore[arg-type]

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        if self.irl:
            return {self.key: self.net(torch.cat([deter, stoch.flatten(-2)], -1))}
        return self.net(deter, stoch)

    def loss(self, predictions: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of each key, (N,), summed: half the squared error of images and symlog values, cross-entropy of integers.

        obs: in float form.
        """
        out = {}
        for key, space in self.spaces.items():
            guess, truth = predictions[key], obs[key]
            if space.discrete:
                error = -(truth * F.log_softmax(guess, -1)).sum(-1)
            else:
                truth = truth / 255 if space.image else symlog(truth)
                error = 0.5 * (guess - truth).square()
            out[key] = error.flatten(1).sum(1) if error.dim() > 1 else error
        return out
