"""InterveneResult: what an edit of directions did, place by place, beside random directions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from torchmem.analysis.style import COLOURS, finish, number, table
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class InterveneResult(Result):
    """O outcomes, D doses, by place ("simulator", "world").

    before (O,) means of the untouched plays. effect, low, high (D, O): mean paired difference with 95 % bounds over
    starts. control (draws, O): the same of random directions at the last dose; p (O,): share of draws that reach the
    size of the effect (the effect counted as one). flips (D,), flips_control (draws,): share of pairs whose usual
    behaviour became another. predicted: outcome -> "+" or "-", told beforehand.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.0, 4.5)

    simulator: str
    changes: str
    outcomes: tuple[str, ...]
    doses: tuple[float, ...]
    before: dict[str, np.ndarray]
    effect: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    control: dict[str, np.ndarray]
    p: dict[str, np.ndarray]
    flips: dict[str, np.ndarray]
    flips_control: dict[str, np.ndarray]
    predicted: dict[str, str]

    def came(self, place: str, outcome: str) -> bool:
        """Whether a prediction came true: the interval at the last dose lies on the side that was told."""
        at = self.outcomes.index(outcome)
        low, high = self.low[place][-1, at], self.high[place][-1, at]
        return bool(low > 0 if self.predicted[outcome] == "+" else high < 0)

    def summary(self) -> str:
        rows = []
        for place in self.effect:
            for o, name in enumerate(self.outcomes):
                doses = [
                    f"{number(self.effect[place][d, o])} [{number(self.low[place][d, o])}, "
                    f"{number(self.high[place][d, o])}]"
                    for d in range(len(self.doses))
                ]
                random = np.abs(self.control[place][:, o]).mean() if len(self.control[place]) else np.nan
                told = "" if name not in self.predicted else (
                    f"{self.predicted[name]} {'came true' if self.came(place, name) else 'did NOT come true'}"
                )  # fmt: skip
                rows.append([f"{place}: {name}", number(self.before[place][o]), *doses, number(random),
                             number(self.p[place][o]), told])  # fmt: skip
            chance = self.flips_control[place].mean() if len(self.flips_control[place]) else np.nan
            turned = [number(f) for f in self.flips[place]]
            rows.append([f"{place}: behaviour flips", "", *turned, number(chance), "", ""])
        header = ["change of", "untouched", *(f"dose {d:g}" for d in self.doses), "|random|", "p", "predicted"]
        return f"{self.simulator}, {self.changes} (matched pairs)\n{table(header, rows)}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Effects at the last dose with intervals, random directions as grey dots."""
        ax = self.axes(ax)
        labels, y = [], 0
        for place, colour in zip(self.effect, COLOURS):
            for o, name in enumerate(self.outcomes):
                middle, low, high = (v[place][-1, o] for v in (self.effect, self.low, self.high))
                random = self.control[place][:, o]
                first = o == 0
                grey = "random directions" if not labels else None
                ax.plot(random, np.full(len(random), y), ".", color="0.6", ms=5, label=grey)
                ax.errorbar([middle], [y], xerr=[[max(middle - low, 0)], [max(high - middle, 0)]], fmt="o", ms=5,
                            color=colour, label=place if first else None)  # fmt: skip
                labels.append(name)
                y += 1
        ax.axvline(0, color="0.8", zorder=0)
        ax.set_yticks(range(y), labels, fontsize=8)
        ax.invert_yaxis()
        return finish(ax, f"change by the edit ({self.changes}), dose {self.doses[-1]:g}", "")
