"""The probes: walls of the maze and places of the balls from a latent, as in the paper (4 x 1024, LayerNorm, ELU)."""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.studies.maze.features import Truth

JUDGED = 4096  # steps that the held-out mazes are scored on, and that inputs are scaled by


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """hidden, layers: the MLP. updates of `batch` steps each; every `check` the held-out share of the training mazes
    is scored, and the best weights stay. walls_place, balls_place: does the probe also see position and heading
    (pydreamer: walls do, balls do not)."""

    hidden: int = 1024
    layers: int = 4
    updates: int = 2000
    batch: int = 512
    lr: float = 3e-4
    decay: float = 1e-2
    check: int = 100
    held_out: float = 0.15
    walls_place: bool = True
    balls_place: bool = False

    def sees_place(self, kind: str) -> bool:
        return self.walls_place if kind == "walls" else self.balls_place


class Head(nn.Module):
    """(..., D) -> (..., out). Inputs are brought to mean 0 and deviation 1 of what it was made for."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, out: int, plan: HeadPlan) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-3))
        width, layers = len(mean), []
        for _ in range(plan.layers):
            layers += [nn.Linear(width, plan.hidden), nn.LayerNorm(plan.hidden), nn.ELU()]
            width = plan.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.mean) / self.std)


@dataclasses.dataclass(frozen=True)
class Source:
    """What a probe reads: a latent (M, L, D) or None, and the place beside it or not."""

    latent: Tensor | None
    truth: Truth
    place: bool

    def rows(self, i: Tensor, t: Tensor) -> Tensor:
        """(R, D) of R pairs of trajectory and step."""
        parts = [] if self.latent is None else [self.latent[i, t].float()]
        if self.place:
            parts.append(self.truth.place[i, t])
        return torch.cat(parts, -1)


def head_loss(kind: str, out: Tensor, walls: Tensor, balls: Tensor) -> Tensor:
    """Mean over the leading axes: binary cross-entropy per cell, or squared distance per ball in cells."""
    if kind == "walls":
        return F.binary_cross_entropy_with_logits(out, walls)
    return (out.unflatten(-1, balls.shape[-2:]) - balls).square().sum(-1).mean()


def fit_head(kind: str, source: Source, plan: HeadPlan, seed: int = 0, device: torch.device | str = "cpu") -> Head:
    """A probe of `kind` ("walls" or "balls"), fitted to all steps of the training mazes; no gradient leaves it.

    Of the mazes a share is held out and decides when to stop. Draws no global random numbers.
    """
    truth = source.truth
    mazes, steps = truth.place.shape[:2]
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(mazes, generator=draw)
    held = order[: max(1, round(plan.held_out * mazes))] if mazes > 1 else order
    fitted = order[len(held) :] if mazes > 1 else order
    sample = _pairs(fitted, steps, JUDGED, draw)
    seen = source.rows(*sample)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = truth.walls.shape[1] if kind == "walls" else truth.balls[0, 0].numel()
        head = Head(seen.mean(0), seen.std(0), out, plan).to(device)

    def loss_of(i: Tensor, t: Tensor) -> Tensor:
        told = head(source.rows(i, t).to(device))
        return head_loss(kind, told, truth.walls[i].to(device), truth.balls[i, t].to(device))

    optimizer = torch.optim.AdamW(head.parameters(), lr=plan.lr, weight_decay=plan.decay)
    judged = _pairs(held, steps, JUDGED, draw)
    best, kept = float("inf"), copy.deepcopy(head.state_dict())
    for update in range(1, plan.updates + 1):
        loss = loss_of(*_pairs(fitted, steps, plan.batch, draw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % plan.check == 0 or update == plan.updates:
            with torch.no_grad():
                score = float(loss_of(*judged))
            if score < best:
                best, kept = score, copy.deepcopy(head.state_dict())
    head.load_state_dict(kept)
    return head.requires_grad_(False)


def _pairs(mazes: Tensor, steps: int, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    return mazes[torch.randint(len(mazes), (n,), generator=draw)], torch.randint(steps, (n,), generator=draw)
