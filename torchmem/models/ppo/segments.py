"""Columns with resets inside as whole episodes' pieces, packed for the library's recurrent kernels.

A reset in any column would split all columns in time; packed by episode instead, a kernel runs once over all pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """Pieces of (B, T) between resets, longest first; S pieces."""

    order: Tensor  # (B * T,) flat index of every packed row: all first steps of pieces, then all second steps, ...
    sizes: Tensor  # (L,) int64 on the CPU: how many pieces have a step of this number
    column: Tensor  # (S,) the column a piece lies in
    fresh: Tensor  # (S,) bool: it opens an episode; otherwise it goes on from the column's carry
    final: Tensor  # (B,) the piece that each column ends with


def cut(is_first: Tensor) -> Segments:
    """is_first (B, T) bool. On a GPU this waits for the device, for the kernels want `sizes` on the CPU."""
    rows, steps = is_first.shape
    opens = is_first.clone()
    opens[:, 0] = True
    start = opens.flatten().nonzero().squeeze(1)
    length = torch.cat([start[1:], start.new_tensor([rows * steps])]) - start
    length, longest = length.sort(descending=True, stable=True)
    rank = torch.empty_like(longest)
    rank[longest] = torch.arange(len(longest), device=start.device)
    final = rank[opens.sum(1).cumsum(0) - 1]
    start = start[longest]
    number = torch.arange(int(length[0]), device=start.device)
    alive = length.unsqueeze(0) > number.unsqueeze(1)  # (L, S)
    order = (start.unsqueeze(0) + number.unsqueeze(1))[alive]
    return Segments(order, alive.sum(1).cpu(), start // steps, is_first.flatten()[start], final)
