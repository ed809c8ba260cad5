"""Edits of movement, h[t] - h[t-1]: route what happens along some directions into others, or stop it.

The published validation of the behaviour simulator meant this and did something else. Here, against its faults: the
amount goes to the *target* direction; the result is a state, not a difference; amounts along directions that are not
orthogonal are found jointly, by least squares, so that what they share is not counted twice; gradients reach h[t-1].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from torchmem.surgery.edit import owned
from torchmem.surgery.edits import orthonormal
from torchmem.surgery.selection import At, SiteEdit


class Movement(SiteEdit):
    """Shared by Swap and Collapse, which say what `_pairs` is."""

    moves = True

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """(K, N) sources and targets."""
        raise TypeError(f"{type(self).__name__} moves nothing: use Swap or Collapse")

    def _directions(self, field: str) -> None:
        """Take over one argument as (K, N) or (K, *shape). Raises ValueError."""
        what = f"{type(self).__name__} at {self.site}: {field}"
        value = owned(getattr(self, field), what)
        self._set(field, value)
        if value.dim() < 2:
            shape = tuple(value.shape)
            raise ValueError(f"{what} must be (K, N), but have shape {shape}; one direction is direction[None]")

    @functools.cached_property
    def _dual(self) -> Tensor:
        """(units, K), float64: d @ dual are the amounts of d along the sources, taken together."""
        rows = self._of_units(self._pairs()[0].detach())
        orthonormal(rows, self.describe() + ": directions")  # raises where they are dependent
        return torch.linalg.pinv(rows.double())

    def _prepare(self) -> None:
        """Raise here, not in the middle of a pass, where amounts cannot be found."""
        if not (self.units and max(self.units) >= self._pairs()[0].shape[1]):  # else `check` says so
            _ = self._dual

    @functools.cached_property
    def _shift(self) -> Tensor:
        sources, targets = self._pairs()
        return self._of_units(targets - sources)

    def apply(self, x: Tensor, at: At) -> Tensor:
        """As `SiteEdit.apply`. In a view of several steps, each step moves away from the edited step before it."""
        where = self._select(x, at)
        if where is None:
            return x
        steps = list(x.reshape(where.size).unbind(1))
        before = None if at.previous is None else at.previous.reshape(len(x), -1).to(x)
        rows, units = (
            None if part is None else torch.tensor(part, device=x.device) for part in (where.rows, self.units)
        )
        dual = self._ready("dual", x, lambda: self._dual)
        shift = self._ready("shift", x, lambda: self._shift)
        selected = range(len(steps)) if where.places is None else set(where.places)
        changed = False
        for place, now in enumerate(steps):
            if before is not None and place in selected:
                moved = now - before
                moved = moved if units is None else moved[:, units]
                # h + a (targets - sources), not h_previous + d: an amount of zero then leaves h bitwise as it is
                push = (moved @ dual) @ shift
                keep = _kept(at.is_first, place, rows, len(x), x.device)
                spread = push if units is None else torch.zeros_like(now).index_copy(1, units, push)
                touched = keep.unsqueeze(1) if units is None else keep.unsqueeze(1) & _among(units, now)
                steps[place] = torch.where(touched, now + spread, now)
                changed = True
            before = steps[place]
        return torch.stack(steps, 1).reshape(x.shape) if changed else x

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        found = self._pairs()[0].shape
        if found[1] != math.prod(shape):
            raise self._wrong_shape("each direction", found[1:], f"{shape}, {math.prod(shape)} numbers")

    def _detail(self) -> str:
        return f"{len(self._pairs()[0])} directions"


def _kept(is_first: Tensor | None, place: int, rows: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """(B,) bool: rows to edit at this place, which are the selected ones that do not reset here."""
    if rows is None:
        chosen = torch.ones(batch, dtype=torch.bool, device=device)
    else:
        chosen = torch.zeros(batch, dtype=torch.bool, device=device).index_fill(0, rows, True)
    return chosen if is_first is None else chosen & ~is_first[:, place].to(device)


def _among(units: Tensor, like: Tensor) -> Tensor:
    """(1, N) bool, true at the units."""
    return torch.zeros(1, like.shape[1], dtype=torch.bool, device=like.device).index_fill(1, units, True)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Swap(Movement):
    """Movement along source k goes along target k instead.

    sources, targets: (K, N) or (K, *shape). With d = h[t] - h[t-1] and a the joint least-squares amounts of d along the
    sources, d becomes d - a sources + a targets, and h[t] = h[t-1] + d. h[t-1] is the edited state. A target row of
    zeros deletes; listing a direction as a source of itself protects it from its neighbours' amounts.
    Steps with `is_first`, and steps whose previous value is unknown, stay as they are.
    """

    sources: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        self._directions("sources")
        self._directions("targets")
        if self.sources.shape != self.targets.shape:
            raise ValueError(
                f"Swap at {self.site}: sources {tuple(self.sources.shape)}, but targets {tuple(self.targets.shape)}; "
                f"give one target for each source (zeros delete)"
            )
        self._prepare()

    @classmethod
    def exchange(cls, site: str, first: Tensor, second: Tensor, **where: Any) -> Swap:
        """Movement along `first` (K, N) goes along `second`, and the other way round; twice is once undone."""
        first, second = (owned(v, f"Swap at {site}") for v in (first, second))
        return cls(site, torch.cat([first, second]), torch.cat([second, first]), **where)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        return self.sources.flatten(1), self.targets.flatten(1)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Collapse(Movement):
    """Nothing moves along these directions: h[t] keeps the components it had at h[t-1].

    directions: (K, N) or (K, *shape), linearly independent; equal to a Swap whose targets are zeros.
    """

    directions: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        self._directions("directions")
        self._prepare()

    def _pairs(self) -> tuple[Tensor, Tensor]:
        sources = self.directions.flatten(1)
        return sources, torch.zeros_like(sources)
