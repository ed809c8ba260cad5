"""What did an update change? Norms, ranks and overlap with masks, each beside what chance would give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchmem.models.checkpoint import find_agent, read_card, spec_from
from torchmem.result import Provenance, Result
from torchmem.surgery.delta_math import effective_rank, singular_values, stable_rank
from torchmem.surgery.weight_delta import WeightDelta
from torchmem.surgery.weight_edit import Weights, parameters_of, weights_hash
from torchmem.surgery.weight_mask import WeightMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class UpdateDiff(Result):
    """Where an update lies. P parameters (tensors), M modules.

    share: of the squared length of the whole update. relative: length of the update over length of the weights before
    (NaN where those are zero). Ranks are of a parameter's matrix (a block weight is one block-diagonal matrix), NaN for
    biases and scales; noise_rank is the effective rank of a random update of the same shape. overlaps: see
    `MASK_COLUMNS`, by mask.
    """

    parameters: tuple[str, ...]  # P
    sizes: np.ndarray  # (P,) entries
    norm: np.ndarray  # (P,)
    relative: np.ndarray  # (P,)
    share: np.ndarray  # (P,)
    effective_rank: np.ndarray  # (P,) exp of the entropy of normalised singular values
    stable_rank: np.ndarray  # (P,) squared Frobenius over squared spectral norm
    noise_rank: np.ndarray  # (P,)
    modules: tuple[str, ...]  # M
    module_norm: np.ndarray  # (M,)
    module_relative: np.ndarray  # (M,)
    module_share: np.ndarray  # (M,)
    module_size: np.ndarray  # (M,) share of all entries: what module_share is for an even update
    total_norm: float
    total_relative: float
    overlaps: dict[str, dict[str, float]]

    def summary(self) -> str:
        """The modules that changed most, then the overlap with each mask."""
        order = np.argsort(-self.module_share)[:10]
        lines = [
            f"update of length {self.total_norm:.4g}, {self.total_relative:.3%} of the weights, "
            f"in {len(self.parameters)} parameters",
            f"{'module':<40} {'share':>7} {'of size':>8} {'relative':>9}   rank (noise) of its largest matrix",
        ]
        for m in order:
            lines.append(
                f"{self.modules[m][-40:]:<40} {self.module_share[m]:7.1%} {self.module_size[m]:8.1%} "
                f"{self.module_relative[m]:9.2%}   {self._rank_text(self.modules[m])}"
            )
        if len(self.modules) > len(order):
            lines.append(f"({len(self.modules) - len(order)} modules more, {1 - self.module_share[order].sum():.1%})")
        for name, found in self.overlaps.items():
            lines.append(
                f"mask {name}: holds {found['share']:.1%} of the update; chance {found['share_by_tensor']:.1%} (same "
                f"tensors, random places), {found['density']:.1%} (anywhere); IoU with the largest changes "
                f"{found['iou']:.3f}, chance {found['expected_iou']:.3f}"
            )
        return "\n".join(lines)

    def _rank_text(self, module: str) -> str:
        inside = [
            p
            for p, name in enumerate(self.parameters)
            if (name == module or name.startswith(module + ".") or not module) and np.isfinite(self.effective_rank[p])
        ]
        if not inside:
            return "-"
        largest = max(inside, key=lambda p: self.sizes[p])
        return f"{self.effective_rank[largest]:.1f} ({self.noise_rank[largest]:.1f})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Share of the update by module, beside the module's share of the weights."""
        ax = self.axes(ax)
        order = np.argsort(-self.module_share)[:12][::-1]
        place = np.arange(len(order))
        ax.barh(place + 0.2, self.module_share[order], 0.4, label="of the update")
        ax.barh(place - 0.2, self.module_size[order], 0.4, color="0.75", label="of the weights (even update)")
        ax.set_yticks(place, [self.modules[m] or "(top)" for m in order])
        ax.set_xlabel("share")
        ax.legend(frameon=False)
        return ax


MASK_COLUMNS = {
    "share": "of the squared update, on weights that the mask keeps",
    "share_by_tensor": "chance: the same, had each tensor's change fallen on random places of that tensor",
    "density": "chance: the share of weights that the mask keeps",
    "iou": "of the mask and equally many weights, those that changed most",
    "expected_iou": "chance: the same for equally dense random masks in each tensor",
}


def update_diff(
    before: Weights,
    after: Weights | WeightDelta,
    masks: WeightMask | Mapping[str, WeightMask] | None = None,
    *,
    names: str | Iterable[str] | None = None,
    depth: int | None = None,
    ranks: bool = True,
    seed: int = 0,
) -> UpdateDiff:
    """Describe after - before. Each is a module, a state dict or a checkpoint's path; `after` may be the delta itself.

    masks: one, or several by name; compared over the parameters that each names. names: shell patterns of parameters
    (default: all, so also a slow copy of the critic). depth: modules are the first `depth` words of a parameter's name
    (default: all but the last). ranks: False leaves the singular values out (NaN), which take most of the time.
    seed: of the random update behind noise_rank. Raises ValueError where things do not fit.
    """
    weights = parameters_of(before)
    delta = after if isinstance(after, WeightDelta) else WeightDelta.between(weights, parameters_of(after), names)
    if isinstance(after, WeightDelta):
        delta = delta if names is None else delta.restrict(names)
        delta.check(weights)
    if not delta.names:
        raise ValueError("there are no weights to compare")
    chosen = {"": masks} if isinstance(masks, WeightMask) else dict(masks or {})
    noise = delta.noise_like(seed)
    rows = [_row(delta, noise, name, weights[name], ranks) for name in delta.names]
    norm, base, size, effective, stable, random = (np.array(column, dtype=np.float64) for column in zip(*rows))
    total = float((norm**2).sum())
    where = [".".join(name.split(".")[:-1][:depth]) for name in delta.names]
    modules = tuple(dict.fromkeys(where))
    member = np.array([[w == m for w in where] for m in modules], dtype=np.float64)  # (M, P)
    squares, base_squares = member @ norm**2, member @ base**2
    card = {"before": weights_hash(weights), "delta": delta.digest, "seed": seed}
    return UpdateDiff(
        parameters=delta.names,
        sizes=size.astype(np.int64),
        norm=norm,
        relative=_ratio(norm, base),
        share=norm**2 / total if total else np.zeros_like(norm),
        effective_rank=effective,
        stable_rank=stable,
        noise_rank=random,
        modules=modules,
        module_norm=np.sqrt(squares),
        module_relative=_ratio(np.sqrt(squares), np.sqrt(base_squares)),
        module_share=squares / total if total else np.zeros_like(squares),
        module_size=(member @ size) / size.sum(),
        total_norm=float(np.sqrt(total)),
        total_relative=float(_ratio(np.sqrt(total), np.sqrt((base**2).sum()))),
        overlaps={name or "mask": _overlap(delta, mask) for name, mask in chosen.items()},
        provenance=Provenance.here(
            checkpoint=_path(after) or _path(before), config=card, seeds={"noise": seed},
            caveats=tuple(dict.fromkeys([*_caveats(before), *_caveats(after)])),
        ),
    )  # fmt: skip


def _row(delta: WeightDelta, noise: WeightDelta, name: str, before: Tensor, ranks: bool) -> tuple[float, ...]:
    value = delta.value(name)
    values = singular_values(value) if ranks else None
    effective = stable = random = float("nan")
    if values is not None:
        drawn = singular_values(noise.value(name))
        assert drawn is not None
        flat = values.flatten()  # those of a block-diagonal matrix are those of its blocks together
        effective, stable = float(effective_rank(flat)), float(stable_rank(flat))
        random = float(effective_rank(drawn.flatten()))
    return float(value.norm()), float(before.double().norm()), value.numel(), effective, stable, random


def _overlap(delta: WeightDelta, mask: WeightMask) -> dict[str, float]:
    shared = [name for name in mask.names if name in delta.deltas]
    if not shared:
        raise ValueError(f"{mask.describe()} names none of the parameters that are compared")
    mask, delta = mask.restrict(shared), delta.restrict(shared)
    mask.check(delta.deltas)
    squares = {n: delta.value(n).square() for n in shared}
    total = sum(float(s.sum()) for s in squares.values())
    inside = by_tensor = 0.0
    for name, square in squares.items():
        keep = mask.masks[name].to(square.device)
        inside += float(square[keep].sum())
        by_tensor += float(square.sum()) * float(keep.double().mean())
    changed = _largest(squares, mask.total()[0])
    return {
        "share": inside / total if total else 0.0,
        "share_by_tensor": by_tensor / total if total else 0.0,
        "density": mask.density,
        "iou": mask.iou(changed),
        "expected_iou": mask.expected_iou(changed),
    }


def _largest(squares: Mapping[str, Tensor], count: int) -> WeightMask:
    """The `count` largest entries over all tensors."""
    flat = torch.cat([s.flatten().cpu() for s in squares.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split([s.numel() for s in squares.values()])
    return WeightMask({name: part.view(s.shape) for (name, s), part in zip(squares.items(), parts)})


def _ratio(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.nan)


def _path(weights: object) -> str | None:
    return str(weights) if isinstance(weights, (str, Path)) else None


def _caveats(weights: object) -> tuple[str, ...]:
    """Of the agent that these are the weights of, as far as they tell."""
    if isinstance(weights, (str, Path)):
        return spec_from(read_card(find_agent(weights))["env_spec"]).caveats
    return getattr(getattr(weights, "spec", None), "caveats", ())
