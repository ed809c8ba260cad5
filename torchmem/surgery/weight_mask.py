"""WeightMask: which weights compute and learn. Masked-out weights count as zero and do not move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.surgery.edit import Tensors
from torchmem.surgery.weight_edit import WeightEdit, Weights, matching, parameters_of


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WeightMask(WeightEdit):
    """True keeps a weight, False makes it zero. Parameters that are not named are whole.

    masks: parameter name -> bool tensor of its shape. base: hash of the weights it was found on ("" unknown); it takes
    no part in comparisons.
    """

    masks: Mapping[str, Tensor]
    base: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"WeightMask: the mask of {name} must be a bool tensor, not {kind}; write mask > 0.5")
        object.__setattr__(self, "masks", Tensors.copy_of(self.masks))

    @classmethod
    def from_patterns(
        cls, weights: Weights, keep: str | Iterable[str] | None = None, drop: str | Iterable[str] | None = None
    ) -> WeightMask:
        """Whole parameters by shell patterns on their names. keep: drop all others; drop: drop these. Exactly one.

        Raises ValueError for a pattern that matches nothing.
        """
        if (keep is None) == (drop is None):
            raise ValueError("WeightMask.from_patterns needs either keep=... or drop=...")
        found = parameters_of(weights)
        hits = set(matching(found, keep if keep is not None else drop))  # type: ignore[arg-type]
        out = found.keys() - hits if keep is not None else hits
        return cls(
            Tensors({n: torch.zeros(found[n].shape, dtype=torch.bool, device=found[n].device) for n in sorted(out)})
        )

    # As an edit -------------------------------------------------------------------------------------------------------

    @property
    def _shapes(self) -> Mapping[str, torch.Size]:
        return {name: mask.shape for name, mask in self.masks.items()}

    def effective(self, name: str, w: Tensor) -> Tensor:
        """w where kept (bitwise), zero elsewhere, whatever w is there; gradients reach kept entries only."""
        return torch.where(self.masks[name].to(w.device), w, w.new_zeros(()))

    def frozen(self, name: str) -> Tensor | None:
        return ~self.masks[name] if name in self.masks else None

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        plain, tensors = super().parts()
        plain.pop("base")
        return plain, tensors

    def describe(self) -> str:
        kept, total = self.total()
        return f"WeightMask({len(self.masks)} tensors, {kept} of {total} kept)"

    # Algebra ----------------------------------------------------------------------------------------------------------

    def _merge(self, other: WeightMask, rule: Callable[[Tensor, Tensor], Tensor], both_only: bool) -> WeightMask:
        names = self.masks.keys() & other.masks.keys() if both_only else self.masks.keys() | other.masks.keys()
        merged = {}
        for name in sorted(names):
            mine, theirs = self.masks.get(name), other.masks.get(name)
            if mine is None or theirs is None:
                whole = mine if theirs is None else theirs
                assert whole is not None
                merged[name] = whole.clone()
                continue
            _same_shape(name, mine, theirs)
            merged[name] = rule(mine, theirs.to(mine.device))
        return WeightMask(Tensors(merged), base=self.base if self.base == other.base else "")

    def __and__(self, other: WeightMask) -> WeightMask:
        """Kept by both; a parameter that one does not name is whole there."""
        return self._merge(other, torch.logical_and, both_only=False)

    def __or__(self, other: WeightMask) -> WeightMask:
        """Kept by either; a parameter that one does not name is whole there, and so in the result."""
        return self._merge(other, torch.logical_or, both_only=True)

    def __invert__(self) -> WeightMask:
        """The complement within the named parameters; the others stay whole."""
        return WeightMask(Tensors({name: ~mask for name, mask in self.masks.items()}), base=self.base)

    def restrict(self, patterns: str | Iterable[str]) -> WeightMask:
        """Only the parameters that match; the others become whole."""
        return WeightMask(Tensors({n: self.masks[n] for n in matching(self.masks, patterns)}), base=self.base)

    # Numbers ----------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, tuple[int, int]]:
        """(kept, all) entries of each parameter."""
        return {name: (int(mask.sum()), mask.numel()) for name, mask in self.masks.items()}

    def total(self) -> tuple[int, int]:
        """(kept, all) entries of all named parameters."""
        counts = self.counts().values()
        return sum(kept for kept, _ in counts), sum(size for _, size in counts)

    @property
    def density(self) -> float:
        """Kept share of the named parameters; 1 for a mask that names none."""
        kept, total = self.total()
        return kept / total if total else 1.0

    def iou(self, other: WeightMask) -> float:
        """Kept by both / kept by either, over all named parameters; 1 where neither keeps anything.

        Raises ValueError where they name different parameters.
        """
        self._comparable(other)
        both = either = 0
        for name, mask in self.masks.items():
            theirs = other.masks[name].to(mask.device)
            both += int((mask & theirs).sum())
            either += int((mask | theirs).sum())
        return both / either if either else 1.0

    def expected_iou(self, other: WeightMask) -> float:
        """What `iou` would be about, had both kept as many of each parameter as they do, but at random places."""
        self._comparable(other)
        theirs = other.counts()
        both = either = 0.0
        for name, (kept, size) in self.counts().items():
            overlap = kept * theirs[name][0] / size if size else 0.0
            both += overlap
            either += kept + theirs[name][0] - overlap
        return both / either if either else 1.0

    def _comparable(self, other: WeightMask) -> None:
        if self.masks.keys() != other.masks.keys():
            lone = sorted(self.masks.keys() ^ other.masks.keys())
            raise ValueError(f"the masks name different parameters ({', '.join(lone[:3])}, ...): restrict both first")
        for name, mask in self.masks.items():
            _same_shape(name, mask, other.masks[name])

    # On disk ----------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, weights: Weights | None = None, *, any_base: bool = False) -> WeightMask:
        """The mask that `save` wrote. weights: raise where it does not fit them or was made for others."""
        header, tensors = cls._read(path)
        mask = cls(Tensors(tensors.get("masks", {})), base=header.get("base", ""))
        mask._as_saved(path, header, weights, any_base)
        return mask


def _same_shape(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the masks of {name} have shapes {tuple(a.shape)} and {tuple(b.shape)}")
