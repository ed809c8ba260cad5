"""The processes of one training run, through Lightning Fabric: who we are, and how we agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from torchmem.errors import TorchmemError

PATIENCE = timedelta(days=2)  # the others wait for an evaluation on the main process


class LostProcess(TorchmemError):
    """Another process of this run is gone."""


class Processes:
    """One process alone, or one of several after Fabric's launch. All methods are no-ops when alone.

    Votes go over gloo on the CPU: over NCCL each would wait for the device. Every method that talks to the others
    raises LostProcess where one of them is gone.
    """

    def __init__(self, fabric=None) -> None:
        self.fabric = fabric
        self.rank = fabric.global_rank if fabric else 0
        self.size = fabric.world_size if fabric else 1
        self._votes = dist.new_group(backend="gloo", timeout=PATIENCE) if self.size > 1 else None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, through one flat all-reduce."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        with connected():
            dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, concatenated along the first axis; without gradient."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        with connected():
            dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        """Go on when all processes have come here."""
        self.largest(0)

    def any(self, flag: bool) -> bool:
        """True in every process if it is in one: how all of them stop, save or fail together."""
        return bool(self.largest(int(flag)))

    def largest(self, value: int) -> int:
        """The largest of the processes' values, in all of them."""
        if self.size == 1:
            return value
        vote = torch.tensor(value)
        with connected():
            dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._votes)
        return int(vote)

    def share(self, values: Sequence[Tensor]) -> None:
        """Overwrite every process's tensors by those of the first."""
        if self.size > 1:
            with connected():
                for value in values:
                    dist.broadcast(value, 0)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Say plainly what the many errors of a broken connection mean."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:  # gloo raises the first, DistBackendError is one too
        first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise LostProcess(f"another process of this run ended; its own message says why ({first[:200]})") from error
