"""Edits of activations as data: Patch, Ablate, Clamp, Steer, Project. All see one site as (B, L, *shape)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchmem.surgery.edit import Edit, Edits, finite, owned
from torchmem.surgery.selection import At, Selection, SiteEdit

__all__ = ["Ablate", "At", "Clamp", "Edit", "Edits", "Patch", "Project", "SiteEdit", "Steer"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Patch(SiteEdit):
    """Put in values of another run.

    values: (B, T, *shape), or (1, T, *shape) for every row. offset: the source of step t is step t + offset of
    `values`. A selected step without a source raises ValueError: here where `time` tells, else in `apply`.
    """

    values: Tensor
    offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("values", owned(self.values, f"Patch at {self.site}: values"))
        if self.values.dim() < 2:
            raise ValueError(
                f"Patch at {self.site}: values need a batch and a time axis, (B, T, *shape), but have shape "
                f"{tuple(self.values.shape)}; write values[None, None] for one value at one step"
            )
        if isinstance(self.time, tuple):
            self._sources(self.time)
        elif isinstance(self.time, slice) and self.time.stop is not None:
            self._sources(range(self.time.start or 0, self.time.stop, self.time.step or 1))

    @property
    def stepwise(self) -> bool:
        return True

    def _sources(self, steps: Sequence[int]) -> list[int]:
        """Where in `values` each step finds its value."""
        length = self.values.shape[1]
        lost = [step for step in steps if not 0 <= step + self.offset < length]
        if lost:
            raise ValueError(
                f"{self.describe()}: step {lost[0]} has no source: the values hold steps {-self.offset} to "
                f"{length - 1 - self.offset} of the patched pass (offset {self.offset:+d}); choose time=... inside, "
                f"or take values of a longer run"
            )
        return [step + self.offset for step in steps]

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        source = self._ready("values", part, lambda: self._of_units(self.values.reshape(*self.values.shape[:2], -1)))
        batch = where.size[0]
        if source.shape[0] not in (1, batch):
            raise ValueError(
                f"{self.describe()}: values of {source.shape[0]} rows for a pass of {batch}; give {batch} rows, or one "
                f"for all"
            )
        if where.rows is not None and source.shape[0] > 1:
            source = source[list(where.rows)]
        return source[:, self._sources(where.steps)]

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        if tuple(self.values.shape[2:]) != shape:
            raise self._wrong_shape("values", self.values.shape, f"(B, T, {', '.join(map(str, shape))})")

    def _detail(self) -> str:
        rows, steps = self.values.shape[:2]
        return f"{rows} x {steps} values" + (f", offset {self.offset:+d}" if self.offset else "")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ablate(SiteEdit):
    """Take the information out of a site: zero, its mean, or the value of an unrelated moment.

    mean: (*shape), for mode "mean". bank: (M, *shape) values seen elsewhere, for mode "resample": each row and step
    takes one of them, all units from the same one, chosen by (seed, step, row) alone.
    """

    mode: Literal["zero", "mean", "resample"] = "zero"
    mean: Tensor | None = None
    bank: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"Ablate at {self.site}"
        needs = {"zero": None, "mean": "mean", "resample": "bank"}
        if self.mode not in needs:
            raise ValueError(f"{name}: mode={self.mode!r}; choose zero, mean or resample")
        for field in ("mean", "bank"):
            value = getattr(self, field)
            if (value is None) == (needs[self.mode] == field):
                verb = "needs" if value is None else "takes no"
                raise ValueError(f"{name}: mode={self.mode!r} {verb} {field}=...")
            if value is not None:
                self._set(field, owned(value, f"{name}: {field}"))
        if self.bank is not None and (self.bank.dim() < 1 or not len(self.bank)):
            raise ValueError(f"{name}: bank must hold at least one value, (M, *shape)")

    @property
    def stepwise(self) -> bool:
        return self.time is not None or self.mode == "resample"

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(part)
        if self.mode == "mean":
            mean = self.mean
            assert mean is not None
            return self._ready("mean", part, lambda: self._of_units(mean.reshape(-1))).expand(part.shape)
        stored = self.bank
        assert stored is not None
        bank = self._ready("bank", part, lambda: self._of_units(stored.reshape(len(stored), -1)))
        chosen = [[scatter(self.seed, s, r) % len(bank) for s in where.steps] for r in where.row_numbers]
        return bank[torch.tensor(chosen, device=bank.device)]

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        if self.mean is not None and tuple(self.mean.shape) != shape:
            raise self._wrong_shape("mean", self.mean.shape, str(shape))
        if self.bank is not None and tuple(self.bank.shape[1:]) != shape:
            raise self._wrong_shape("bank", self.bank.shape, f"(M, {', '.join(map(str, shape))})")

    def _detail(self) -> str:
        return self.mode + (f" of {len(self.bank)}, seed {self.seed}" if self.bank is not None else "")


def scatter(*numbers: int) -> int:
    """A 64-bit integer that depends on all numbers and on nothing else (SplitMix64 finaliser, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Clamp(SiteEdit):
    """Hold values at `value`, or within [low, high]. Each is a number or a tensor (*shape)."""

    value: float | Tensor | None = None
    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"Clamp at {self.site}"
        bounds = self.low is not None or self.high is not None
        if (self.value is None) != bounds:
            raise ValueError(f"{name}: give either value=..., or low=... and/or high=...")
        for field in ("value", "low", "high"):
            given = getattr(self, field)
            if given is None:
                continue
            many = len(getattr(given, "shape", ())) > 0
            self._set(field, owned(given, f"{name}: {field}") if many else finite(given, f"{name}: {field}"))
        if self.low is not None and self.high is not None:
            if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
                raise ValueError(f"{name}: low is above high")

    def _bound(self, field: str, part: Tensor) -> Tensor | None:
        given = getattr(self, field)
        if given is None:
            return None
        if isinstance(given, Tensor):
            return self._ready(field, part, lambda: self._of_units(given.reshape(-1)))
        return self._ready(field, part, lambda: torch.tensor(given, dtype=torch.float64))

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        value = self._bound("value", part)
        if value is not None:
            return value.expand(part.shape)
        return torch.clamp(part, self._bound("low", part), self._bound("high", part))

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        for field in ("value", "low", "high"):
            given = getattr(self, field)
            if isinstance(given, Tensor) and tuple(given.shape) != shape:
                raise self._wrong_shape(field, given.shape, f"{shape}, or one number")

    def _detail(self) -> str:
        given = {f: getattr(self, f) for f in ("value", "low", "high") if getattr(self, f) is not None}
        return ", ".join(f"{f} {'(tensor)' if isinstance(v, Tensor) else f'{v:g}'}" for f, v in given.items())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Steer(SiteEdit):
    """Add strength * direction. direction: (*shape), used as given (not normalised)."""

    direction: Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("direction", owned(self.direction, f"Steer at {self.site}: direction"))
        self._set("strength", finite(self.strength, f"Steer at {self.site}: strength"))

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        push = self._ready("push", part, lambda: self._of_units(self.direction.reshape(-1)) * self.strength)
        return part + push

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        if tuple(self.direction.shape) != shape:
            raise self._wrong_shape("direction", self.direction.shape, str(shape))

    def _detail(self) -> str:
        return f"strength {self.strength:g}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Project(SiteEdit):
    """Remove the span of some directions, or keep nothing else.

    basis: (K, N) or (K, *shape), any linearly independent directions; they are made orthonormal among the selected
    units. keep: False removes their span, True removes everything else. mean: (*shape), the point that stays where it
    is (default: the origin). dual: as basis, with dual @ basis.T = 1: how amounts along the basis are read, so that
    other readings that ignore it stay as they are (default: least squares, an orthogonal projection).
    """

    basis: Tensor
    keep: bool = False
    mean: Tensor | None = None
    dual: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"Project at {self.site}"
        self._set("basis", owned(self.basis, f"{name}: basis"))
        if self.basis.dim() < 2:
            raise ValueError(
                f"{name}: basis must be (K, N), but has shape {tuple(self.basis.shape)}; one direction is "
                f"direction[None]"
            )
        if self.mean is not None:
            self._set("mean", owned(self.mean, f"{name}: mean"))
        if self.dual is not None:
            self._set("dual", owned(self.dual, f"{name}: dual"))
            if self.dual.shape != self.basis.shape:
                raise ValueError(f"{name}: dual {tuple(self.dual.shape)} does not match {tuple(self.basis.shape)}")
        if not (self.units and max(self.units) >= self.basis[0].numel()):  # else `check` says so
            _ = self._orthonormal  # fails here rather than in the middle of a pass

    @functools.cached_property
    def _orthonormal(self) -> tuple[Tensor, Tensor]:
        """(K, units) each, float64: the basis, and what reads amounts along it."""
        rows = self._of_units(self.basis.detach().flatten(1))
        basis = orthonormal(rows, self.describe() + ": basis")  # raises where they are dependent
        if self.dual is None:
            return basis, basis
        rows, dual = rows.double(), self._of_units(self.dual.detach().flatten(1)).double()
        if not torch.allclose(dual @ rows.T, torch.eye(len(rows), dtype=rows.dtype), atol=1e-4):
            raise ValueError(f"{self.describe()}: dual @ basis.T is not 1 among the selected units")
        return rows, dual

    def _change(self, part: Tensor, where: Selection) -> Tensor:
        basis = self._ready("basis", part, lambda: self._orthonormal[0])
        dual = self._ready("dual", part, lambda: self._orthonormal[1])
        centred = part
        if self.mean is not None:
            centre = self.mean.reshape(-1)
            centred = part - self._ready("mean", part, lambda: self._of_units(centre))
        inside = (centred @ dual.T) @ basis
        return part - inside if not self.keep else part - (centred - inside)

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        if self.basis[0].numel() != math.prod(shape):
            raise self._wrong_shape("basis", self.basis.shape, f"(K, {math.prod(shape)})")
        if self.mean is not None and tuple(self.mean.shape) != shape:
            raise self._wrong_shape("mean", self.mean.shape, str(shape))

    def _detail(self) -> str:
        return f"{'keep' if self.keep else 'remove'} {len(self.basis)} directions"


def orthonormal(rows: Tensor, what: str) -> Tensor:
    """An orthonormal basis (K, N) of the span of K rows, float64. Raises ValueError where they are dependent."""
    rows = rows.double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{what} is not finite")
    size = torch.linalg.vector_norm(rows, dim=1)
    if bool((size == 0).any()):
        raise ValueError(f"{what}: direction {int((size == 0).nonzero()[0])} is zero (among the selected units)")
    _, values, basis = torch.linalg.svd(rows / size[:, None], full_matrices=False)
    # float32 directions carry rounding errors of about 1e-7; below that, "independent" would be noise
    if len(values) < len(rows) or values[-1] < 1e-6 * values[0]:
        rank = int((values >= 1e-6 * values[0]).sum())
        raise ValueError(
            f"{what}: the {len(rows)} directions span only {rank} dimensions; leave the dependent ones out"
        )
    return basis
