"""Random numbers by counting: draw k of stream i is a hash of (seed, i, k), the same on every device.

So an episode's start depends on nothing but its seed and number, not on what other copies did,
and nothing needs saving. The hash is SplitMix64 (Steele, Lea, Flood 2014) in wrapping int64.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
MIX_1, MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def streams(name: str, n: int, device: torch.device | str) -> Tensor:
    """The keys of n independent streams, int64 (n). name: whatever tells this set from others."""
    root = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
    return mix(mix(torch.arange(n, device=device)) ^ root)


def uniform(keys: Tensor, number: Tensor) -> Tensor:
    """Draw `number` (int64) of each stream: float64 in [0, 1), same shape as keys."""
    return _shift(mix(keys + number * GOLDEN), 11).double() * 2.0**-53


def mix(x: Tensor) -> Tensor:
    """SplitMix64 of int64 values."""
    x = x + GOLDEN
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class Chooser:
    """Draws from a fixed discrete distribution with two lookups (Walker's alias method)."""

    def __init__(self, values: np.ndarray, chances: np.ndarray, device: torch.device | str) -> None:
        count = len(values)
        share = chances / chances.sum() * count
        keep, alias = np.ones(count), np.arange(count)
        small, large = [list(np.flatnonzero(ok)) for ok in (share < 1, share >= 1)]
        while small and large:
            low, high = small.pop(), large[-1]
            keep[low], alias[low] = share[low], high
            share[high] -= 1 - share[low]
            if share[high] < 1:
                small.append(large.pop())
        # what is left differs from 1 by rounding; but a value of chance 0 must never be drawn
        keep[chances == 0] = 0
        alias[(chances == 0) & (alias == np.arange(count))] = int(np.argmax(chances))
        self._count = count
        self._keep = torch.as_tensor(keep, dtype=torch.float64, device=device)
        self._values = torch.as_tensor(np.stack([values, values[alias]], -1).ravel(), device=device)

    def choose(self, u: Tensor) -> Tensor:
        """u: float64 in [0, 1) -> values of the same shape."""
        scaled = u * self._count
        slot = scaled.long()
        spare = (scaled - slot) >= self._keep.index_select(0, slot)
        return self._values.index_select(0, slot * 2 + spare)
