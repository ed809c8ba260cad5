"""CircuitResult: a circuit beside everything that could have kept as many weights, all judged by fresh episodes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class CircuitResult(Result):
    """What `study_circuits` found.

    rows: mask -> kept, score, low, high, lost, correct, return, starts (see `play_score`); of trained weights, then
    "untrained" and "shuffled": the same search on weights that never learned, imitating the same policy, with as many
    weights as the search keeps there; with as many as the circuit, of the highest logits; and the best mask of that
    size, which the gate topk seeks. front: alpha -> kept, score of
    the search's own episodes. sizes: what the kept weights are a share of. minimality: drop of the score for one kept
    weight less, of weights drawn at random. stability: overlap of the masks of several seeds, and by chance.
    elsewhere: world -> score of the full agent and of the circuit. anatomy: part of the core -> (kept, all).
    """

    alpha: float
    episodes: int
    kept: int
    sizes: dict[str, int]
    rows: dict[str, dict[str, float]]
    front: dict[str, tuple[float, float]]
    minimality: np.ndarray
    stability: dict[str, float]
    elsewhere: dict[str, tuple[float, float]]
    roles: dict[str, tuple[int, int]]
    anatomy: dict[str, tuple[int, int]]
    degrees: dict[str, dict[str, float]]
    minutes: float  # wall time of one search, mean over alphas

    figure_size = (8.0, 4.5)

    def faithfulness(self, name: str = "circuit") -> float:
        """(score - random) / (full - random), random being the mean of its draws; NaN where full is not above it."""
        random = float(np.mean([row["score"] for key, row in self.rows.items() if key.startswith("random")]))
        gap = self.rows["full"]["score"] - random
        return (self.rows[name]["score"] - random) / gap if gap > 0 else math.nan

    def table(self) -> dict[str, list]:
        """One row per mask."""
        keys = list(next(iter(self.rows.values())))
        return {"mask": list(self.rows), **{k: [row[k] for row in self.rows.values()] for k in keys}}

    def summary(self) -> str:
        shares = ", ".join(f"{self.kept / size:.3%} of {name} ({size})" for name, size in self.sizes.items())
        lines = [
            f"circuit: {self.kept} weights, {shares}; alpha {self.alpha:g}, found in {self.minutes:.1f} minutes",
            f"faithfulness {self.faithfulness():.3f}; completeness: without the circuit the agent scores "
            f"{self.rows['complement']['score']:.3f}; {self.episodes} fresh episodes per row, "
            f"{self.rows['full']['starts']:.0f} of them different at the start",
            f"{'mask':<28} {'kept':>8} {'success':>22} {'lost':>6} {'right of chosen':>15}",
        ]
        for name, row in self.rows.items():
            rate = f"{row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            correct = f"{row['correct']:.3f}" if math.isfinite(row["correct"]) else "-"
            lines.append(f"{name:<28} {row['kept']:8.0f} {rate:>22} {row['lost']:6.3f} {correct:>15}")
        lines.append("front: " + ", ".join(f"alpha {a}: {int(k)} kept, {s:.3f}" for a, (k, s) in self.front.items()))
        if len(self.minimality):
            worse = float((self.minimality > 0.01).mean())
            lines.append(
                f"minimality: one weight less costs {self.minimality.mean():.4f} of the score (mean of "
                f"{len(self.minimality)}); {worse:.0%} cost more than 0.01"
            )
        if self.stability:
            lines.append(
                f"stability: IoU {self.stability['iou']:.3f} between seeds (least {self.stability['least']:.3f}), "
                f"{self.stability['chance']:.3f} by chance"
            )
        lines += [f"{name}: full {full:.3f}, circuit {mine:.3f}" for name, (full, mine) in self.elsewhere.items()]
        parts = {**self.roles, **self.anatomy}
        lines += [f"  {part:<28} {kept:>8} of {size}" for part, (kept, size) in parts.items()]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for x, (name, row) in enumerate(self.rows.items()):
            colour = "tab:red" if name.startswith("circuit") else "black" if name == "full" else "tab:gray"
            ax.bar(x, row["score"], color=colour)
            ax.errorbar(
                x, row["score"], yerr=[[row["score"] - row["low"]], [row["high"] - row["score"]]], color="black",
                capsize=2, lw=1,
            )  # fmt: skip
            ax.plot(x, row["correct"], "x", color="tab:blue", ms=6)
        ax.plot([], [], "x", color="tab:blue", label="right of those that chose")
        ax.axhline(0.5, color="tab:gray", lw=0.5, ls=":")
        ax.set_xticks(range(len(self.rows)), list(self.rows), rotation=60, ha="right", fontsize="small")
        ax.set(ylabel="success", ylim=(0, 1.05), title=f"{self.kept} weights")
        ax.legend(fontsize="small")
        return ax
