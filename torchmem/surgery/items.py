"""What a trace registers: reads and writes of a site, addressed over a virtual array (B, T, *site.shape).

All are registered before the pass runs; writes act at their step, reads collect what comes after all writes (or before
them, for `.before`), and are filled when the pass is over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.types import Site


class TraceError(TorchmemError, ValueError):
    """A trace was written in a way that cannot run; the message says which line and what to write instead."""


class NotYet(TraceError):
    """A saved read was used before its block ended."""


class Pending(Tensor):
    """A saved read inside its block. When the block ends it becomes an ordinary tensor, in place."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotYet(
            "a saved read is filled when the `with` block ends: use it after the block. Inside the block, change a "
            "site by writing a function (site[:, t] = lambda x: ...), or read raw nnsight values (model.<path>.output)"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return "<a read that is filled when its trace ends>"


def pending() -> Tensor:
    return torch.Tensor._make_subclass(Pending, torch.empty(0))


def fill(slot: Tensor, value: Tensor) -> None:
    """Turn a pending read into a plain tensor that holds `value`, with its gradient history."""
    slot.__class__ = Tensor  # as UninitializedParameter.materialize does
    slot.data = torch.empty_like(value)
    slot.copy_(value)


@dataclasses.dataclass
class Scope:
    """The rows of the batch that a block may touch, and its own number of steps: one invoke, or everything."""

    rows: slice = dataclasses.field(default_factory=lambda: slice(None))
    count: int = 0  # B of this scope
    steps: int = 0  # T of this scope


class Index:
    """Positions in (B, T, *shape), one set per axis, as in site[rows, steps, units]; combined as an outer product.

    Each of them: an int (drops the axis), a slice, a list, a tensor of positions or of booleans.
    Raises TraceError with the axis and its size.
    """

    def __init__(self, site: Site, index: Any, scope: Scope) -> None:
        sizes = (scope.count, scope.steps, *site.shape)
        parts = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in [p for p in parts if not isinstance(p, Tensor)]:
            at = next(i for i, p in enumerate(parts) if p is Ellipsis)
            parts[at : at + 1] = [slice(None)] * (len(sizes) - len(parts) + 1)
        if len(parts) > len(sizes):
            form = ", ".join(["B", "T", *map(str, site.shape)])
            raise TraceError(f"site {site.name} is ({form}), but {len(parts)} indices were given")
        parts += [slice(None)] * (len(sizes) - len(parts))
        self.whole = all(isinstance(p, slice) and p == slice(None) for p in parts)
        self.dropped = [isinstance(p, int) and not isinstance(p, bool) for p in parts]
        names = ("row", "step", *("unit" for _ in site.shape))
        self.positions = [
            _positions(part, size, f"{name} of site {site.name}")
            for part, size, name in zip(parts, sizes, names, strict=True)
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the index selects: dropped axes are gone."""
        return tuple(len(p) for p, gone in zip(self.positions, self.dropped, strict=True) if not gone)

    def step_slot(self, step: int) -> int | None:
        """Where a step stands among the selected ones; None where it is not selected."""
        steps = self.positions[1]
        return steps.index(step) if step in steps else None

    def grid(self, device: torch.device, steps: Sequence[int]) -> tuple[Tensor, ...]:
        """Open mesh over (rows, steps, *units), to index a view (B, L, *shape)."""
        axes = [self.positions[0], list(steps), *self.positions[2:]]
        shapes = [[-1 if i == j else 1 for j in range(len(axes))] for i in range(len(axes))]
        return tuple(torch.tensor(axis, device=device).view(shape) for axis, shape in zip(axes, shapes, strict=True))

    def spread(self, value: Tensor, site: Site) -> Tensor:
        """A value that fits the selection, as (rows, steps, *units) with the dropped axes back. Raises TraceError."""
        try:
            value = value.expand(self.shape) if value.dim() <= len(self.shape) else value.reshape(self.shape)
        except RuntimeError:
            raise TraceError(
                f"a value of shape {list(value.shape)} does not fit site {site.name}: "
                f"the index selects {list(self.shape)}"
            ) from None
        for axis, gone in enumerate(self.dropped):
            if gone:
                value = value.unsqueeze(axis)
        return value

    def drop(self, value: Tensor) -> Tensor:
        """Remove the axes that an int selected."""
        for axis in reversed(range(len(self.dropped))):
            if self.dropped[axis]:
                value = value.squeeze(axis)
        return value


def _positions(part: Any, size: int, what: str) -> list[int]:
    if isinstance(part, slice):
        return list(range(size))[part]
    if isinstance(part, int) and not isinstance(part, bool):
        found = [part]
    else:
        tensor = torch.as_tensor(part)
        if tensor.dtype == torch.bool:
            if tuple(tensor.shape) != (size,):
                raise TraceError(f"a boolean index for the {what} has shape {list(tensor.shape)}, needed [{size}]")
            tensor = tensor.nonzero().squeeze(-1)
        if tensor.dim() > 1 or tensor.is_floating_point():
            raise TraceError(f"the {what} is chosen by an int, a slice or a list; got {part!r}")
        found = [int(i) for i in tensor.reshape(-1)]
    wrong = [i for i in found if not -size <= i < size]
    if wrong:
        raise TraceError(f"{what.split(' of ')[0]} {wrong[0]} is out of range: the {what} has {size}")
    return [i % size for i in found]


@dataclasses.dataclass
class Read:
    """Collects one site. `early`: before writes act."""

    site: Site
    scope: Scope
    index: Any
    early: bool
    slot: Tensor
    parts: list[Tensor] = dataclasses.field(default_factory=list)

    def take(self, view: Tensor) -> None:
        """view (B, L, *shape) of the whole batch."""
        self.parts.append(view[self.scope.rows])

    def finish(self) -> None:
        whole = torch.cat(self.parts, 1) if len(self.parts) > 1 else self.parts[0]
        scope = dataclasses.replace(self.scope, count=whole.shape[0], steps=min(whole.shape[1], self.scope.steps))
        whole = whole[:, : scope.steps]
        index = Index(self.site, self.index, scope)
        if not index.whole:
            whole = index.drop(whole[index.grid(whole.device, index.positions[1])])
        fill(self.slot, whole)


@dataclasses.dataclass
class Write:
    """Puts a value, or a function of the value that is there, at chosen rows, steps and units."""

    site: Site
    scope: Scope
    index: Index
    value: Tensor | float | Callable[[Tensor], Any]
    when: Callable[[Any], Any] | None = None
    fired: bool = False

    def apply(self, view: Tensor, steps: Sequence[int], info: Any) -> Tensor:
        """A changed copy of view (B, L, *shape), or the view itself where this step is not meant."""
        slots = [(j, k) for j, step in enumerate(steps) if (k := self.index.step_slot(step)) is not None]
        if not slots or not self.index.positions[0]:
            self.fired |= not self.index.positions[0] or not self.index.positions[1]
            return view
        self.fired = True
        mine = view[self.scope.rows]
        grid = self.index.grid(view.device, [j for j, _ in slots])
        there = mine[grid]
        if callable(self.value):
            value = torch.as_tensor(self.value(self.index.drop(there)), device=view.device)
            try:
                value = value.expand(self.index.drop(there).shape).reshape(there.shape)
            except RuntimeError:
                raise TraceError(
                    f"the function written to site {self.site.name} returned {list(value.shape)} for an input "
                    f"{list(self.index.drop(there).shape)}"
                ) from None
        else:
            value = self.index.spread(torch.as_tensor(self.value, device=view.device), self.site)
            value = value[:, torch.tensor([k for _, k in slots], device=view.device)]
        value = value.to(view.dtype)
        if self.when is not None:
            chosen = torch.as_tensor(self.when(info), device=view.device)
            chosen = chosen.reshape(*chosen.shape, *(1,) * (view.dim() - chosen.dim())).expand(view.shape)
            value = torch.where(chosen[self.scope.rows][grid], value, there)
        new = view.clone()
        new[self.scope.rows][grid] = value
        return new
