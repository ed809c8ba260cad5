"""study_intervention: is the cue in these units, and does the agent act on what they hold? (circuits spec section 7)

Base and source are one episode with either cue and the same actions. At the last step of the delay, with neither cue
nor choice in sight, the memory of the base is changed, most plainly into that of the source. Then the agent plays on
(closed loop: does it go to the other end?), and is led along what the base did (forced: how far does its policy move?).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchmem.intervals import wilson
from torchmem.result import Provenance, Result
from torchmem.studies.cue_runs import Pairs, make_pairs
from torchmem.studies.decisions import interval, normalised
from torchmem.studies.folder import StudyFolder
from torchmem.studies.interventions import Condition, Scene, conditions, halves
from torchmem.studies.memory_sparsity import SparsityResult, measure_sparsity
from torchmem.studies.moments import Ended, Moment
from torchmem.studies.unit_curves import trace_curves
from torchmem.surgery.weight_edit import weights_hash

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class InterventionResult(Result):
    """What each change of the memory did. rows: condition -> numbers, see `table`.

    Of each: group, episodes, flipped (went to the source's target), kept (to its own), lost (to no end in time), extra
    (mean steps more than untouched); moved: normalised difference of logits at the decision, 0 as base and 1 as source,
    with its interval; kl_source, kl_base, js_source in nats, up to the decision. NaN where there is no decision.
    pairs: played, useful, dropped because base and source differed without a cue in sight, without a decision.
    """

    site: str
    pairs: dict[str, int]
    success: tuple[int, int]
    delay: float
    rows: dict[str, dict[str, Any]]

    figure_size = (7.0, 7.0)

    def rate(self, condition: str) -> tuple[float, float, float]:
        """Flip rate with its 95 % interval (Wilson)."""
        row = self.rows[condition]
        return wilson(row["flipped"], row["episodes"])

    def table(self) -> dict[str, list]:
        """Columns, one entry per condition."""
        names = list(next(iter(self.rows.values())))
        out: dict[str, list] = {"condition": list(self.rows)}
        out |= {name: [row[name] for row in self.rows.values()] for name in names}
        rates = [self.rate(name) for name in self.rows]
        return out | {f"flip_rate{end}": [r[i] for r in rates] for i, end in enumerate(("", "_low", "_high"))}

    def summary(self) -> str:
        rate, low, high = wilson(*self.success)
        lines = [
            f"{self.site}: untouched success {rate:.3f} [{low:.3f}, {high:.3f}] of {self.success[1]}; "
            f"{self.pairs['useful']} of {self.pairs['played']} pairs useful ({self.pairs['dropped']} dropped: other "
            f"observations than the cue differed); {self.delay:.1f} steps between cue and choice; "
            f"{self.pairs['undecided']} without a decision",
            f"{'change':<30} {'group':<10} {'flips':>20} {'lost':>6} {'moved':>22} {'KL to source':>12}",
        ]
        for name, row in self.rows.items():
            rate, low, high = self.rate(name)
            moved = f"{row['moved']:.2f} [{row['moved_low']:.2f}, {row['moved_high']:.2f}]"
            lines.append(
                f"{name:<30} {row['group']:<10} {f'{rate:.3f} [{low:.3f}, {high:.3f}]':>20} "
                f"{row['lost'] / row['episodes']:6.3f} {moved:>22} {row['kl_source']:12.3f}"
            )
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        colours = {
            "swap": "tab:red", "subspace": "tab:orange", "knock out": "tab:blue", "wrong time": "tab:olive",
            "control": "tab:gray",
        }  # fmt: skip
        for y, (name, row) in enumerate(self.rows.items()):
            rate, low, high = self.rate(name)
            ax.barh(y, rate, color=colours[row["group"]])
            ax.errorbar(rate, y, xerr=[[rate - low], [high - rate]], color="black", capsize=2, lw=1)
            ax.plot(row["moved"], y, "k|", ms=9, mew=2)
        ax.set_yticks(range(len(self.rows)), list(self.rows), fontsize="small")
        ax.invert_yaxis()
        ax.set(
            xlabel="bar: share of choices that flip (95 %); stroke: normalised logit difference",
            title=f"{self.site} changed at the end of the delay",
        )
        handles = [ax.barh([0], [0], color=c, label=g) for g, c in colours.items()]
        ax.legend(handles=handles, fontsize="small", loc="lower right")
        return ax


def study_intervention(
    model: Any,
    out: str | Path,
    *,
    site: str = "memory",
    pairs: int = 400,
    steps: int = 80,
    hold: int = 3,
    draws: int = 5,
    most: int = 512,
    seed: int = 0,
) -> dict[str, Result]:
    """Interventions, unit rankings and sparsity of one site, written to the folder `out`; parts done earlier are read.

    model: of a batched cue world. pairs: of episodes; one half finds means, directions and ranks, the other half is
    where they are tried. steps: an episode is given to choose. hold: steps of the held swap. draws: of random units.
    most: units that are swapped one by one. Raises TraceError where the agent does not solve its world by memory.
    """
    settings = {
        "site": site, "pairs": pairs, "steps": steps, "hold": hold, "draws": draws, "most": most, "seed": seed,
        "weights": weights_hash(model.agent), "world": [model.spec.name, dict(model.spec.kwargs)],
    }  # fmt: skip
    folder = StudyFolder(out, "intervention", settings)
    provenance = folder.provenance(model, {"worlds": seed})
    made: dict[str, Any] = {}

    def ready() -> tuple[Pairs, Scene, Scene]:
        if not made:
            made["pairs"] = found = make_pairs(model, pairs, steps=steps, seed=seed)
            for name, rows in zip(("fit", "test"), halves(found), strict=True):
                made[name] = Scene.at(model, site, found, rows, found.moment[rows])
        return made["pairs"], made["fit"], made["test"]

    folder.part("interventions", lambda: intervene(model, site, *ready(), hold, seed, provenance))
    more = {"draws": draws, "most": most, "seed": seed, "provenance": provenance}
    folder.part("units", lambda: trace_curves(model, site, *ready()[1:], **more))
    folder.part("sparsity", lambda: sparsity(model, site, ready()[0], seed, provenance))
    folder.report(f"Where {model.spec.name} is remembered: {site}", INTRO, HEADINGS, NOTES)
    return folder.parts


def intervene(
    model: Any, site: str, pairs: Pairs, fit: Scene, test: Scene, hold: int, seed: int, provenance: Provenance
) -> InterventionResult:
    """All conditions, tried on the rows of `test`."""
    rows = {}
    for name, condition in conditions(model, site, fit, test, hold=hold, seed=seed).items():
        played = condition.start.play(model, [condition.changes], steps=test.patience + hold, hold=condition.hold)[0]
        rows[name] = {"group": condition.group, **tally(test, condition.start, condition.source, played)}
        rows[name] |= _forced(model, test, condition)
    outcome = pairs.base.outcome
    return InterventionResult(
        site=site,
        pairs={
            "played": pairs.base.n, "useful": int(pairs.useful.sum()), "dropped": int(pairs.unlike.sum()),
            "undecided": int((~test.decision.found).sum()),
        },
        success=(int((outcome == 1).sum()), len(outcome)),
        delay=float((pairs.choice - pairs.last_cue - 1)[pairs.useful].float().mean()),
        rows=rows,
        provenance=provenance,
    )  # fmt: skip


def tally(scene: Scene, start: Moment, source: Moment, played: Ended) -> dict[str, Any]:
    """Where the rows of a moment ended: at the source's target, at their own, or nowhere in time."""
    cues = scene.pairs.cues
    there = cues.right_under(played.state, source.runs.kinds[source.rows])
    own = cues.right_under(played.state, start.runs.kinds[start.rows])
    untouched = scene.pairs.base.last[start.rows] - start.steps
    ended = there | own
    extra = (played.steps.cpu() - untouched)[ended].float().mean()
    return {
        "episodes": len(start), "flipped": int(there.sum()), "kept": int(own.sum()),
        "lost": int((played.outcome == 0).sum() + (played.outcome == 3).sum()), "extra": float(extra),
    }  # fmt: skip


def _forced(model: Any, test: Scene, condition: Condition) -> dict[str, float]:
    """How far the policy moves along the base's own actions; NaN for conditions that start elsewhere."""
    names = ("moved", "moved_low", "moved_high", "kl_source", "kl_base", "js_source")
    nothing: dict[str, float] = {name: float("nan") for name in names}
    if condition.start is not test.base or not test.decision.found.any():
        return nothing
    logits = test.base.force(
        model, [condition.changes], steps=test.decision.base.shape[1],
        hold=min(condition.hold, test.decision.base.shape[1]),
    )[0]  # fmt: skip
    moved, whole = test.decision.moved(logits)
    low, high = interval(moved, whole)
    return {
        "moved": normalised(moved, whole), "moved_low": low, "moved_high": high, **test.decision.distances(logits)
    }


def sparsity(model: Any, site: str, pairs: Pairs, seed: int, provenance: Provenance) -> SparsityResult:
    """Of the base runs of useful pairs."""
    rows = pairs.useful.nonzero().squeeze(1)
    whole = Moment(pairs.base, rows, torch.zeros_like(rows))
    values = whole.read(model, site, pairs.base.steps)
    step = torch.arange(pairs.base.steps)
    last, choice = pairs.last_cue[rows, None], pairs.choice[rows, None]
    lags = torch.where((step > last) & (step < choice), step - last, -1)
    at = values[torch.arange(len(rows)), pairs.moment[rows]]
    fields = measure_sparsity(at, pairs.base.kinds[rows], values, lags, seed=seed)
    return SparsityResult(site=site, **fields, provenance=provenance)


INTRO = """Base and source are one episode with either cue and the same actions, so that nothing differs but what the
cue left behind. At the last step of the delay, where neither cue nor choice is in sight, the memory of the base is
changed. The agent then plays on (does it choose what the source's cue asks for?), and is led along what the base did
(how far does its policy move towards the source's?)."""
HEADINGS = {
    "interventions": "Changing the memory turns the choice around",
    "units": "How many units it takes",
    "sparsity": "How the cue is spread over the units",
}
NOTES = {
    "interventions": """Red: the source's memory, or what stands for it. Orange: only its part within a few directions.
Blue: the information is taken out. Grey: controls, which should leave the choice alone; "same cue" shows what a donor
from another episode does by itself. Olive: wrong times. "before the cue" exchanges what cannot differ yet; a false
memory put in before the cue is seen shows whether the agent looks all the same; a donor that has not seen the cue knows
nothing, so that the choice is a guess. Means and directions come from one
half of the episodes, the numbers from the other.""",
    "units": """The k best units by five scores are swapped, and k units at random. The flip rate is a matter of
thresholds, the difference of logits is not, so both are shown. Ranks come from one half of the episodes.""",
    "sparsity": """d' of each unit between the cues, beside what it is when the cues of whole episodes are exchanged.
The measures describe the vector of mean differences; a Gaussian vector of the same length shows what no structure
looks like.""",
}
