"""DevelopmentResult: how a circuit's mask does on the weights of earlier days, and how its weights came about."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from torchmem.intervals import wilson
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

YOUNG = (0.55, 0.9)  # success of a checkpoint that has begun to learn and is not done


@dataclasses.dataclass(frozen=True)
class DevelopmentResult(Result):
    """R rungs of a ladder of checkpoints.

    steps: (R,) agent steps. hits: mask -> (R,) successes of `episodes`: "unmasked", "circuit" (the late mask on these
    weights), "random 0", ... as dense in each parameter. lost: the same, episodes that chose nothing. dynamics: per
    rung, see `weight_dynamics`. lottery: the mask on weights that never belonged to it -> success. fitted: steps of
    rungs that had a mask of their own -> kept, score, iou (with the late mask), chance, contained (share of it that the
    late mask holds). matrix: (F, F) success of the mask of fitted rung i on the weights of rung j.
    """

    episodes: int
    kept: int
    steps: np.ndarray
    hits: dict[str, np.ndarray]
    lost: dict[str, np.ndarray]
    dynamics: dict[str, np.ndarray]
    lottery: dict[str, float]
    fitted: dict[str, dict[str, float]]
    matrix: np.ndarray

    figure_size = (7.5, 4.5)

    def rates(self, name: str) -> np.ndarray:
        """(R, 3): success and its 95 % interval. "random": of all draws together."""
        hits, n = self._counted(name)
        return np.array([wilson(int(h), n) for h in hits])

    def _counted(self, name: str) -> tuple[np.ndarray, int]:
        if name != "random":
            return self.hits[name], self.episodes
        draws = [hits for key, hits in self.hits.items() if key.startswith("random")]
        return np.sum(draws, 0), self.episodes * len(draws)

    def gain(self, name: str = "circuit") -> np.ndarray:
        """(R, 3): success under the mask minus that without, and its 95 % interval (Newcombe 1998)."""
        a, b = self.rates(name), self.rates("unmasked")
        gap = a[:, 0] - b[:, 0]
        low = gap - np.hypot(a[:, 0] - a[:, 1], b[:, 2] - b[:, 0])
        high = gap + np.hypot(a[:, 2] - a[:, 0], b[:, 0] - b[:, 1])
        return np.stack([gap, low, high], 1)

    @property
    def young(self) -> np.ndarray:
        """(R,) bool: rungs whose success without a mask lies between 0.55 and 0.9."""
        rate = self.rates("unmasked")[:, 0]
        return (rate > YOUNG[0]) & (rate < YOUNG[1])

    @property
    def clear(self) -> np.ndarray:
        """(R,) bool: young rungs on which the circuit's interval lies above that of the whole agent."""
        return self.young & (self.rates("circuit")[:, 1] > self.rates("unmasked")[:, 2])

    def steps_to(self, name: str, level: float = 0.8) -> int | None:
        """Agent steps at the first rung from which on success stays at this level; None: never."""
        rate = self.rates(name)[:, 0]
        stays = np.flip(np.logical_and.accumulate(np.flip(rate >= level)))
        return int(self.steps[stays.argmax()]) if stays.any() else None

    def table(self) -> dict[str, list]:
        """One row per rung."""
        out: dict[str, list] = {"steps": self.steps.tolist()}
        for name in ("unmasked", "circuit", "random"):
            for i, end in enumerate(("", "_low", "_high")):
                out[name + end] = self.rates(name)[:, i].tolist()
        return out | {name: values.tolist() for name, values in self.dynamics.items()}

    def summary(self) -> str:
        rungs = len(self.steps)
        lines = [f"the late mask ({self.kept} weights) on {rungs} earlier checkpoints, {self.episodes} episodes each"]
        lines.append(f"{'steps':>10} {'unmasked':>22} {'late mask':>22} {'random masks':>22} {'gain':>24}")
        cells = {name: self.rates(name) for name in ("unmasked", "circuit", "random")}
        for i, step in enumerate(self.steps):
            text = " ".join(f"{'{:.3f} [{:.3f}, {:.3f}]'.format(*cells[name][i]):>22}" for name in cells)
            gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*self.gain()[i])
            lines.append(f"{step:10} {text} {gain:>24}{' *' if self.clear[i] else ''}")
        lines.append(
            f"* clear gains at a success of {YOUNG[0]} to {YOUNG[1]}: {int(self.clear.sum())} of "
            f"{int(self.young.sum())} such rungs; random masks gain at most "
            f"{self.gain('random')[self.young, 0].max() if self.young.any() else float('nan'):.3f} there"
        )
        reach = {name: self.steps_to(name) for name in ("unmasked", "circuit")}
        lines.append("steps to 80 %: " + ", ".join(f"{n} {s if s is not None else 'never'}" for n, s in reach.items()))
        lines += [f"the mask on {name}: {score:.3f}" for name, score in self.lottery.items()]
        for step, row in self.fitted.items():
            lines.append(
                f"mask of step {step}: {row['kept']:.0f} kept, success {row['score']:.3f}, IoU with the late one "
                f"{row['iou']:.3f} (chance {row['chance']:.3f}), contains {row['contained']:.1%} of it"
            )
        if self.matrix.size:
            lines.append("success of the mask of step (row) on the weights of step (column): " + ", ".join(self.fitted))
            lines += ["  " + " ".join(f"{value:.2f}" for value in row) for row in self.matrix]
        last = {name: values[-1] for name, values in self.dynamics.items()}
        lines.append("at the last rung: " + ", ".join(f"{name} {value:.3f}" for name, value in last.items()))
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for name, colour in (("unmasked", "black"), ("circuit", "tab:red"), ("random", "tab:gray")):
            rate = self.rates(name)
            label = {"circuit": "late mask"}.get(name, name)
            ax.plot(self.steps, rate[:, 0], color=colour, marker="o", ms=3, label=label)
            ax.fill_between(self.steps, rate[:, 1], rate[:, 2], color=colour, alpha=0.2, lw=0)
        ax.set(xlabel="agent steps", ylabel="success", ylim=(0, 1.02))
        ax.legend()
        return ax
