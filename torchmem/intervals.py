"""Intervals of rates, the same for evaluations and studies."""

from __future__ import annotations

import math


def wilson(hits: float, n: int) -> tuple[float, float, float]:
    """Rate and its 95 % interval (Wilson 1927). NaN for no trials."""
    if not n:
        return math.nan, math.nan, math.nan
    rate, z = hits / n, 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))  # despite rounding
