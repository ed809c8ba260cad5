"""OptimiseResult: starts that make a target large, beside random and real ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis.style import COLOURS, CONTROL_COLOUR, finish, number, table
from torchmem.intervals import wilson
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class OptimiseResult(Result):
    """R restarts, best first; sign: 1 where the target was raised, -1 where lowered.

    latent, begin (R, L): where each ended (at its best step, `best_step` (R,)) and began; achieved (R,) the target
    there; trace (steps + 1, R). random (N,) of random starts, data (M,) of encoded real ones ((0,) without a
    recording). realism (R,), random_realism (N,), data_realism (M,) in `realism_unit`; (0,) where nothing tells.
    still, broken: shares of steps without gradient, and with one that was no number. nearest (R, 2): recorded episode
    and step of the real start that lies nearest, or -1. frames (R, H, ...) of the image shown, (R, 0) without one;
    action key -> (R, H, ...); agent_value (R, H).
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.2)

    simulator: str
    target: str
    sign: float
    at: tuple[int, ...]
    latent: np.ndarray
    begin: np.ndarray
    trace: np.ndarray
    best_step: np.ndarray
    achieved: np.ndarray
    random: np.ndarray
    data: np.ndarray
    realism: np.ndarray
    random_realism: np.ndarray
    data_realism: np.ndarray
    realism_unit: str
    still: float
    broken: float
    nearest: np.ndarray
    frames: np.ndarray
    action: dict[str, np.ndarray]
    agent_value: np.ndarray
    control_hz: float
    settings: dict[str, Any]

    def beyond(self, others: np.ndarray) -> tuple[float, float, float]:
        """Share of restarts beyond the best of `others`, with 95 % bounds."""
        best = np.nanmax(self.sign * others)
        return wilson(int((self.sign * self.achieved > best).sum()), len(self.achieved))

    @property
    def apart(self) -> float:
        """Mean distance between two restarts; NaN for one."""
        if len(self.latent) < 2:
            return float("nan")
        gaps = np.linalg.norm(self.latent[:, None] - self.latent, axis=-1)
        return float(gaps.sum() / (len(gaps) * (len(gaps) - 1)))

    def summary(self) -> str:
        rows = []
        for name, values, far in (
            (f"optimised, {len(self.achieved)} restarts", self.achieved, self.realism),
            (f"random, {len(self.random)} starts", self.random, self.random_realism),
            (f"real, {len(self.data)} starts", self.data, self.data_realism),
        ):
            if len(values):
                low, high = bounds(values)
                best = self.sign * np.nanmax(self.sign * values)
                told = number(float(np.mean(far)), 2) if len(far) else "-"
                rows.append([name, f"{np.nanmean(values):.4g} [{low:.4g}, {high:.4g}]", f"{best:.4g}", told])
        where = f"step {self.at[0]}" if len(self.at) == 1 else f"steps {', '.join(map(str, self.at))}"
        what = "highest" if self.sign > 0 else "lowest"
        lines = [
            f"{self.simulator}: {what} {self.target} at {where}",
            table(["", "mean [95 %]", "best", "realism"], rows),
        ]
        for name, others in (("random", self.random), ("real", self.data)):
            if len(others):
                share, low, high = self.beyond(others)
                lines.append(f"beyond the best {name} start: {share:.0%} of restarts [{low:.0%}, {high:.0%}]")
        if self.realism_unit:
            lines.append(f"realism: {self.realism_unit}")
        lines.append(f"restarts lie {self.apart:.3g} apart on average" if len(self.latent) > 1 else "one restart")
        if self.still or self.broken:
            lines.append(f"without a gradient in {self.still:.0%} of the steps, with a broken one in {self.broken:.0%}")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The target along the ascent of each restart, over random and real starts."""
        ax = self.axes(ax)
        steps = np.arange(len(self.trace))
        for i in range(self.trace.shape[1]):
            ax.plot(steps, self.trace[:, i], color=COLOURS[0], lw=0.9, label="restarts" if i == 0 else None)
        for name, values, colour in (("random", self.random, CONTROL_COLOUR), ("real", self.data, COLOURS[1])):
            fine = values[np.isfinite(values)]
            if len(fine):
                low, high = np.quantile(fine, [0.025, 0.975])
                ax.axhspan(low, high, color=colour, alpha=0.12, lw=0, label=f"{name} starts, 95 %")
                ax.axhline(self.sign * (self.sign * fine).max(), color=colour, ls="--", lw=1, label=f"best {name}")
        return finish(ax, "step of the ascent", self.target)

    def figure(self, most: int = 6) -> Any:
        """What the best restarts show, step by step. Raises ValueError where nothing was shown as an image."""
        from matplotlib.figure import Figure

        if not self.frames.size:
            raise ValueError("this world shows no colour image, so there are no pictures of the starts")
        rows, steps = min(most, len(self.frames)), self.frames.shape[1]
        figure = Figure(figsize=(1.3 * steps + 1.2, 1.45 * rows), layout="constrained")
        axes = figure.subplots(rows, steps, squeeze=False)
        for i, line in enumerate(axes):
            for step, ax in enumerate(line):
                ax.imshow(self.frames[i, step])
                ax.set_xticks([])
                ax.set_yticks([])
                if step in self.at:
                    for spine in ax.spines.values():
                        spine.set(color="#009E73", linewidth=2)
                if i == 0:
                    ax.set_title(f"step {step}", fontsize=8)
            line[0].set_ylabel(f"{self.target}\n{self.achieved[i]:.3g}", fontsize=7)
        return figure


def bounds(values: np.ndarray) -> tuple[float, float]:
    """95 % bounds of the mean, starts drawn again."""
    fine = values[np.isfinite(values)]
    if not len(fine):
        return np.nan, np.nan
    draws = np.random.default_rng(0).integers(len(fine), size=(DRAWS, len(fine)))
    low, high = np.quantile(fine[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)
