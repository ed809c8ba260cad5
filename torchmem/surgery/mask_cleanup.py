"""Dead ends of a mask: kept weights that no policy shows, because their unit hears nothing or nobody hears it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchmem.surgery.mask_controls import Masks, as_weights
from torchmem.surgery.policy_distance import Bed, Policy

TOLERANCE = 1e-6  # of the policy's parameters: what dropping a dead end may change, rounding of another sum order
PASSES = 64  # at most, per call


def cleaned(bed: Bed, masks: Masks) -> tuple[Masks, int]:
    """The mask without dead ends, and how many weights that dropped.

    A weight that lies on no path from an input, through time, to an action has a gradient of exactly zero. The reverse
    does not hold (a saturated unit has none either), so each drop is tried on the bed and kept only where the policy
    stays the same within 1e-6. A unit whose inputs are all cut, but which has a bias, is a constant and stays.
    """
    masks = {name: mask.clone() for name, mask in masks.items()}
    before = sum(int(mask.sum()) for mask in masks.values())
    with torch.no_grad():
        reference = bed.policy(as_weights(bed, masks))
    budget = [PASSES]
    while budget[0] > 0:
        dead = _without_gradient(bed, masks)
        budget[0] -= 2
        places = [(name, place) for name, mask in dead.items() for place in mask.flatten().nonzero().flatten().tolist()]
        if not places or not _drop(bed, masks, reference, places, budget):
            break
    return masks, before - sum(int(mask.sum()) for mask in masks.values())


def _without_gradient(bed: Bed, masks: Masks) -> Masks:
    """Kept weights that the policy's parameters do not depend on, to first order, at any step of any row."""
    leaves = {name: value.requires_grad_() for name, value in as_weights(bed, masks).items()}
    policy = bed.policy(leaves)
    generator = torch.Generator().manual_seed(0)
    # one random direction over all outputs: a weight that any output feels has a gradient along it
    total = torch.stack(
        [
            (p * torch.randn(p.shape, generator=generator).to(p)).sum()
            for params in policy.values()
            for p in params
        ]
    ).sum()
    grads = torch.autograd.grad(total, list(leaves.values()))
    return {name: masks[name] & (grad == 0) for name, grad in zip(leaves, grads, strict=True)}


def _drop(bed: Bed, masks: Masks, reference: Policy, places: list[tuple[str, int]], budget: list[int]) -> bool:
    """Drop all of them if the policy stays; else try each half. True where anything was dropped."""
    if budget[0] <= 0:
        return False
    budget[0] -= 1
    _set(masks, places, False)
    with torch.no_grad():
        policy = bed.policy(as_weights(bed, masks))
    if all(torch.allclose(a, b, rtol=0, atol=TOLERANCE) for k in policy for a, b in zip(policy[k], reference[k])):
        return True
    _set(masks, places, True)
    if len(places) == 1:
        return False
    half = len(places) // 2
    first = _drop(bed, masks, reference, places[:half], budget)
    return _drop(bed, masks, reference, places[half:], budget) or first


def _set(masks: Masks, places: list[tuple[str, int]], value: bool) -> None:
    for name in {name for name, _ in places}:
        index = torch.tensor([place for other, place in places if other == name], device=masks[name].device)
        masks[name].view(-1)[index] = value


def constants(bed: Bed, masks: Masks) -> dict[str, int]:
    """Kept weights per parameter that read an input which never varies on the bed: constants in disguise.

    Only of modules with a 2-D `weight` whose first argument is (..., in).
    """
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, mask in masks.items():
        path, _, key = name.rpartition(".")
        if key == "weight" and mask.dim() == 2 and path:
            handles.append(bed.agent.get_submodule(path).register_forward_pre_hook(_listen(seen, name, mask.shape[1])))
    try:
        with torch.no_grad():
            bed.policy(as_weights(bed, masks))
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, inputs in seen.items():
        heard = torch.cat(inputs)
        still = heard.amax(0) == heard.amin(0)
        found[name] = int(masks[name][:, still].sum())
    return found


def _listen(seen: dict[str, list[Tensor]], name: str, width: int):
    def hook(module: torch.nn.Module, args: tuple) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[-1] == width:
            seen.setdefault(name, []).append(args[0].detach().reshape(-1, width))

    return hook
