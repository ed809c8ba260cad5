"""The processes of one training run, through Lightning Fabric: who we are, and how we agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


class Processes:
    """One process alone, or one of several after Fabric's launch. All methods are no-ops when alone."""

    def __init__(self, fabric=None) -> None:
        self.fabric = fabric
        self.rank = fabric.global_rank if fabric else 0
        self.size = fabric.world_size if fabric else 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, through one flat all-reduce."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, concatenated along the first axis; without gradient."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """True in every process if it is in one: how all of them stop, save or fail together."""
        if self.size == 1:
            return flag
        votes: list[bool] = [False] * self.size
        dist.all_gather_object(votes, flag)
        return any(votes)

    def share(self, values: Sequence[Tensor]) -> None:
        """Overwrite every process's tensors by those of the first."""
        if self.size > 1:
            for value in values:
                dist.broadcast(value, 0)
