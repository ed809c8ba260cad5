"""study_sizes: does an agent with a larger memory remember better, sooner, or in more units? (circuits spec 11.1)

Runs that differ in the size of the memory, and by seed: `python train.py -m preset=ppo_memory agent.units=8,16,32,64
seed=0,1,2`. Of each: success in fresh episodes, steps until it stays at 90 %, wall-clock, how many units it takes to
turn the choice around, how evenly the cue is spread, and, if asked for, how many weights a circuit needs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.result import Provenance, Result
from torchmem.studies.cue_runs import make_pairs
from torchmem.studies.folder import StudyFolder
from torchmem.studies.intervention import sparsity
from torchmem.studies.interventions import Scene, halves
from torchmem.studies.mask_play import full_play, play_score
from torchmem.studies.unit_curves import trace_curves
from torchmem.surgery.items import TraceError
from torchmem.surgery.mask import fit_mask
from torchmem.surgery.model import load
from torchmem.training.curves import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("torchmem")
SOLVED = 0.9
COLUMNS = ("units", "success", "low", "high", "steps_to_90", "wall_s", "k90", "k90_share", "participation", "held",
           "circuit", "weights")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SizeResult(Result):
    """One run: the columns of `COLUMNS` by name. NaN: not reached, not asked for, or not to be measured (see note)."""

    run: str
    world: str
    row: dict[str, float]
    note: str

    def summary(self) -> str:
        cells = ", ".join(f"{k} {v:g}" for k, v in self.row.items() if math.isfinite(v))
        return f"{self.run} ({self.world}): {cells}" + (f"; {self.note}" if self.note else "")

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        shown = {k: self.row[k] for k in ("success", "k90_share") if math.isfinite(self.row[k])}
        ax.bar(list(shown), list(shown.values()))
        ax.set(ylim=(0, 1.05), title=self.run)
        return ax


@dataclasses.dataclass(frozen=True)
class SizesResult(Result):
    """All runs. rows: run -> columns of `COLUMNS`; worlds: run -> its world."""

    rows: dict[str, dict[str, float]]
    worlds: dict[str, str]

    figure_size = (9.0, 3.2)

    def table(self) -> dict[str, list]:
        """One row per run."""
        found: dict[str, list] = {"run": list(self.rows), "world": [self.worlds[name] for name in self.rows]}
        return found | {column: [row[column] for row in self.rows.values()] for column in COLUMNS}

    def by_size(self, column: str) -> dict[tuple[str, int], np.ndarray]:
        """(world, units) -> values of its runs, without those that have none; in order."""
        found: dict[tuple[str, int], list[float]] = {}
        for name, row in self.rows.items():
            here = found.setdefault((self.worlds[name], int(row["units"])), [])
            if math.isfinite(row[column]):
                here.append(row[column])
        return {key: np.array(found[key]) for key in sorted(found)}

    def summary(self) -> str:
        lines = [f"{'world':<28} {'units':>6} {'runs':>5}" + "".join(f"{c:>15}" for c in COLUMNS[1:])]
        for world, units in self.by_size("units"):
            cells = []
            for column in COLUMNS[1:]:
                values = self.by_size(column)[world, units]
                cells.append(f"{np.median(values):.3g} ({len(values)})" if len(values) else "-")
            runs = sum(self.worlds[n] == world and int(r["units"]) == units for n, r in self.rows.items())
            lines.append(f"{world:<28} {units:6} {runs:5}" + "".join(f"{c:>15}" for c in cells))
        return "\n".join([*lines, "median over runs (how many have a value)"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Success, steps to 90 %, and k90 as a share of the units, against the units."""
        ax = self.axes(ax)
        ax.axis("off")
        for i, column in enumerate(("success", "steps_to_90", "k90_share")):
            panel = ax.inset_axes((i * 0.36, 0.05, 0.27, 0.85))
            found = self.by_size(column)
            for world in sorted(set(self.worlds.values())):
                sizes = [units for w, units in found if w == world]
                middle = [np.median(found[world, u]) if len(found[world, u]) else math.nan for u in sizes]
                (line,) = panel.plot(sizes, middle, marker="o", ms=3, label=world)
                for u in sizes:
                    each = found[world, u]
                    panel.plot([u] * len(each), each, ".", color=line.get_color(), ms=3, alpha=0.5)
            panel.set_xscale("log", base=2)
            panel.set(title=column.replace("_", " "), xlabel="units of the memory")
            if i == 0:
                panel.legend(fontsize="x-small")
        return ax


def study_sizes(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    metric: str = "eval/score",
    pairs: int = 200,
    episodes: int = 500,
    steps: int = 80,
    alpha: float = 0.0,
    fit_steps: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Result]:
    """Measure every run and compare them by size, written to the folder `out`; runs done earlier are read.

    metric: of metrics.jsonl, for the steps to 90 %. pairs, episodes, steps: of interventions and scores. alpha: price
    of a weight in the search for a circuit; 0: none is sought. Raises ConfigError for a folder that is no run.
    """
    settings = {"metric": metric, "pairs": pairs, "episodes": episodes, "steps": steps, "alpha": alpha,
                "fit_steps": fit_steps, "seed": seed, "runs": [str(run) for run in runs]}  # fmt: skip
    folder = StudyFolder(out, "sizes", settings)
    made_by = Provenance.here(config=settings, seeds={"study": seed})
    rows, worlds = {}, {}
    for number, run in enumerate(runs):
        part = folder.part(f"run_{number}", lambda run=run: measure_run(run, settings, made_by, device))
        assert isinstance(part, SizeResult)
        rows[part.run], worlds[part.run] = part.row, part.world
    folder.part("sizes", lambda: SizesResult(rows=rows, worlds=worlds, provenance=made_by))
    folder.report("How large a memory is needed", INTRO, {"sizes": "By size of the memory"}, {})
    return folder.parts


def measure_run(run: str | Path, settings: dict[str, Any], provenance: Provenance, device: str = "cpu") -> SizeResult:
    """The columns of one run."""
    found, model = read_run(run), load(run, device)
    row: dict[str, float] = dict.fromkeys(COLUMNS, math.nan)
    row["units"] = float(np.prod(model.sites["memory"].shape))
    row["weights"] = float(sum(p.numel() for p in model.agent.parameters()))
    told = play_score(model, episodes=settings["episodes"], steps=settings["steps"], seed=settings["seed"] + 1)
    row |= {"success": told["score"], "low": told["low"], "high": told["high"]}
    x, y = found.series("agent_steps", settings["metric"])
    row["steps_to_90"] = steps_to(x, y, SOLVED)
    row["wall_s"] = float(found.series("agent_steps", "wall_s")[1][-1])
    note = ""
    try:
        pairs = make_pairs(model, settings["pairs"], steps=settings["steps"], seed=settings["seed"])
        fit, test = (Scene.at(model, "memory", pairs, rows, pairs.moment[rows]) for rows in halves(pairs))
        curves = trace_curves(
            model, "memory", fit, test, draws=2, most=0, seed=settings["seed"], provenance=provenance
        )
        best = [k for name, k in curves.k90.items() if k and name not in ("random", "exact")]
        spread = sparsity(model, "memory", pairs, settings["seed"], provenance)
        row |= {"k90": float(min(best, default=math.nan)), "held": float(spread.held.mean()),
                "participation": spread.measures["participation ratio"][0]}  # fmt: skip
        row["k90_share"] = row["k90"] / row["units"]
    except TraceError as error:  # it does not solve its world: that is a finding, too
        note = str(error)
        log.info("sizes: %s: %s", run, note)
    if settings["alpha"] and not note:
        batch, counts = full_play(model, 256, steps=settings["steps"], seed=settings["seed"])
        how = {"alpha": settings["alpha"], "steps": settings["fit_steps"], "rate": 2e-2, "singles": 0}
        row["circuit"] = float(fit_mask(model, batch, weights=counts, **how).kept)
    world = f"{model.spec.name} {model.spec.kwargs.get('size', '')}".strip()
    return SizeResult(run=str(run), world=world, row=row, note=note, provenance=provenance)


def steps_to(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """The first x from which on y stays at the level or above; NaN where it never does."""
    stays = np.flip(np.logical_and.accumulate(np.flip(y >= level)))
    return float(x[stays.argmax()]) if stays.any() else math.nan


INTRO = """Runs that differ in the size of the memory, and by seed. k90 is the smallest number of units, best first,
whose swap turns 90 % as many choices as that of all; participation counts the units over which the difference between
the cues is spread. Points are runs, lines their medians. Absolute numbers and shares stand side by side: with the size
of the memory the share that the circuit can be of the agent changes by itself."""
