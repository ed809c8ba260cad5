"""From the keys of an observation or action to the arrays a network eats (spec section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models.dists import symlog
from torchmem.types import Space


def split_spaces(spaces: Mapping[str, Space]) -> tuple[dict[str, Space], dict[str, Space]]:
    """(image keys, vector keys), each sorted by name. Refuses what no network here reads, by name."""
    images, vectors = {}, {}
    for key, space in sorted(spaces.items()):
        if space.image:
            images[key] = space
        elif space.dtype == "uint8" and len(space.shape) >= 2 and space.classes is None:
            raise ValueError(f"observation {key!r} is uint8 {space.shape}: images are (height, width, channels)")
        elif len(space.shape) > 2:
            raise ValueError(f"observation {key!r} {space.shape} is neither a uint8 image nor rank <= 2: flatten it")
        else:
            vectors[key] = space
    return images, vectors


def colour_image(spaces: Mapping[str, Space]) -> str | None:
    """The first key that is a colour image, or None."""
    return next((key for key, space in spaces.items() if space.image and space.shape[2] == 3), None)


def concat_keys(values: Mapping[str, Tensor], spaces: Mapping[str, Space], squash: bool) -> Tensor:
    """Flatten and concatenate sorted keys to (..., F) float32: integers as one-hot, floats through symlog if `squash`.

    values[key] is (..., *space.shape); integers may come as floats (..., *space.shape, classes), one-hot already, so
    that a simulator can pass gradients. Missing values: a float entry with any -inf (not looked for in a space that is
    bounded below), or a signed integer entry with any -1, turns that key's features into zeros.
    """
    parts = []
    for key in sorted(spaces):
        space, value = spaces[key], values[key]
        if space.discrete and value.is_floating_point():
            parts.append(value.flatten(-1 - len(space.shape)))
            continue
        lead = value.shape[: value.dim() - len(space.shape)]
        value = value.reshape(*lead, -1)
        if space.discrete:
            value = value.long()
            present = (value != -1).all(-1, keepdim=True)
            feature = F.one_hot(value.clamp(min=0), space.classes or 2).flatten(-2).float()
            parts.append(torch.where(present, feature, 0.0))
            continue
        wide = value.dtype == torch.float64 and space.dtype != "float64"  # a simulator that computes in float64
        feature = value if wide else value.float()
        if space.low == -math.inf:
            present = (value != -torch.inf).all(-1, keepdim=True)
            feature = torch.where(present, feature, 0.0)
        parts.append(symlog(feature) if squash else feature)
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
