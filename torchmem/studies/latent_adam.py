"""Adam over points of a space of starts: on the unit sphere along great circles (Becigneul and Ganea 2019), else plain.

On the sphere the first moment is carried along with the point, and the second is one number per point, since a sphere
has no axes: so a rate is an angle, in radians per step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONGEST = math.pi / 4  # of one step along a great circle


class LatentAdam:
    """Moves each row of (R, L) by itself. A gradient of zero leaves a point where it is."""

    def __init__(self, sphere: bool, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8) -> None:
        self.sphere, self.betas, self.eps = sphere, betas, eps
        self.steps = 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def step(self, x: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """Where rows x (R, L) go to rise along `gradient`; on the sphere, of length 1 to rounding."""
        if self.sphere:
            gradient = gradient - (gradient * x).sum(-1, keepdim=True) * x
        square = gradient.square().sum(-1, keepdim=True) if self.sphere else gradient.square()
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(x), torch.zeros_like(square)
        self.steps += 1
        (slow, slower), n = self.betas, self.steps
        self.first = slow * self.first + (1 - slow) * gradient
        self.second = slower * self.second + (1 - slower) * square
        move = rate * (self.first / (1 - slow**n)) / ((self.second / (1 - slower**n)).sqrt() + self.eps)
        if not self.sphere:
            return x + move
        angle = move.norm(dim=-1, keepdim=True)
        move = move * (LONGEST / angle.clamp(min=LONGEST))
        angle = angle.clamp(max=LONGEST)
        there = angle.cos() * x + torch.sinc(angle / math.pi) * move
        there = there / there.norm(dim=-1, keepdim=True)
        # parallel transport along the great circle from x to there
        self.first = self.first - (there * self.first).sum(-1, keepdim=True) / (
            1 + (x * there).sum(-1, keepdim=True)
        ) * (x + there)
        return there


def is_sphere(world: object, latent: Tensor) -> bool:
    """Whether the space of starts of a simulator is the unit sphere."""
    project = getattr(world, "project")  # noqa: B009 - a LatentSimulator's
    return bool(torch.allclose(project(2 * latent), project(latent), atol=1e-5))
