"""SaliencyResult: what every scalar hangs on, step by step and way by way, and the pictures of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.ndimage import gaussian_filter

from torchmem.analysis.style import COLOURS, finish, number, table
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class SaliencyResult(Result):
    """K scalars at step `at` of B samples of S steps.

    slopes["<way>.<node>"]: (K, B, S, ...), images averaged over channels, per grey level of 0..255; node `directions`
    is the gradient by y of a DirectionsResult. value (K, B). frames: (B, S, ...) of the image shown, (0,) without one.
    action key -> (B, S, ...), agent_value (B, S), origin (B, 2) recorded episode and step of each start (-1: none).
    check: (K, 2) slope by finite differences along a random move of the agent's first memory, and the gradient's; a
    scalar behind choices that jump may differ. integrated: "obs.<key>" -> (K, B, S, ...) and gap (K, B), if asked.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.0, 4.5)

    simulator: str
    scalars: tuple[str, ...]
    at: int
    slopes: dict[str, np.ndarray]
    value: np.ndarray
    frames: np.ndarray
    action: dict[str, np.ndarray]
    agent_value: np.ndarray
    origin: np.ndarray
    check: np.ndarray
    integrated: dict[str, np.ndarray]
    gap: np.ndarray
    settings: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.agent_value.shape[1]

    def size(self, name: str) -> np.ndarray:
        """(K, S) root mean square over samples of the length of one slope."""
        grad = self.slopes[name]
        flat = grad.reshape(*grad.shape[:3], -1).astype(np.float64)
        return np.sqrt((flat**2).sum(3).mean(1))

    def summary(self) -> str:
        lags = sorted({0, 1, 2, self.at} & set(range(self.at + 1)))
        rows = []
        for name in self.slopes:
            sizes = self.size(name)
            for k, scalar in enumerate(self.scalars):
                steps = [f"{sizes[k, self.at - lag]:.3g}" if self.at - lag < sizes.shape[1] else "-" for lag in lags]
                rows.append([f"{scalar} by {name.partition('.')[2]}, {name.partition('.')[0]}", *steps])
        lines = [
            f"{self.simulator}: {len(self.scalars)} scalars at step {self.at} of {self.value.shape[1]} samples; length "
            f"of the gradient by what stood earlier:",
            table(["", *("same step" if lag == 0 else f"{lag} before" for lag in lags)], rows),
        ]
        if len(self.check):
            told = ", ".join(f"{name} {number(a, 4)} ({number(b, 4)})" for name, (a, b) in
                             list(zip(self.scalars, self.check))[:6])  # fmt: skip
            lines.append(f"finite differences (gradient) along a random move of memory: {told}")
        if len(self.gap):
            share = np.abs(self.gap).mean() / max(np.abs(self.value).mean(), 1e-12)
            missed = np.abs(self.gap).mean()
            lines.append(f"integrated gradients miss their sum by {missed:.3g} ({share:.1%} of |scalar|)")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Length of the gradient by step, first node, of up to seven scalars; ways by line style."""
        ax = self.axes(ax)
        node = next(iter(self.slopes)).partition(".")[2]
        styles = {"total": "-", "internal": "--", "external": ":"}
        for name in self.slopes:
            way, _, of = name.partition(".")
            if of != node:
                continue
            sizes = self.size(name)
            for k, scalar in enumerate(self.scalars[: len(COLOURS)]):
                label = scalar if way == next(iter(self.slopes)).partition(".")[0] else None
                ax.plot(np.arange(sizes.shape[1]), sizes[k], styles[way], color=COLOURS[k], label=label)
        ax.axvline(self.at, color="0.8", zorder=0)
        ways = ", ".join(f"{way} {'solid dashed dotted'.split()[i]}" for i, way in enumerate(styles)
                         if f"{way}.{node}" in self.slopes)  # fmt: skip
        ax.set_ylim(bottom=0)
        ax.set_xticks(range(0, self.steps, max(1, self.steps // 10)))
        return finish(ax, f"step ({ways})", f"length of gradient by {node}")

    def pictures(
        self, scalar: int = 0, way: str = "total", *, per_sample: bool = False, blur: float = 1.0
    ) -> np.ndarray:
        """(B, S, H, W, 3) uint8: saliency over dimmed grey frames, blue raises the scalar, red lowers it.

        Saturates at the 99.5 % quantile of |gradient| over all samples, or within each sample. Raises ValueError where
        nothing was shown as an image or the gradient by it was not asked.
        """
        names = [n for n in self.slopes if n.startswith(f"{way}.obs.") and self.slopes[n].ndim == 5]
        if not names or not self.frames.size:
            raise ValueError(f"there is no gradient by an image along {way}: ask with wrt obs.<image>")
        grad = self.slopes[names[0]][scalar].astype(np.float64)
        grad = gaussian_filter(grad, (0, 0, blur, blur)) if blur else grad
        over = tuple(range(1, 4)) if per_sample else None
        limit = np.quantile(np.abs(grad), 0.995, axis=over, keepdims=per_sample)
        share = np.clip(grad / np.where(limit > 0, limit, 1), -1, 1)[..., None]
        grey = 0.35 * self.frames.astype(np.float64).mean(-1, keepdims=True).repeat(3, -1)
        blue, red = np.array([60.0, 140.0, 255.0]), np.array([255.0, 80.0, 60.0])
        out = grey * (1 - np.abs(share)) + np.where(share > 0, blue, red) * np.abs(share)
        return np.clip(out, 0, 255).astype(np.uint8)

    def figure(self, sample: int = 0, most: int = 4) -> Any:
        """One sample: what was shown, and the saliency of the first scalars, step by step."""
        from matplotlib.figure import Figure

        rows = [("shown", self.frames[sample])]
        rows += [(name, self.pictures(k)[sample]) for k, name in enumerate(self.scalars[:most])]
        figure = Figure(figsize=(1.5 * self.steps + 1, 1.6 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), self.steps, squeeze=False)
        for row, (name, frames) in zip(axes, rows):
            for step, ax in enumerate(row):
                ax.imshow(frames[step])
                ax.set_xticks([])
                ax.set_yticks([])
                if step == self.at:
                    for spine in ax.spines.values():
                        spine.set(color="#009E73", linewidth=2)
            row[0].set_ylabel(name, fontsize=8)
        for step, ax in enumerate(axes[0]):
            ax.set_title(f"step {step}", fontsize=8)
        return figure
