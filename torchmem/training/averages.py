"""Means of metrics between two rows of the log, without a device synchronisation per update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Averages:
    """Running sums kept where the metrics live; `pop` reads all of them in one transfer."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor | float], prefix: str = "") -> None:
        """metrics: scalars; tensors stay on their device. A NaN stays visible in the mean."""
        for name, value in metrics.items():
            name = prefix + name
            if isinstance(value, Tensor):
                # float64 keeps the digits of a long sum; a copy, because CUDA graphs reuse their outputs.
                value = value.detach().to(torch.float64, copy=True)
            else:
                value = torch.tensor(float(value), dtype=torch.float64)
            if name in self._sums:
                self._sums[name] += value
            else:
                self._sums[name] = value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """Name -> mean since the last pop; empties itself."""
        means: dict[str, float] = {}
        devices = {s.device for s in self._sums.values()}
        for device in devices:
            names = [n for n, s in self._sums.items() if s.device == device]
            for name, total in zip(names, torch.stack([self._sums[n] for n in names]).tolist()):
                means[name] = total / self._counts[name]
        self._sums, self._counts = {}, {}
        return dict(sorted(means.items()))
