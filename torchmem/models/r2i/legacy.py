"""Resets as the original's parallel pass makes them, to replay what its agents were trained with. Not for training.

Three defects, all absent while it acts and imagines. The flag of a step acts one step early, except those of the last
two steps of a sequence. The operator adds `init` again whenever a composite that holds a reset is combined once more,
so that states depend on the tree of the scan. And the z before a reset still goes in (dynamics.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Element = tuple[Tensor, Tensor, Tensor]  # A, b and the flag, each (B, L, P) or (B, L, 1)


def upstream_scan(b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> Tensor:
    """As `diagonal_scan`, with the original's resets. Differentiable; slow, and complex inside."""
    drive, factor, x0, fresh = (torch.view_as_complex(value.contiguous()) for value in (b, a, start, init))
    fresh = fresh.unsqueeze(1)
    flags = first.to(factor.real.dtype)
    # One flag too few for the elements: the original pads before the last one, not in front.
    flags = torch.cat([flags[:, :-1], torch.zeros_like(flags[:, :1]), flags[:, -1:]], 1).unsqueeze(-1)

    def combine(left: Element, right: Element) -> Element:
        (a_i, b_i, d_i), (a_j, b_j, d_j) = left, right
        weight = a_j * a_i * (1 - d_j) + a_j * d_j
        return weight, a_j * ((1 - d_j) * b_i + d_j * fresh) + b_j, (d_i + d_j).clamp(0, 1)

    drive = torch.cat([x0.unsqueeze(1), drive], 1)
    weights = torch.cat([torch.ones_like(x0).unsqueeze(1), factor.expand_as(drive[:, 1:])], 1)
    return torch.view_as_real(_tree(combine, (weights, drive, flags))[1][:, 1:].contiguous())


def _tree(combine: Callable[[Element, Element], Element], elements: Element) -> Element:
    """Inclusive scan over axis 1 in the order of jax.lax.associative_scan: pairs first, then the elements between."""
    length = elements[0].shape[1]
    if length < 2:
        return elements

    def cut(parts: Element, begin: int, end: int | None, step: int = 1) -> Element:
        one, two, three = (part[:, begin:end:step] for part in parts)
        return one, two, three

    odd = _tree(combine, combine(cut(elements, 0, length - 1, 2), cut(elements, 1, None, 2)))
    rest = cut(elements, 2, None, 2)
    between = combine(cut(odd, 0, rest[0].shape[1]), rest) if rest[0].shape[1] else rest
    out = []
    for whole, first, second in zip(elements, between, odd, strict=True):
        even = torch.cat([whole[:, :1], first], 1)
        merged = torch.empty_like(whole)
        merged[:, 0::2], merged[:, 1::2] = even, second
        out.append(merged)
    return out[0], out[1], out[2]
