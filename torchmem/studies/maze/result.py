"""What the Memory Maze benchmark found: rows, each beside the constant guess and the published ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result
from torchmem.studies.maze.scores import BINS, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# walls right in %, balls' error in cells, of sets with 29,000 training trajectories: Pasukonis et al. 2022, by size.
# For reference only: no row of ours is trained on as much.
PUBLISHED = {
    9: {"constant": (80.8, 4.9), "RSSM (TBTT)": (94.0, 2.5), "supervised oracle": (99.7, 0.5)},
    15: {"constant": (78.3, 8.0), "RSSM (TBTT)": (80.5, 5.8), "supervised oracle": (88.5, 3.0)},
}


@dataclasses.dataclass(frozen=True)
class MazeRow(Result):
    """One row over the second halves of M held-out trajectories.

    walls: (M,) share of cells told right. squares: (M,) mean squared distance of told and true balls, in cells. age
    (bins,): the root of it by steps since the ball was in view (`scores.BINS`), count (bins,) of how many.
    """

    row: str
    walls: np.ndarray
    squares: np.ndarray
    age: np.ndarray
    count: np.ndarray
    note: str

    def numbers(self) -> dict[str, float]:
        """walls in %, balls in cells, each with its 95 % interval over mazes."""
        found = {"walls": float(self.walls.mean()) * 100, "balls": float(np.sqrt(self.squares.mean()))}
        for name, values, root, unit in (("walls", self.walls, False, 100.0), ("balls", self.squares, True, 1.0)):
            low, high = interval(values, root)
            found |= {f"{name}_low": low * unit, f"{name}_high": high * unit}
        return found

    def summary(self) -> str:
        n = self.numbers()
        return (f"{self.row}: walls {n['walls']:.1f} % [{n['walls_low']:.1f}, {n['walls_high']:.1f}], balls "
                f"{n['balls']:.2f} cells [{n['balls_low']:.2f}, {n['balls_high']:.2f}]")  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """The balls' error by steps since they were in view."""
        ax = self.axes(ax)
        ax.plot(BINS, self.age, marker="o", label=self.row)
        return style.finish(ax, "steps since the ball was in view", "error (cells)")


@dataclasses.dataclass(frozen=True)
class MazeResult(Result):
    """All rows, in order. rows: name -> numbers as `MazeRow.numbers`; age, count: name -> (bins,). size: cells a side.

    mazes: trajectories for training and evaluation. settings: of the probes and of what learned.
    """

    size: int
    mazes: tuple[int, int]
    steps: int
    rows: dict[str, dict[str, float]]
    age: dict[str, np.ndarray]
    count: np.ndarray
    notes: dict[str, str]
    settings: dict[str, Any]

    figure_size = (11.0, 4.2)

    def table(self) -> dict[str, list]:
        """One row per row of the benchmark, with its errors by age."""
        found: dict[str, list] = {"row": list(self.rows)}
        for name in next(iter(self.rows.values())):
            found[name] = [row[name] for row in self.rows.values()]
        for i, name in enumerate(BINS):
            found[f"balls, {name}"] = [float(self.age[row][i]) for row in self.rows]
        return found

    def summary(self) -> str:
        def cell(row: dict[str, float], name: str, digits: int) -> str:
            return f"{row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"

        rows = [[name, cell(row, "walls", 1), cell(row, "balls", 2),
                 *(style.number(float(v), 2) for v in self.age[name])] for name, row in self.rows.items()]  # fmt: skip
        rows.append(["(step, ball) pairs", "", "", *(f"{int(n)}" for n in self.count)])
        text = [f"{self.mazes[0]} training and {self.mazes[1]} held-out mazes of {self.size} x {self.size} cells, "
                f"{self.steps} steps; second halves, 95 % over mazes",
                style.table(["row", "walls right, %", "balls' error, cells", *BINS], rows)]  # fmt: skip
        if published := PUBLISHED.get(self.size):
            cells = "; ".join(f"{name} {walls} / {balls}" for name, (walls, balls) in published.items())
            text.append(f"published, from 29,000 training mazes, for reference only: {cells}")
        return "\n".join([*text, *(f"{name}: {note}" for name, note in self.notes.items() if note)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Walls, balls, and balls by age."""
        ax = self.axes(ax)
        ax.axis("off")
        published = PUBLISHED.get(self.size, {})
        names = list(self.rows)
        for i, (what, label) in enumerate((("walls", "walls told right (%)"), ("balls", "balls' error (cells)"))):
            panel = ax.inset_axes((0.08 + i * 0.32, 0.1, 0.22, 0.8))
            for y, name in enumerate(names):
                row = self.rows[name]
                span = [[row[what] - row[f"{what}_low"]], [row[f"{what}_high"] - row[what]]]
                panel.errorbar(row[what], y, xerr=span, fmt="o", color=style.COLOURS[y % len(style.COLOURS)], ms=4)
            for k, (name, values) in enumerate(published.items()):
                panel.axvline(values[i], color=style.CONTROL_COLOUR, lw=0.8, ls=("-", "--", ":")[k % 3],
                              label=f"published: {name}" if i == 0 else None)  # fmt: skip
            panel.set(yticks=range(len(names)), yticklabels=names if i == 0 else [], ylim=(len(names) - 0.5, -0.5))
            panel.tick_params(labelsize=7)
            style.finish(panel, label, "", legend_columns=1)
        panel = ax.inset_axes((0.74, 0.1, 0.26, 0.8))
        for y, name in enumerate(names):
            panel.plot(BINS, self.age[name], marker="o", ms=3, color=style.COLOURS[y % len(style.COLOURS)], label=name)
        panel.tick_params(axis="x", rotation=60, labelsize=7)
        style.finish(panel, "steps since the ball was in view", "balls' error (cells)", legend_columns=2)
        return ax
