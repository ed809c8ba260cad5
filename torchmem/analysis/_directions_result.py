"""DirectionsResult: directions of a site, kept so that states can be projected, decoded and edited along them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class DirectionsResult(Result):
    """K directions of a site with N numbers.

    y = (h - centre) @ encode.T; h ~ centre + y @ decode; encode (K, N), decode (K, N), encode @ decode.T = 1. Rows of
    decode are what an edit needs: `Swap(site, decode[[3]], decode[[5]])`. share: (K,) of the standardised variance that
    each explains alone, total: all together. stability: (draws, K) correlation of each direction's y with its partner's
    when whole episodes are drawn again; NaN without draws. by_chance: (draws, K) the same for as many random directions
    of the fitted space. spread, low, high: (K,) standard deviation and 1 % and 99 % quantiles of y.
    sample: (M, K) y of M steps for display, sample_rows (M,) which steps; map: (M, 2) or (0, 2), for display only.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.2)

    site: str
    method: str
    centre: np.ndarray
    scale: np.ndarray
    encode: np.ndarray
    decode: np.ndarray
    share: np.ndarray
    total: float
    stability: np.ndarray
    by_chance: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray
    sample_rows: np.ndarray
    map: np.ndarray
    rows: int
    episodes: int
    kept: float
    converged: bool
    settings: dict[str, Any]

    @property
    def count(self) -> int:
        return len(self.encode)

    def scores(self, h: np.ndarray) -> np.ndarray:
        """y (..., K) of states (..., N)."""
        return (h - self.centre) @ self.encode.T

    def states(self, y: np.ndarray) -> np.ndarray:
        """States (..., N) of y (..., K), as far as these directions tell them."""
        return self.centre + y @ self.decode

    def push(self, gradient: np.ndarray) -> np.ndarray:
        """Gradient by h (..., N) -> gradient by y (..., K), the rest of h held where it is."""
        return gradient @ self.decode.T

    def chosen(self, numbers: Any) -> np.ndarray:
        """Rows of `decode` (k, N). Raises ValueError for a number that is none of 0..K - 1."""
        numbers = np.atleast_1d(np.asarray(numbers))
        wrong = [int(n) for n in numbers if not 0 <= n < self.count]
        if wrong:
            raise ValueError(f"direction {wrong[0]} does not exist: there are 0 to {self.count - 1}")
        return self.decode[numbers]

    def summary(self) -> str:
        header = ["direction", "variance", "stability", "(random)", "sd of y", "1%", "99%"]
        rows = []
        for k in range(self.count):
            mean, chance = (style.number(float(v[:, k].mean())) if len(v) else "-" for v in
                            (self.stability, self.by_chance))  # fmt: skip
            rows.append([f"{self.method} {k}", f"{self.share[k]:.1%}", mean, chance,
                         *(style.number(float(v[k])) for v in (self.spread, self.low, self.high))])  # fmt: skip
        head = (
            f"{self.count} directions ({self.method}) of {self.site}, {len(self.centre)} numbers, from {self.rows} "
            f"steps of {self.episodes} episodes: {self.total:.1%} of the variance"
        )
        left = "" if self.kept == 1 else f"\n{1 - self.kept:.1%} of the steps left out as outliers"
        found = "" if self.converged else "\nthe search did not converge: ask for fewer directions or more steps"
        return f"{head}{left}{found}\n{style.table(header, rows)}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Variance and stability of each direction."""
        ax = self.axes(ax)
        at = np.arange(self.count)
        ax.bar(at, self.share, color=style.COLOURS[5], label="share of variance")
        for values, colour, marker, label, shift in (
            (self.stability, style.COLOURS[0], "o", "stability (episodes drawn again)", -0.1),
            (self.by_chance, style.CONTROL_COLOUR, "s", "random directions", 0.1),
        ):
            if len(values):
                middle, ends = values.mean(0), np.quantile(values, [0.025, 0.975], axis=0)
                bars = np.maximum([middle - ends[0], ends[1] - middle], 0)
                ax.errorbar(at + shift, middle, bars, fmt=marker, ms=4, color=colour, label=label, lw=1)
        ax.set_ylim(0, 1.05)
        ax.set_xticks(at[:: max(1, self.count // 16)])
        return style.finish(ax, f"direction of {self.site} ({self.method})", "share or correlation")

    def plot_scatter(self, colour: np.ndarray, name: str, first: int = 0, second: int = 1) -> Any:
        """Two directions of the sampled steps, coloured by a covariate of all steps; the display map beside, if any."""
        from matplotlib import pyplot as plt

        panels = [(self.sample[:, [first, second]], f"{self.method} {first}", f"{self.method} {second}")]
        if len(self.map):
            panels.append((self.map, "map, for display only", ""))
        figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4), layout="constrained", squeeze=False)
        for ax, (points, x, y) in zip(axes[0], panels):
            dots = ax.scatter(*points.T, c=np.asarray(colour)[self.sample_rows], s=5, cmap="viridis")
            style.finish(ax, x, y)
        figure.colorbar(dots, ax=axes, label=name)
        return figure
