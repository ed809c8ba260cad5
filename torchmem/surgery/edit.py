"""What every edit is: frozen data with a content digest, comparable, and composable into an ordered tuple."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def owned(value: Any, what: str) -> Tensor:
    """A floating copy of a tensor or array that nobody else writes to. Raises ValueError where it is not numeric.

    The copy is differentiable: an edit made of a tensor that requires grad hands gradients back to it.
    """
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be a tensor or an array of numbers, not {type(value).__name__}") from error
    value = value if value.is_floating_point() else value.float()
    return value.clone(memory_format=torch.contiguous_format)


def finite(value: Any, what: str) -> float:
    """A finite Python float. Raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be one number, not {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, not {number}")
    return number


def tensor_bytes(value: Tensor) -> bytes:
    """The raw content of a tensor, with dtype and shape in front: equal bytes mean bitwise equal tensors."""
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{value.dtype}{tuple(value.shape)}".encode() + raw


class Tensors(Mapping[str, Tensor]):
    """A read-only mapping of names to tensors. `copy_of` clones them; the constructor takes them over as they are."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    @classmethod
    def copy_of(cls, tensors: Mapping[str, Tensor]) -> Tensors:
        return tensors if isinstance(tensors, cls) else cls({name: t.detach().clone() for name, t in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Edit:
    """Base of every edit. Subclasses are frozen dataclasses whose fields are plain values, tensors, or `Tensors`.

    `a == b` compares all fields, tensors bitwise; `hash` goes by content; `a + b` is an ordered tuple of both.
    """

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All fields: JSON values by field, and tensors by field or "field/name"."""
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
            elif isinstance(value, Tensors):
                tensors |= {f"{field.name}/{name}": value[name] for name in sorted(value)}
            elif isinstance(value, slice):
                plain[field.name] = {"slice": [value.start, value.stop, value.step]}
            elif isinstance(value, tuple):
                plain[field.name] = list(value)
            else:
                plain[field.name] = value
        return plain, tensors

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the content, hexadecimal: equal for equal edits, across processes and devices."""
        plain, tensors = self.parts()
        total = hashlib.sha256(json.dumps([type(self).__name__, plain], sort_keys=True).encode())
        for name, value in sorted(tensors.items()):
            total.update(name.encode())
            total.update(tensor_bytes(value))
        return total.hexdigest()

    def describe(self) -> str:
        """One short line."""
        return type(self).__name__

    def __repr__(self) -> str:
        return self.describe()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        return type(self) is type(other) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __add__(self, other: Edit | Iterable[Edit]) -> Any:
        return Edits.of(self) + other

    def __radd__(self, other: Iterable[Edit]) -> Edits:
        return Edits.of(other) + self


class Edits(tuple[Edit, ...]):
    """Edits in the order in which they are applied."""

    __slots__ = ()

    @classmethod
    def of(cls, edits: Edit | Iterable[Edit]) -> Edits:
        """One edit, or any iterable of them. Raises TypeError naming what is not an edit."""
        if isinstance(edits, Edits):
            return edits
        if isinstance(edits, Edit):
            return cls((edits,))
        if isinstance(edits, (str, Tensor, Mapping)) or not isinstance(edits, Iterable):
            raise TypeError(f"edits must be an edit or a list of edits, not {type(edits).__name__}")
        items = tuple(edits)
        for place, item in enumerate(items):
            if not isinstance(item, Edit):
                raise TypeError(
                    f"edits[{place}] is {type(item).__name__}, not an edit: use Patch, Ablate, Clamp, Steer, Project, "
                    f"Swap, Collapse, WeightMask or WeightDelta"
                )
        return cls(items)

    @property
    def digest(self) -> str:
        """sha256 over all edits in order."""
        return hashlib.sha256("".join(edit.digest for edit in self).encode()).hexdigest()

    def describe(self) -> str:
        return "; ".join(edit.describe() for edit in self) or "no edits"

    def __add__(self, other: Any) -> Edits:
        return Edits((*self, *Edits.of(other)))

    def __radd__(self, other: Any) -> Edits:
        return Edits((*Edits.of(other), *self))
