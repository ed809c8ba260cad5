"""How good a probe is: the benchmark's numbers over the second half of each trajectory, and by when a ball was seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchmem.studies.maze.features import Truth
from torchmem.studies.maze.heads import Head, Source

EDGES = (0, 5, 10, 50, 200, 1000)  # steps since a ball was in view: bins of pydreamer
BINS = ("in view", "1-5", "6-10", "11-50", "51-200", "201-1000", "longer", "never")


def second_half(steps: int) -> slice:
    """The steps that count: t >= 500 of 1,001."""
    return slice(steps // 2, steps)


@torch.no_grad()
def predict(head: Head, source: Source) -> Tensor:
    """(M, H, out) over the second half, on the CPU."""
    mazes, steps = source.truth.place.shape[:2]
    t = torch.arange(steps)[second_half(steps)]
    device = head.mean.device
    return torch.stack([head(source.rows(torch.full_like(t, i), t).to(device)).cpu() for i in range(mazes)])


def walls_right(logits: Tensor, truth: Truth) -> np.ndarray:
    """(M,) share of cells told right, of logits (M, H, S * S) or (S * S,) for all alike."""
    right = (logits > 0) == (truth.walls[:, None] > 0.5)
    return right.float().mean((1, 2)).double().numpy()


def ball_squares(places: Tensor, truth: Truth) -> Tensor:
    """(M, H, N) squared distance in cells, of places (M, H, N * 2) or (N * 2,) for all alike."""
    wanted = truth.balls[:, second_half(truth.balls.shape[1])]
    return (places.unflatten(-1, wanted.shape[-2:]) - wanted).square().sum(-1)


def by_age(squares: Tensor, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """RMS distance in cells per bin of `BINS`, NaN where it is empty, and how many (step, ball) it has."""
    ages = truth.age[:, second_half(truth.age.shape[1])]
    edges = torch.tensor([0.5 + e for e in EDGES])
    which = torch.where(ages < 0, len(EDGES) + 1, torch.bucketize(ages.float(), edges))
    count = torch.bincount(which.flatten(), minlength=len(BINS))
    total = torch.bincount(which.flatten(), squares.flatten().double(), minlength=len(BINS))
    return (total / count).sqrt().numpy(), count.numpy()


def constant(train: Truth) -> tuple[Tensor, Tensor]:
    """What is said without looking: the more frequent kind of every cell as a logit (S * S,), the mean place of every
    ball (N * 2,), both of the training trajectories."""
    return train.walls.mean(0) - 0.5, train.balls.flatten(2).mean((0, 1))


def interval(values: np.ndarray, root: bool, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap over mazes of the mean, or of its square root. values (M,)."""
    picked = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    means = values[picked].mean(1)
    low, high = np.quantile(np.sqrt(means) if root else means, [0.025, 0.975])
    return float(low), float(high)
