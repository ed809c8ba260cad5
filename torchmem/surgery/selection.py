"""Where an edit of activations holds: site, time, rows and units; reading and writing exactly those entries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from torchmem.surgery.edit import Edit
from torchmem.types import Site

Time = None | int | slice | tuple[int, ...]
Rows = None | slice | tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class At:
    """Which steps of a pass the values show that an edit is given.

    steps: their L absolute numbers within the pass, from 0. is_first: (B, L) bool, None where nothing resets.
    previous: (B, 1, *shape), this site's value one step before the first of `steps`, after all edits; None if unknown.
    """

    steps: Sequence[int]
    kind: Literal["unroll", "imagine", "act", "loss"] = "unroll"
    is_first: Tensor | None = None
    previous: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """The entries of a (B, L, N) view that an edit touches; None means all along that axis."""

    size: tuple[int, int, int]  # B, L, N
    rows: tuple[int, ...] | None
    places: tuple[int, ...] | None  # along L
    units: tuple[int, ...] | None
    steps: tuple[int, ...]  # absolute numbers of the selected places

    @property
    def whole(self) -> bool:
        return self.rows is None and self.places is None and self.units is None

    @property
    def row_numbers(self) -> Sequence[int]:
        return range(self.size[0]) if self.rows is None else self.rows

    def index(self, device: torch.device) -> tuple[slice | Tensor, ...]:
        """Of these entries, as an index whose result has the shape (rows, places, units)."""
        parts = (self.rows, self.places, self.units)
        if sum(part is not None for part in parts) <= 1:
            return tuple(slice(None) if p is None else torch.tensor(p, device=device) for p in parts)
        shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        lists = (range(n) if p is None else p for p, n in zip(parts, self.size))
        return tuple(torch.tensor(list(p), device=device).view(s) for p, s in zip(lists, shapes))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SiteEdit(Edit):
    """An edit of the values of one site.

    site: its name. time: steps of the pass, from 0 (None: all). rows: of the batch (None: all). units: indices into
    the flattened site shape (None: all); a list, range, array or boolean mask is taken too.
    """

    site: str
    time: Time = dataclasses.field(default=None, kw_only=True)
    rows: Rows = dataclasses.field(default=None, kw_only=True)
    units: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)

    moves = False  # whether it edits movement: `apply` then looks at `At.previous`

    def __post_init__(self) -> None:
        if not isinstance(self.site, str) or not self.site:
            raise ValueError(f"site must be the name of a site, not {self.site!r}")
        self._set("time", _time(self.time, f"{type(self).__name__} at {self.site}: time"))
        self._set("rows", _rows(self.rows, f"{type(self).__name__} at {self.site}: rows"))
        self._set("units", _numbers(self.units, f"{type(self).__name__} at {self.site}: units"))
        self._set("_cache", {})

    # What subclasses say ----------------------------------------------------------------------------------------------

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        """New values of the selected entries. part: (rows, places, units), not to be written to."""
        raise TypeError(f"{type(self).__name__} changes nothing: use one of its subclasses")

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a stored tensor does not fit a site of this shape."""

    def _detail(self) -> str:
        """What `describe` adds to the site."""
        return ""

    # What the engine calls --------------------------------------------------------------------------------------------

    @property
    def stepwise(self) -> bool:
        """Whether what it does depends on the number of the step: rows at different steps then need `apply` each."""
        return self.time is not None

    @property
    def everywhere(self) -> bool:
        """Whether it holds alike at every row and step, so that it may hold inside a loss too."""
        return not (self.stepwise or self.moves or self.rows is not None)

    def apply(self, x: Tensor, at: At) -> Tensor:
        """x (B, L, *shape) with the edit made: a new tensor, or `x` itself where nothing is selected.

        Entries that are not selected stay bitwise equal; gradients flow to whatever the new values depend on.
        Raises ValueError where rows or source steps do not exist.
        """
        where = self._select(x, at)
        if where is None:
            return x
        flat = x.reshape(where.size)
        if where.whole:
            new = self._change(flat, where)
            return new.to(x.dtype).expand(where.size).clone().reshape(x.shape)
        index = where.index(x.device)
        new = self._change(flat[index], where).to(x.dtype)
        out = flat.clone()
        out[index] = new
        return out.reshape(x.shape)

    def check(self, site: Site) -> None:
        """Raise ValueError, naming the site and the way out, where this edit cannot hold at `site`."""
        size = math.prod(site.shape)
        if self.units and max(self.units) >= size:
            raise ValueError(
                f"{self.describe()}: unit {max(self.units)} does not exist; {site.name} has shape {site.shape}, so its "
                f"units are 0 to {size - 1}"
            )
        self._check_shapes(site.shape)

    def covers(self, step: int) -> bool:
        """Whether the edit holds at this step of a pass."""
        time = self.time
        if time is None:
            return True
        if isinstance(time, slice):
            start, stride = time.start or 0, time.step or 1
            return step >= start and (time.stop is None or step < time.stop) and (step - start) % stride == 0
        return step in time  # type: ignore[operator]

    def describe(self) -> str:
        parts = [self.site, self._detail()]
        if self.units is not None:
            parts.append(f"units {_short(self.units)}")
        if self.time is not None:
            parts.append(f"time {_short(self.time)}")
        if self.rows is not None:
            parts.append(f"rows {_short(self.rows)}")
        return f"{type(self).__name__}({', '.join(part for part in parts if part)})"

    # Shared by subclasses ---------------------------------------------------------------------------------------------

    def _select(self, x: Tensor, at: At) -> Selection | None:
        """The entries of x (B, L, *shape) that this edit touches; None where there are none."""
        batch, length = x.shape[:2]
        if len(at.steps) != length:
            raise ValueError(f"{self.describe()}: {length} steps of values, but numbers of {len(at.steps)}")
        places = tuple(i for i, step in enumerate(at.steps) if self.covers(step))
        rows = self.rows
        if isinstance(rows, slice):
            rows = tuple(range(batch)[rows])
        if not places or (rows is not None and not rows) or (self.units is not None and not self.units):
            return None
        if rows is not None and max(rows) >= batch:
            raise ValueError(f"{self.describe()}: row {max(rows)} does not exist; this pass has rows 0 to {batch - 1}")
        return Selection(
            size=(batch, length, math.prod(x.shape[2:])),
            rows=None if rows is None or rows == tuple(range(batch)) else rows,
            places=None if len(places) == length else places,
            units=self.units,
            steps=tuple(at.steps[i] for i in places),
        )

    def _ready(self, key: str, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """`make()` in the dtype and on the device of `like`; kept, unless it carries a gradient."""
        slot = (key, like.dtype, like.device)
        found = self._cache.get(slot)  # type: ignore[attr-defined]
        if found is None:
            with torch.inference_mode(False):  # a tensor born inside inference mode could never meet autograd again
                found = make().to(like)
            if not found.requires_grad:
                self._cache[slot] = found  # type: ignore[attr-defined]
        return found

    def _of_units(self, value: Tensor) -> Tensor:
        """The selected units along the last axis."""
        return value if self.units is None else value[..., list(self.units)]

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _wrong_shape(self, what: str, found: Sequence[int], needed: str) -> ValueError:
        return ValueError(f"{self.describe()}: {what} has shape {tuple(found)}, but the site needs {needed}")


# Reading the arguments ------------------------------------------------------------------------------------------------


def _numbers(value: Any, what: str) -> tuple[int, ...] | None:
    """None, or distinct non-negative integers in the given order."""
    if value is None:
        return None
    if hasattr(value, "tolist"):  # tensors and arrays
        if str(value.dtype).endswith("bool"):
            value = value.reshape(-1).nonzero()
            value = (value[0] if isinstance(value, tuple) else value).reshape(-1)
        value = value.tolist()
    if isinstance(value, int):
        value = (value,)
    try:
        items = tuple(value)
    except TypeError as error:
        raise ValueError(f"{what} must be integers, not {value!r}") from error
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int):
            raise ValueError(f"{what} must be integers, but one is {item!r}")
        if item < 0:
            raise ValueError(f"{what} count from 0, so {item} does not exist")
    if len(set(items)) != len(items):
        raise ValueError(f"{what} must not repeat: {_short(items)}")
    return items


def _time(value: Any, what: str) -> Time:
    if isinstance(value, slice):
        for item in (value.start, value.stop):
            if item is not None and (not isinstance(item, int) or item < 0):
                raise ValueError(
                    f"{what} counts from the first step of the pass, so {item} has no meaning; count from 0"
                )
        if value.step is not None and (not isinstance(value.step, int) or value.step < 1):
            raise ValueError(f"{what} must step forward, not by {value.step}")
        return value
    return _numbers(value, what)


def _rows(value: Any, what: str) -> Rows:
    return value if isinstance(value, slice) else _numbers(value, what)


def _short(value: Any) -> str:
    if isinstance(value, slice):
        start, stop = ("" if v is None else v for v in (value.start, value.stop))
        return f"{start}:{stop}" + (f":{value.step}" if value.step else "")
    items = list(value)
    if len(items) > 6:
        return f"{items[0]},{items[1]},...,{items[-1]} ({len(items)})"
    return ",".join(str(item) for item in items)
