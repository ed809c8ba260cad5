"""Recorded runs of the old program as one folder: agents to load, what they recorded per phase, and a page to read.

    <out>/<run>/<phase>/      an agent folder (torchmem.load) of each phase whose weights were kept
    <out>/<run>/update.safetensors   post - pre, a WeightDelta
    <out>/recorded/, ...      results; report.html
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchmem.models.checkpoint import save_agent
from torchmem.result import Provenance, Result
from torchmem.studies.folder import StudyFolder
from torchmem.studies.updates.legacy import META, PHASES, WEIGHTS, LegacyRun, LegacyRunError, import_run
from torchmem.studies.updates.legacy_replay import replay
from torchmem.studies.updates.read_out import read_activation_change
from torchmem.surgery.diff import update_diff

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATISTICS = ("mean", "standard deviation", "share of zeros", "mean without zeros")


@dataclasses.dataclass(frozen=True)
class RecordedTable(Result):
    """What groups of runs recorded, per step: values (G, P, 2, 4), a mean over the runs of each group, NaN where none.

    Axes: group, phase, (total, fuel), `STATISTICS`. spread: (G, P, 2) deviation of the mean between runs. runs: (G,).
    """

    groups: tuple[str, ...]
    phases: tuple[str, ...]
    values: np.ndarray
    spread: np.ndarray
    runs: np.ndarray

    def summary(self) -> str:
        lines = [f"reward per step as recorded: mean (its deviation between runs), then {', '.join(STATISTICS[1:])}"]
        for g, group in enumerate(self.groups):
            lines.append(f"{group}: {self.runs[g]} runs")
            for p, phase in enumerate(self.phases):
                for q, name in enumerate(("total", "fuel")):
                    mean, spread, zeros, rest = self.values[g, p, q]
                    lines.append(f"  {phase:<12}{name:<7}{mean:+.4f} ({self.spread[g, p, q]:.4f})  {spread:.4f}  "
                                 f"{zeros:.3f}  {rest:+.4f}")  # fmt: skip
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mean fuel term per step by phase, a line per group."""
        ax = self.axes(ax)
        for g, group in enumerate(self.groups):
            ax.errorbar(range(len(self.phases)), self.values[g, :, 1, 0], self.spread[g, :, 1], fmt="o-", label=group)
        ax.set_xticks(range(len(self.phases)), self.phases)
        ax.set_ylabel("fuel term per step")
        ax.legend(frameon=False, fontsize=7)
        return ax


def recorded_table(runs: Sequence[LegacyRun]) -> RecordedTable:
    """Runs grouped by rewards and step counts, as the old program's index did."""
    groups: dict[str, list[LegacyRun]] = defaultdict(list)
    for run in runs:
        groups[" ".join(str(run.metadata[key]) for key in META)].append(run)
    each = {name: np.stack([_statistics(run) for run in members]) for name, members in groups.items()}
    return RecordedTable(
        groups=tuple(each), phases=PHASES, values=np.stack([v.mean(0) for v in each.values()]),
        spread=np.stack([v[..., 0].std(0, ddof=1) if len(v) > 1 else np.full(v.shape[1:3], np.nan)
                         for v in each.values()]),
        runs=np.array([len(v) for v in each.values()]),
        provenance=Provenance.here(config={"runs": [run.path.name for run in runs]}),
    )  # fmt: skip


def _statistics(run: LegacyRun) -> np.ndarray:
    """(P, 2, 4)."""
    out = np.full((len(PHASES), 2, len(STATISTICS)), np.nan)
    for p, phase in enumerate(PHASES):
        if phase not in run.rewards:
            continue
        for q in range(2):
            values = run.rewards[phase][:, q]
            rest = values[values != 0]
            out[p, q] = values.mean(), values.std(), (values == 0).mean(), rest.mean() if len(rest) else np.nan
    return out


def import_runs(source: str | Path, out: str | Path, replay_steps: int = 0) -> dict[str, Result]:
    """Import one run or a folder of runs into `out`; see the module. Returns the parts of the report.

    replay_steps: play each policy again, with the old shaping leak. Raises LegacyRunError, StudyError.
    """
    source, out = Path(source), Path(out)
    one = (source / "metadata.json").is_file()
    places = [source] if one else sorted(p.parent for p in source.glob("*/metadata.json"))
    if not places:
        raise LegacyRunError(f"{source} holds no recorded run: no metadata.json there or one folder below")
    runs = [import_run(place) for place in places]
    study = StudyFolder(out, "recorded updates", {"runs": [r.path.name for r in runs], "replay": replay_steps})
    headings, notes = {"recorded": "What was recorded"}, {
        "recorded": "Totals carry the old environment's shaping leak: see the replay."}  # fmt: skip
    study.part("recorded", lambda: recorded_table(runs))
    for run in runs:
        name, agents = run.path.name, run.agents
        for phase in WEIGHTS:
            if not (out / name / phase).is_dir():
                save_agent(agents[phase], out / name / phase)
        if not (file := out / name / "update.safetensors").is_file():
            run.update.save(file)
        study.part(f"{name}-diff", lambda r=run: update_diff(r.agents["pre_update"], r.update))
        others = {"post": agents["post_update"], "sub": agents["sub_update"]}
        study.part(f"{name}-activations", lambda a=agents, o=others: read_activation_change(
            a["pre_update"], o, sites=("actor.mlp", "critic.mlp"), targets=("angle",)))  # fmt: skip
        headings |= {f"{name}-diff": f"{name}: where its update lies",
                     f"{name}-activations": f"{name}: what it changes in the activations"}  # fmt: skip
        if replay_steps:
            study.part(f"{name}-replay", lambda r=run: replay(r, steps=replay_steps, legacy_shaping_leak=True))
            headings[f"{name}-replay"] = f"{name}: its policies played again"
            notes[f"{name}-replay"] = "Crosses are recorded means. Last column: totals without the leak."
    study.report("Recorded runs of isolating-updates", "", headings, notes)
    return study.parts
