"""What a mask is worth, beside what else could have been kept: the measurements under a MaskResult."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.surgery.gates import top
from torchmem.surgery.policy_distance import Bed, substituted

Masks = dict[str, Tensor]  # parameter name -> bool, of its shape
DRAWS = 5  # of the random control
Evaluate = Callable[[], float | Mapping[str, float]]  # the score in the world, or "score" and more


def as_weights(bed: Bed, masks: Masks) -> dict[str, Tensor]:
    """Effective weights of a hard mask: bitwise the own ones where kept, 0 elsewhere."""
    return {name: torch.where(mask, bed.own[name], bed.own[name].new_zeros(())) for name, mask in masks.items()}


def measure(
    bed: Bed, masks: Masks, evaluate: Evaluate | None, seed: int, most: int
) -> dict[str, Any]:
    """Fields of a MaskResult: scores of the circuit and of its controls, and the cost of losing single weights."""
    kinds = controls(bed, masks, seed)
    scores = {name: score(bed, mask, evaluate) for name, mask in kinds.items()}
    with torch.no_grad():
        forgetful = bed.policy({}, torch.ones_like(bed.is_first))
        scores["no memory"] = {
            "kl": bed.kl(forgetful).item(),
            "agreement": bed.agreement(forgetful),
            "score": float("nan"),  # `evaluate` keeps its own carry
            "kept": scores["full"]["kept"],
        }
    return {"scores": scores, "minimality": singles(bed, masks, seed, most)}


def controls(bed: Bed, masks: Masks, seed: int) -> dict[str, Masks]:
    """full, circuit, complement, empty, random 0..4 (as dense in each parameter), magnitude, attribution."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(int(mask.sum()) for mask in masks.values())
    kinds: dict[str, Masks] = {
        "full": {name: torch.ones_like(mask) for name, mask in masks.items()},
        "circuit": masks,
        "complement": {name: ~mask for name, mask in masks.items()},
        "empty": {name: torch.zeros_like(mask) for name, mask in masks.items()},
    }
    for i in range(DRAWS):
        kinds[f"random {i}"] = {name: _exchanged(mask, generator) for name, mask in masks.items()}
    names = list(masks)
    kinds["magnitude"] = dict(zip(names, top([bed.own[n].abs() for n in names], [1] * len(names), count), strict=True))
    leaves = {name: bed.own[name].clone().requires_grad_() for name in names}
    grads = torch.autograd.grad(bed.surprise(bed.policy(leaves)), list(leaves.values()))
    saliency = [(grad * bed.own[name]).abs() for name, grad in zip(names, grads, strict=True)]
    kinds["attribution"] = dict(zip(names, top(saliency, [1] * len(names), count), strict=True))
    return kinds


def _exchanged(mask: Tensor, generator: torch.Generator) -> Tensor:
    """As many kept entries, elsewhere."""
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view_as(mask)


def score(bed: Bed, masks: Masks, evaluate: Evaluate | None) -> dict[str, float]:
    """kl (nats), agreement (share), score (of `evaluate`, NaN without) and what else it tells, and kept of one mask."""
    weights = as_weights(bed, masks)
    with torch.no_grad():
        policy = bed.policy(weights)
        world = {"score": float("nan")}
        if evaluate is not None:
            with substituted(bed.agent, weights):
                told = evaluate()
            world = {k: float(v) for k, v in told.items()} if isinstance(told, Mapping) else {"score": float(told)}
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {"kl": bed.kl(policy).item(), "agreement": bed.agreement(policy), **world, "kept": kept}


@torch.no_grad()
def singles(bed: Bed, masks: Masks, seed: int, most: int) -> dict[str, np.ndarray]:
    """Rise of the KL, in nats, and drop of the agreement when one kept weight is dropped, of up to `most`."""
    places = [(name, place) for name, mask in masks.items() for place in mask.flatten().nonzero().flatten().tolist()]
    generator = torch.Generator().manual_seed(seed)
    picked = [places[i] for i in torch.randperm(len(places), generator=generator)[:most].tolist()]
    policy = bed.policy(as_weights(bed, masks))
    kl, agreement = bed.kl(policy).item(), bed.agreement(policy)
    rises, drops = [], []
    for name, place in picked:
        fewer = masks[name].clone()
        fewer.view(-1)[place] = False
        policy = bed.policy(as_weights(bed, {**masks, name: fewer}))
        rises.append(bed.kl(policy).item() - kl)
        drops.append(agreement - bed.agreement(policy))
    return {"kl": np.array(rises), "agreement": np.array(drops)}
