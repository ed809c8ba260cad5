"""Change an agent's behaviour by some of its weights only: all others stay as they are, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torchmem.surgery.policy_distance import Bed
from torchmem.surgery.weight_delta import WeightDelta

Loss = Callable[[Mapping[str, Tensor]], Tensor]  # of effective weights by name


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training left: the change, and what it took."""

    delta: WeightDelta
    steps: int
    loss: float  # the last
    stopped: bool  # by `stop`, before the steps ran out


@torch.enable_grad()
def train_masked(
    own: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    loss: Loss,
    *,
    rate: float = 1e-2,
    steps: int = 2000,
    shrink: float = 0.0,
    clip: float = 1.0,
    stop: Callable[[Mapping[str, Tensor]], bool] | None = None,
    check: int = 25,
) -> Trained:
    """Adam on the weights that are True in `masks`, as a change that starts at zero.

    own: the agent's parameters by name. masks: parameter name -> bool of its shape; parameters without one stay whole.
    shrink: price of the squared norm of the change. stop: f(effective weights) asked every `check` steps.
    Raises ValueError where a mask fits no parameter, or none is True.
    """
    for name, mask in masks.items():
        if name not in own or own[name].shape != mask.shape:
            raise ValueError(f"there is no parameter {name} of shape {tuple(mask.shape)} to train")
    free = {name: mask for name, mask in masks.items() if mask.any()}
    if not free:
        raise ValueError("no weight may move: the mask is empty")
    places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in free.items()}
    moves = {name: torch.zeros(len(p), dtype=own[name].dtype, device=own[name].device) for name, p in places.items()}
    leaves = [move.requires_grad_() for move in moves.values()]
    optimizer = torch.optim.Adam(leaves, lr=rate)

    def effective() -> dict[str, Tensor]:
        out = {}
        for name, place in places.items():
            flat = own[name].detach().flatten()
            out[name] = flat.scatter(0, place, flat[place] + moves[name]).view_as(own[name])
        return out

    value, done, stopped = torch.tensor(float("nan")), 0, False
    for done in range(1, steps + 1):
        value = loss(effective())
        if shrink:
            value = value + shrink * torch.stack([(leaf**2).sum() for leaf in leaves]).sum()
        for leaf, grad in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            leaf.grad = grad
        torch.nn.utils.clip_grad_norm_(leaves, clip)
        optimizer.step()
        if stop is not None and done % check == 0:
            with torch.no_grad():
                if stop({name: weight.detach() for name, weight in effective().items()}):
                    stopped = True
                    break
    after = {name: weight.detach().clone() for name, weight in effective().items()}
    before = {name: own[name].detach() for name in after}
    return Trained(WeightDelta.between(before, after), done, float(value.detach()), stopped)


def imitate(wanted: Bed, kept: Bed | None = None, beta: float = 1.0, rows: int = 64, seed: int = 0) -> Loss:
    """Cross-entropy of the actions in `wanted`, plus beta times the divergence from the full policy on `kept`.

    rows: of each bed, drawn anew at every call.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        bed = wanted.some(rows, generator)
        total = bed.surprise(bed.policy(weights))
        if kept is not None and beta:
            other = kept.some(rows, generator)
            total = total + beta * other.kl(other.policy(weights))
        return total

    return loss
