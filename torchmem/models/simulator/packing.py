"""An agent's carry as one row of numbers, for replay, files and networks that guess it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def leaves(carry: Any) -> list[Tensor]:
    """The tensors of a nested tuple, in order."""
    if isinstance(carry, Tensor):
        return [carry]
    return [leaf for part in carry for leaf in leaves(part)]


def map_carry(change: Callable[[Tensor], Tensor], carry: Any) -> Any:
    """The same nested tuple with every tensor changed."""
    if isinstance(carry, Tensor):
        return change(carry)
    parts = [map_carry(change, part) for part in carry]
    return type(carry)(*parts) if hasattr(carry, "_fields") else type(carry)(parts)


def cut(carry: Any) -> Any:
    """Without gradient."""
    return map_carry(torch.Tensor.detach, carry)


def with_gradient(carry: Any) -> Any:
    """Cut, and open to gradients: where a graph shall begin that asks for gradients of a start."""
    return map_carry(lambda part: part.detach().clone().requires_grad_(part.is_floating_point()), carry)


class Packing:
    """How one agent's carry lies in a row: `size` numbers, in float32.

    has_action: the carry is a named tuple that ends with `action`, the vector of the agent's last action. guessed: how
    many numbers come before that; a simulator guesses these (the action it guesses apart).
    """

    def __init__(self, agent: Any) -> None:
        with torch.no_grad():
            self.like = cut(agent.initial(1))
        self.has_action = getattr(self.like, "_fields", ("",))[-1] == "action"
        self.shapes = [part.shape[1:] for part in leaves(self.like)]
        self.types = [part.dtype for part in leaves(self.like)]
        sizes = [shape.numel() for shape in self.shapes]
        self.sizes, self.size, self.guessed = sizes, sum(sizes), sum(sizes[:-1] if self.has_action else sizes)

    def pack(self, carry: Any) -> Tensor:
        """Carry (B, ...) -> (B, size)."""
        return torch.cat([part.flatten(1).float() for part in leaves(carry)], -1)

    def unpack(self, row: Tensor) -> Any:
        """(B, size) -> carry (B, ...). Wider floats stay wide, so that a float64 agent keeps its carry."""
        parts = iter(
            piece.unflatten(-1, shape) if len(shape) != 1 else piece
            for piece, shape in zip(row.split(self.sizes, -1), self.shapes, strict=True)
        )
        types = iter(self.types)

        def fill(like: Tensor) -> Tensor:
            part, dtype = next(parts), next(types)
            return part if part.dtype == torch.float64 else part.to(dtype)

        return map_carry(fill, self.like)
