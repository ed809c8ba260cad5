"""Observations as floats that pass gradients: what simulators draw, agents accept, and real ones are turned into."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models.dists import symexp
from torchmem.types import Space


def to_float(obs: Mapping[str, Tensor], spaces: Mapping[str, Space], dtype: torch.dtype) -> dict[str, Tensor]:
    """Real observations (..., *shape) in float form: images 0..255, floats as they are, integers one-hot.

    Integers become (..., *shape, classes); a missing one (-1 anywhere in the key) becomes zeros.
    """
    out = {}
    for key, space in spaces.items():
        value = obs[key]
        if not space.discrete or value.is_floating_point():
            out[key] = value.to(dtype)
            continue
        lead = value.shape[: value.dim() - len(space.shape)]
        flat = value.reshape(*lead, -1).long()
        hot = F.one_hot(flat.clamp(min=0), space.classes or 2).to(dtype)
        present = (flat != -1).all(-1)[..., None, None]
        out[key] = (hot * present).reshape(*value.shape, -1)
    return out


def straight_through_one_hot(logits: Tensor) -> Tensor:
    """The mode of logits (..., classes) as one-hot, with the gradient of the probabilities."""
    probs = torch.softmax(logits, -1)
    hot = F.one_hot(logits.detach().argmax(-1), logits.shape[-1]).to(logits.dtype)
    return hot + (probs - probs.detach()) if logits.requires_grad else hot


def shown(predictions: Mapping[str, Tensor], spaces: Mapping[str, Space]) -> dict[str, Tensor]:
    """What a decoder predicts (image means in [0, 1], symlog means, logits of integers) in float form."""
    out = {}
    for key, space in spaces.items():
        value = predictions[key]
        if space.image:
            out[key] = value * 255
        elif space.discrete:
            out[key] = straight_through_one_hot(value)
        else:
            out[key] = symexp(value)
    return out


def to_world(obs: Mapping[str, Tensor], spaces: Mapping[str, Space]) -> dict[str, Tensor]:
    """Float form back to the types of the world: images rounded to uint8, integers as class numbers."""
    out = {}
    for key, space in spaces.items():
        value = obs[key].detach()
        if space.image:
            out[key] = value.clamp(0, 255).round().to(torch.uint8)
        elif space.discrete:
            out[key] = value.argmax(-1).to(getattr(torch, space.dtype))
        else:
            out[key] = value.to(getattr(torch, space.dtype))
    return out
