"""DynamicsResult: what each direction does to each other one later, by gradient and by correlation, and whether the two
tell one story."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis.style import COLOURS, CONTROL_COLOUR, finish, number, table
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class DynamicsResult(Result):
    """K directions; arrays (L, K, K) by lag 0..L-1: row the earlier direction, column the later one.

    jacobian[way]: mean over samples of the slope of the later y by the earlier y, everything else of the memory held,
    in standard deviations of y; jacobian_low, jacobian_high: 95 % over starting episodes; jacobian_p: two-sided.
    correlation, regression: of a recording (see LagsResult), regression in standard deviations too; regression_p.
    agreement[way]: (L, 6) of lags > 0, unlike pairs, of jacobian and regression: share of equal signs, its mean without
    links (LagsResult.unlinked), p of that, p with the labels of the directions exchanged; weighted agreement (cosine
    of the two matrices) and p of their product without links. "<way> (r)": of jacobian and plain correlation against
    episodes exchanged; a correlation also holds what both directions owe to a third.
    edges: rows (way, lag, from, to, jacobian, regression, p, stands), best first: p is the larger of the two, signs
    that differ count as 1; stands: at 5 % false discoveries over all lags and unlike pairs of that way. Hypotheses: a
    gradient is no intervention.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.2)

    simulator: str
    site: str
    names: tuple[str, ...]
    samples: int
    jacobian: dict[str, np.ndarray]
    jacobian_low: dict[str, np.ndarray]
    jacobian_high: dict[str, np.ndarray]
    jacobian_p: dict[str, np.ndarray]
    correlation: np.ndarray
    regression: np.ndarray
    regression_p: np.ndarray
    agreement: dict[str, np.ndarray]
    edges: list[tuple[str, int, int, int, float, float, float, bool]]
    settings: dict[str, Any]

    def table(self) -> dict[str, list]:
        """Columns of `edges`."""
        names = ("way", "lag", "from", "to", "jacobian", "regression", "p", "stands")
        return {name: [edge[i] for edge in self.edges] for i, name in enumerate(names)}

    def summary(self) -> str:
        rows = []
        for way, values in self.agreement.items():
            for lag in range(1, len(values)):
                same, chance, p_time, p_label, cosine, p_cosine = (number(float(v)) for v in values[lag])
                rows.append([f"{way}, lag {lag}", same, chance, p_time, p_label, cosine, p_cosine])
        header = ["gradient by", "same sign", "(null)", "p", "p labels", "cosine", "p"]
        standing = [e for e in self.edges if e[7]]
        lines = [
            f"{self.simulator}: {len(self.names)} directions of {self.site}, {self.samples} rollouts; do gradients and "
            f"lagged correlations agree?",
            table(header, rows),
            f"{len(standing)} of {len(self.edges)} edges stand in both; hypotheses, best first:",
        ]
        lines += [
            f"  {self.names[a]} -> {self.names[b]} after {lag} ({way}): slope {j:+.3f}, regression {r:+.3f}, p {p:.2g}"
            for way, lag, a, b, j, r, p, _ in standing[:10]
        ]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Agreement of signs by lag and way, with its chance level."""
        ax = self.axes(ax)
        shown = {way: values for way, values in self.agreement.items() if way in self.jacobian}
        for (way, values), colour in zip(shown.items(), COLOURS):
            lags = np.arange(1, len(values))
            ax.plot(lags, values[1:, 0], "o-", color=colour, label=f"same sign, {way}")
            ax.plot(lags, values[1:, 4], "^:", color=colour, label=f"cosine, {way}")
        first = next(iter(self.agreement.values()))
        ax.plot(np.arange(1, len(first)), first[1:, 1], "s--", color=CONTROL_COLOUR, label="same sign, without links")
        ax.set_ylim(min(-0.05, float(np.nanmin([v[1:, 4].min() for v in shown.values()]))), 1.05)
        ax.set_xticks(np.arange(1, len(first)))
        return finish(ax, "lag (steps)", "agreement of gradient\nand correlation", legend_columns=2)

    def figure(self) -> Any:
        """Jacobians of each way, correlation and regression, lag by lag."""
        from matplotlib.figure import Figure

        rows = [*((f"slope, {way}", value) for way, value in self.jacobian.items()), ("correlation", self.correlation),
                ("regression", self.regression)]  # fmt: skip
        lags = range(1, len(self.correlation))
        figure = Figure(figsize=(2.2 * len(lags) + 1.2, 2.2 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(lags), squeeze=False)
        for row, (line, (name, values)) in enumerate(zip(axes, rows)):
            limit = max(float(np.abs(values[1:]).max()), 1e-9)
            for ax, lag in zip(line, lags):
                shown = ax.imshow(values[lag], cmap="RdBu_r", vmin=-limit, vmax=limit)
                ax.set_xticks([])
                ax.set_yticks([])
                if row == 0:
                    ax.set_title(f"{lag} later", fontsize=9)
            line[0].set_ylabel(name, fontsize=9)
            figure.colorbar(shown, ax=line[-1])
        figure.supylabel("earlier direction", fontsize=9)
        return figure
