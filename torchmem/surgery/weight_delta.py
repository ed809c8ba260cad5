"""WeightDelta: the difference between two sets of weights, as something to add, scale, cut and put on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchmem.surgery.delta_math import Shift, difference, low_rank, same_bits, singular_values
from torchmem.surgery.edit import Tensors, finite
from torchmem.surgery.weight_edit import WeightEdit, Weights, matching, parameters_of, per_module, weights_hash
from torchmem.surgery.weight_mask import WeightMask


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WeightDelta(WeightEdit):
    """w_effective = w + scale * delta.

    deltas: parameter name -> floating tensor. corrections: what rounding took from a delta, same names and shapes;
    absent where nothing. Because of them `WeightDelta.between(a, b).apply(a)` is b bit for bit, and `(-delta).apply(b)`
    is a (up to the sign of zeros), which a + (b - a) in floating point is not. Sums, projections and other results of
    algebra are rounded as usual. base: hash of the weights it starts from ("" unknown), no part of comparisons.
    """

    deltas: Mapping[str, Tensor]
    scale: float = 1.0
    corrections: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, kw_only=True)
    base: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", finite(self.scale, "WeightDelta: scale"))
        for field in ("deltas", "corrections"):
            given = getattr(self, field)
            for name, value in given.items():
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f"WeightDelta: {field}[{name!r}] must be a floating tensor, not {kind}")
            object.__setattr__(self, field, Tensors.copy_of(given))
        for name, value in self.corrections.items():
            if name not in self.deltas or self.deltas[name].shape != value.shape:
                raise ValueError(f"WeightDelta: the correction of {name} has no delta of its shape")

    @classmethod
    def between(cls, before: Weights, after: Weights, names: str | Iterable[str] | None = None) -> WeightDelta:
        """after - before. Each is a module, a state dict, or the path of a checkpoint.

        names: shell patterns of the parameters to compare (default: all). Modules and checkpoints give their
        parameters, state dicts all entries; of these, equal integer ones stay out.
        Raises ValueError where names, shapes or dtypes differ, or a weight is not finite.
        """
        first, second = parameters_of(before), parameters_of(after)
        if names is not None:
            chosen = matching(first, names)
            first, second = {n: first[n] for n in chosen}, {n: second[n] for n in chosen if n in second}
        if first.keys() != second.keys():
            lone = sorted(first.keys() ^ second.keys())
            raise ValueError(
                f"the two sets of weights name different parameters ({', '.join(lone[:3])}, ...): take agents of one "
                f"kind and size, or choose names=..."
            )
        deltas, corrections = {}, {}
        for name, a in first.items():
            b = second[name].to(a.device)
            if a.shape != b.shape or a.dtype != b.dtype:
                kinds = f"{tuple(a.shape)} {a.dtype} before and {tuple(b.shape)} {b.dtype} after"
                raise ValueError(f"{name} is {kinds}: only weights of one shape and dtype have a difference")
            if not a.is_floating_point():
                if not torch.equal(a, b):
                    raise ValueError(f"{name} ({a.dtype}) differs, and is no weight: leave it out with names=...")
                continue
            high, low = difference(b, a)
            exact = torch.isfinite(high).all() and torch.isfinite(low).all()
            if not exact or not same_bits(Shift.apply(a, high, low, True), b):  # type: ignore[arg-type]
                raise ValueError(f"{name} has no finite difference: it holds NaN, infinite or enormous values")
            deltas[name] = high
            if bool((low != 0).any() | torch.signbit(low).any()):
                corrections[name] = low
        return cls(Tensors(deltas), corrections=Tensors(corrections), base=weights_hash(parameters_of(before)))

    # As an edit -------------------------------------------------------------------------------------------------------

    @property
    def _shapes(self) -> Mapping[str, torch.Size]:
        return {name: value.shape for name, value in self.deltas.items()}

    def effective(self, name: str, w: Tensor) -> Tensor:
        """w + scale * delta; the gradient with respect to w is one."""
        plain = self.scale == 1.0
        high = self.deltas[name].to(w)
        high = high if plain else high * self.scale
        if name not in self.corrections:
            return w + high
        low = self.corrections[name].to(w)
        return Shift.apply(w, high, low if plain else low * self.scale, plain)  # type: ignore[return-value]

    @torch.no_grad()
    def apply(self, weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A new state dict: `weights` with the delta added; entries that it does not name are passed on.

        Raises ValueError where a parameter is missing or of another shape.
        """
        state = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
        self.check(state)
        return state | {name: self.effective(name, state[name]) for name in self.names}

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        plain, tensors = super().parts()
        plain.pop("base")
        return plain, tensors

    def describe(self) -> str:
        scale = "" if self.scale == 1.0 else f"{self.scale:g} x "
        return f"WeightDelta({scale}{len(self.deltas)} tensors, norm {self.norm():.4g})"

    # Algebra ----------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Tensor:
        """scale * delta of one parameter, float64."""
        value = self.deltas[name].double()
        if name in self.corrections:
            value = value + self.corrections[name].double()
        return value * self.scale

    def _map(self, rule: Callable[[str, Tensor], Tensor]) -> WeightDelta:
        """rule(name, float64 value) for each parameter, stored in the parameter's dtype."""
        new = {name: rule(name, self.value(name)).to(delta.dtype) for name, delta in self.deltas.items()}
        return WeightDelta(Tensors(new), base=self.base)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, WeightDelta):
            return super().__add__(other)
        total = {}
        for name in sorted(self.deltas.keys() | other.deltas.keys()):
            homes = [d for d in (self, other) if name in d.deltas]
            if len(homes) == 2 and self.deltas[name].shape != other.deltas[name].shape:
                shapes = " and ".join(str(tuple(d.deltas[name].shape)) for d in homes)
                raise ValueError(f"the deltas of {name} have shapes {shapes}")
            kind = homes[0].deltas[name]
            total[name] = sum(d.value(name).to(kind.device) for d in homes).to(kind.dtype)  # type: ignore[union-attr]
        return WeightDelta(Tensors(total), base=self.base if self.base == other.base else "")

    def __sub__(self, other: WeightDelta) -> WeightDelta:
        return self + (-other)

    def __mul__(self, factor: float) -> WeightDelta:
        return dataclasses.replace(self, scale=self.scale * finite(factor, "the factor of a WeightDelta"))

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> WeightDelta:
        return dataclasses.replace(self, scale=self.scale / finite(factor, "the divisor of a WeightDelta"))

    def __neg__(self) -> WeightDelta:
        return self * -1.0

    def restrict(self, where: WeightMask | str | Iterable[str]) -> WeightDelta:
        """Only the parameters that match shell patterns, or only the weights that a mask keeps.

        A parameter that the mask does not name is whole, as everywhere. What remains is as exact as before.
        """
        if not isinstance(where, WeightMask):
            chosen = matching(self.deltas, where)
            return dataclasses.replace(
                self,
                deltas=Tensors({n: self.deltas[n] for n in chosen}),
                corrections=Tensors({n: c for n, c in self.corrections.items() if n in chosen}),
            )
        where.check({n: self.deltas[n] for n in where.masks if n in self.deltas} | _absent(where, self))

        def cut(name: str, value: Tensor) -> Tensor:
            if name not in where.masks:
                return value
            return torch.where(where.masks[name].to(value.device), value, value.new_full((), -0.0))

        return dataclasses.replace(
            self,
            deltas=Tensors({n: cut(n, v) for n, v in self.deltas.items()}),
            corrections=Tensors({n: torch.where(self._kept(where, n, v), v, 0.0) for n, v in self.corrections.items()}),
        )

    @staticmethod
    def _kept(where: WeightMask, name: str, value: Tensor) -> Tensor:
        mask = where.masks.get(name)
        return torch.ones_like(value, dtype=torch.bool) if mask is None else mask.to(value.device)

    def project(self, other: WeightDelta, by: Literal["all", "tensor"] = "all") -> WeightDelta:
        """The part of this delta along `other`, as one direction in weight space or one per tensor.

        Raises ValueError where `other` is zero.
        """
        if by == "all":
            length = other.dot(other)
            if not length:
                raise ValueError("there is no direction in a delta of norm zero: project onto another one")
            return other * (self.dot(other) / length)
        products = {n: float((self.value(n) * other.value(n)).sum()) for n in self.deltas if n in other.deltas}
        lengths = {n: float(other.value(n).square().sum()) for n in products}
        new = other.restrict(sorted(products)) if products else WeightDelta({})
        return new._map(lambda name, v: v * (products[name] / lengths[name] if lengths[name] else 0.0))

    def reject(self, other: WeightDelta, by: Literal["all", "tensor"] = "all") -> WeightDelta:
        """This delta with its part along `other` taken out."""
        return self - self.project(other, by)

    def truncate(self, rank: int) -> WeightDelta:
        """The nearest delta whose weight matrices have at most `rank` (each block of a block weight by itself).

        Biases and scales stay; leave them out with `restrict` first if wanted.
        """
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, not {rank!r}")
        return self._map(lambda name, value: low_rank(value, rank))

    def noise_like(self, seed: int) -> WeightDelta:
        """A random delta with the norm of this one in every tensor: the null for whatever this delta does."""
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str, value: Tensor) -> Tensor:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
            length = torch.linalg.vector_norm(noise)
            return noise * (torch.linalg.vector_norm(value) / length) if length > 0 else noise

        return self._map(draw)

    # Numbers ----------------------------------------------------------------------------------------------------------

    def dot(self, other: WeightDelta) -> float:
        """Inner product over all parameters; one that either does not name counts as zero."""
        shared = self.deltas.keys() & other.deltas.keys()
        return math.fsum(float((self.value(n) * other.value(n).to(self.deltas[n].device)).sum()) for n in shared)

    def cosine(self, other: WeightDelta) -> float:
        """Of the angle between two deltas in weight space; NaN where one is zero."""
        length = self.norm() * other.norm()
        return self.dot(other) / length if length else math.nan

    def norm(self) -> float:
        """Euclidean length over all parameters."""
        return math.sqrt(math.fsum(float(self.value(name).square().sum()) for name in self.deltas))

    def norms(self, by: Literal["tensor", "module"] = "tensor") -> dict[str, float]:
        """Euclidean length of each parameter's part, or of each module's."""
        squares = {name: float(self.value(name).square().sum()) for name in self.deltas}
        return {name: math.sqrt(v) for name, v in (squares if by == "tensor" else per_module(squares)).items()}

    def spectra(self) -> dict[str, Tensor]:
        """Singular values of each weight matrix, (k,) or (g, k) for g blocks; biases and scales have none."""
        found = {name: singular_values(self.value(name)) for name in self.deltas}
        return {name: values for name, values in found.items() if values is not None}

    # On disk ----------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, weights: Weights | None = None, *, any_base: bool = False) -> WeightDelta:
        """The delta that `save` wrote. weights: raise where it does not fit them or starts from others."""
        header, found = cls._read(path)
        new = cls(
            Tensors(found.get("deltas", {})),
            header["fields"]["scale"],
            corrections=Tensors(found.get("corrections", {})),
            base=header.get("base", ""),
        )
        new._as_saved(path, header, weights, any_base)
        return new


def _absent(mask: WeightMask, delta: WeightDelta) -> dict[str, Tensor]:
    """Parameters that only the mask names: the delta is zero there, and the mask may say about them what it likes."""
    return {name: value for name, value in mask.masks.items() if name not in delta.deltas}
