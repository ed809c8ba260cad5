"""Several experiments beside each other: the same contrasts, one row each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchmem.result import Provenance, Result
from torchmem.studies.updates.experiment import load_experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARED = (
    "change added - before", "change added - null added", "change taken away - before",
    "change taken away - null taken away", "change taken away - noise taken away",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison(Result):
    """K experiments x C contrasts of each one's own term: estimate (K, C), interval (K, C, 2); NaN where absent."""

    names: tuple[str, ...]
    terms: tuple[str, ...]
    changes: tuple[str, ...]
    agents: tuple[int, ...]
    contrasts: tuple[str, ...]
    estimate: np.ndarray
    interval: np.ndarray

    def summary(self) -> str:
        lines = []
        for k, name in enumerate(self.names):
            lines.append(f"{name}: {self.changes[k]}, term {self.terms[k]}, {self.agents[k]} agents")
            for c, text in enumerate(self.contrasts):
                low, high = self.interval[k, c]
                lines.append(f"  {text:<44}{self.estimate[k, c]:+9.4g} [{low:+.4g}, {high:+.4g}]")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        place = np.arange(len(self.contrasts))
        for k, name in enumerate(self.names):
            y = place + 0.12 * k
            error = np.abs(self.interval[k].T - self.estimate[k])
            ax.errorbar(self.estimate[k], y, xerr=error, fmt="o", label=f"{name} ({self.terms[k]})")
        ax.axvline(0, color="0.8", zorder=0)
        ax.set_yticks(place, self.contrasts)
        ax.invert_yaxis()
        ax.set_xlabel("difference of the changed term per episode")
        ax.legend(frameon=False)
        return ax

    def table(self) -> dict[str, list]:
        """Columns for a CSV file."""
        rows = [(k, c) for k in range(len(self.names)) for c in range(len(self.contrasts))]
        return {
            "experiment": [self.names[k] for k, _ in rows], "change": [self.changes[k] for k, _ in rows],
            "term": [self.terms[k] for k, _ in rows], "contrast": [self.contrasts[c] for _, c in rows],
            "estimate": [float(self.estimate[r]) for r in rows], "low": [float(self.interval[r][0]) for r in rows],
            "high": [float(self.interval[r][1]) for r in rows],
        }  # fmt: skip


def compare_experiments(folders: Sequence[str | Path]) -> Comparison:
    """The finished seeds of each folder, pooled. Raises UpdateStudyError."""
    results = [load_experiment(folder) for folder in folders]
    shape = (len(results), len(COMPARED))
    estimate, interval = np.full(shape, np.nan), np.full((*shape, 2), np.nan)
    for k, result in enumerate(results):
        for text, found in result.effects().items():
            if text in COMPARED:
                c = COMPARED.index(text)
                estimate[k, c], interval[k, c] = found.estimate, (found.low, found.high)
    return Comparison(
        names=tuple(Path(f).name for f in folders), terms=tuple(r.term for r in results),
        changes=tuple(" ".join(r.change) for r in results), agents=tuple(len(r.seeds) for r in results),
        contrasts=COMPARED, estimate=estimate, interval=interval,
        provenance=Provenance.here(config={"folders": [str(f) for f in folders]}),
    )  # fmt: skip
