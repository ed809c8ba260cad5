"""What a fidelity report says, and whether analyses may trust the simulator."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from torchmem.analysis.style import COLOURS, finish, number, table
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GATED = ("observation", "memory", "kl")
TITLES = {
    "observation": "observation, squared error per number",
    "memory": "agent's memory, squared error / variance",
    "kl": "agent's policy, KL (nats)",
    "agree": "agent's mode action, agreement",
    "value": "agent's value, absolute error",
    "reward": "reward, squared error",
    "end": "end of episode, Brier score",
}


@dataclasses.dataclass(frozen=True)
class FidelityResult(Result):
    """How well a simulator does on held-out levels.

    mean, low, high: <what>.<view> -> (H,), by simulated step; 95% intervals over levels. H counts from the first
    simulated step, at which the copy is the truth. ratio: <what> -> (3,) error of the simulator / error of the copy
    over steps 1..gate, with its interval; below 1 is better than copying. closed: what the agent meets when it acts in
    the simulator, and met: name -> (3,). calibration (bins, 3): predicted probability of the end, how often it came,
    how many steps. realism: distance to the nearest real frame, see `latent_realism`; empty without a latent space.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.0, 4.0)

    simulator: str  # folder
    weights: str  # hash of the simulator's weights
    recording: str
    levels: int
    windows: int
    horizon: int
    gate: int
    limit: float
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    ratio: dict[str, np.ndarray]
    closed: dict[str, np.ndarray]
    calibration: np.ndarray
    realism: dict[str, float]

    @property
    def failed(self) -> list[str]:
        """The gated measures that are not better than copying the last frame, with confidence."""
        return [what for what in GATED if not self.ratio[what][2] < self.limit]

    @property
    def passed(self) -> bool:
        return not self.failed

    def summary(self) -> str:
        steps = sorted({1, self.gate, self.horizon - 1} & set(range(self.horizon)))
        rows = []
        for what, title in TITLES.items():
            for view in ("simulated", "copy", "seen"):
                values = self.mean.get(f"{what}.{view}")
                if values is not None:
                    rows.append([f"{title}: {view}", *(number(float(values[s])) for s in steps)])
        lines = [
            f"{self.simulator} on {self.windows} windows of {self.levels} held-out levels ({self.recording})",
            table(["", *(f"step {s}" for s in steps)], rows),
            f"error over steps 1..{self.gate} as a share of copying the last frame (95% interval over levels):",
            *(f"  {what:<12} {interval(self.ratio[what])}" for what in self.ratio),
            "closed loop, the agent acting by itself (95% interval over levels):",
            *(f"  {name:<14} {interval(value)}" for name, value in self.closed.items()),
        ]
        if self.realism:
            told = ", ".join(f"{name} {number(value)}" for name, value in self.realism.items())
            lines.append(f"distance of first frames to the nearest real one: {told}")
        verdict = f"FAILED on {', '.join(self.failed)}" if self.failed else "passed"
        lines.append(f"gate (all of {', '.join(GATED)} surely below {self.limit:g}): {verdict}")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Error of the observation by simulated step: simulator, copy, and what it draws when it sees."""
        return self.draw(self.axes(ax), "observation")

    def draw(self, ax: Axes, what: str) -> Axes:
        """One measure by simulated step, with its controls."""
        views = ("simulated", "copy", "seen")
        names = {"simulated": "simulated", "copy": "last frame copied", "seen": "redrawn while seen"}
        steps = np.arange(self.horizon)
        for view, colour in zip(views, COLOURS):
            name = f"{what}.{view}"
            if name in self.mean:
                ax.plot(steps, self.mean[name], color=colour, label=names[view])
                ax.fill_between(steps, self.low[name], self.high[name], color=colour, alpha=0.2, lw=0)
        ax.set_ylim(bottom=0)
        return finish(ax, "simulated step", TITLES[what].replace(", ", ",\n"))

    def figure(self):
        """All measures, one panel each, as one figure."""
        from matplotlib.figure import Figure

        known = [what for what in TITLES if f"{what}.simulated" in self.mean]
        figure = Figure(figsize=(12, 9), layout="constrained")
        axes = figure.subplots(3, 3).flat
        for ax, what in zip(axes, known):
            self.draw(ax, what)
            if what != known[0]:
                ax.get_legend().remove()  # type: ignore[union-attr]
            else:
                ax.legend(frameon=False, fontsize=8, loc="center right")
        ax = axes[len(known)]
        ax.plot([0, 1], [0, 1], color="0.6", lw=1)
        ax.plot(self.calibration[:, 0], self.calibration[:, 1], "o-", color=COLOURS[0])
        finish(ax, "predicted probability of the end", "how often\nit came")
        ax = axes[len(known) + 1]
        pairs = [("return", "closed.return", "real.return"), ("end", "closed.end", "real.end")]
        for i, (_, mine, real) in enumerate(pairs):
            for shift, name, colour, label in ((-0.1, mine, COLOURS[0], "in the simulator"),
                                               (0.1, real, COLOURS[1], "recorded")):  # fmt: skip
                middle, low, high = self.closed[name]
                bars = [[middle - low], [high - middle]]
                ax.errorbar([i + shift], [middle], bars, fmt="o", color=colour, label=None if i else label)
        ax.set_xticks([0, 1], ["rewards", "episode ends"])
        ax.set_xlim(-0.5, 1.5)
        finish(ax, "", "mean over windows", legend_columns=2)
        return figure


def interval(value: np.ndarray) -> str:
    """ "0.31 [0.25, 0.40]"."""
    middle, low, high = (number(float(v)) for v in value)
    return f"{middle} [{low}, {high}]"
