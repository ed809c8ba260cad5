"""The five-phase experiment over several seeds, in one folder that an interrupted run goes on with.

    <folder>/study.json                the plan
    <folder>/seed-<n>/                 init, pre, post, post-null, salvage-*: agents; tables/: episodes played;
                                       deltas/<arm>.safetensors; results/<part>: what was found for this seed
    <folder>/effects, phases, ...      over all seeds that are done, with report.html, tables.csv

Seeds are independent: several processes may each do some in one folder, `report` joins what is there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.result import CARD, Result, load_result
from torchmem.studies.folder import StudyFolder, write_csv
from torchmem.studies.updates.branch import begin, configured, merged, train
from torchmem.studies.updates.isolate import isolate_update
from torchmem.studies.updates.plan import UpdatePlan
from torchmem.studies.updates.read_out import ActivationChange, read_activation_change
from torchmem.studies.updates.shelf import Shelf
from torchmem.studies.updates.update_result import UpdateResult, pooled
from torchmem.studies.updates.views import FIGURES, view
from torchmem.surgery.diff import UpdateDiff, update_diff
from torchmem.surgery.weight_mask import WeightMask

log = logging.getLogger("torchmem")
STUDY = "updates"


class UpdateStudyError(TorchmemError):
    """A folder holds no finished experiment; the message says what to do."""


def run_experiment(plan: UpdatePlan, folder: str | Path, seeds: Sequence[int]) -> list[UpdateResult]:
    """Do all phases for each seed, going on where an earlier run stopped, then write the report. Returns by seed.

    Raises StudyError where `folder` holds another experiment, ConfigError for words that do not fit.
    """
    home = StudyFolder(folder, STUDY, plan.to_json())
    for words in (plan.base, (*plan.base, *plan.after, *plan.change), (*plan.base, *plan.test)):
        configured(merged(words), 1, 0)  # refuse a wrong word before anything is trained
    found = [run_seed(plan, home.path / f"seed-{seed}", seed) for seed in seeds]
    report_experiment(home.path)
    return found


def run_seed(plan: UpdatePlan, folder: Path, seed: int) -> UpdateResult:
    """One seed: train, isolate the update, describe it. Finished parts are read back."""
    results = folder / "results"
    if all((results / name / CARD).is_file() for name in ("update", "diff", "activations")):
        log.info("%s: is there already", folder)
        return cast(UpdateResult, load_result(results / "update"))
    shelf = Shelf(folder)
    init = shelf.state("init", lambda: begin(plan.base, seed))
    pre = shelf.state("pre", lambda: train(plan.base, init, plan.pre_steps, seed))
    found = isolate_update(
        pre, plan.base, plan.change, plan.steps, after=plan.after, test=plan.test, term=plan.term, scales=plan.scales,
        salvage=plan.salvage, episodes=plan.episodes, seed=seed, folder=folder, others={"init": init},
    )  # fmt: skip
    for arm, delta in found.deltas.items():
        if not (file := folder / "deltas" / f"{arm}.safetensors").is_file():
            file.parent.mkdir(exist_ok=True)
            delta.save(file)
    result = dataclasses.replace(found.result, steps={"pre": plan.pre_steps, **found.result.steps})
    world = configured(merged(plan.base, plan.test), 1, 0)
    change = found.deltas["change"]
    masks = {"largest tenth of the null's update": largest(found.deltas["null"].deltas, 0.1)}
    parts: dict[str, Result] = {
        "diff": update_diff(pre.agent, change, masks),
        "activations": read_activation_change(
            pre.agent,
            {"change added": found.states["post"].agent, "change taken away": pre.edited(-change).agent,
             "null added": found.states["post null"].agent,
             "null taken away": pre.edited(-found.deltas["null"]).agent,
             "noise taken away": pre.edited(-found.deltas["noise"]).agent},
            sites=plan.sites, targets=plan.targets, env=world.env_name, env_kwargs=world.env_kwargs,
            steps=plan.read_steps, seed=seed,
        ),
        "update": result,
    }  # fmt: skip
    for name, part in parts.items():
        part.save(results / name, overwrite=True)
    return result


def largest(deltas: Mapping[str, Tensor], share: float) -> WeightMask:
    """A mask of the share of weights that an update changed most."""
    flat = torch.cat([d.abs().flatten() for d in deltas.values()])
    least = flat.kthvalue(max(1, int(len(flat) * (1 - share)))).values
    return WeightMask({name: d.abs() > least for name, d in deltas.items()})


def finished(folder: str | Path) -> list[Path]:
    """The seeds' result folders, in order of the seeds. Raises UpdateStudyError where there are none."""
    places = sorted(Path(folder).glob(f"seed-*/results/update/{CARD}"), key=lambda p: int(p.parts[-4].split("-")[1]))
    if not places:
        raise UpdateStudyError(f"{folder} holds no finished seed of `torchmem updates run`: run it first")
    return [p.parent.parent for p in places]


def load_experiment(folder: str | Path) -> UpdateResult:
    """All finished seeds of a folder as one result. Raises UpdateStudyError."""
    return pooled([cast(UpdateResult, load_result(place / "update")) for place in finished(folder)])


def report_experiment(folder: str | Path) -> Path:
    """Write the results over seeds, tables.csv and report.html. Returns the report. Raises UpdateStudyError."""
    folder = Path(folder)
    places = finished(folder)
    result = load_experiment(folder)
    plan = UpdatePlan.from_json(_plan_of(folder))
    study = StudyFolder(folder, STUDY, plan.to_json())
    atomic_write(folder / "tables.csv", result.rows().encode())
    study.parts = dict(view(result))
    for name, part in study.parts.items():
        part.save(folder / name, overwrite=True)
        if hasattr(part, "table"):
            write_csv(folder / f"{name}.csv", part.table())  # type: ignore[attr-defined]
    study.parts["diff"] = cast(UpdateDiff, load_result(places[0] / "diff"))
    study.parts["activations"] = cast(ActivationChange, load_result(places[0] / "activations"))
    first = result.seeds[0]
    headings = {**FIGURES, "diff": f"Where the update lies (seed {first})",
                "activations": f"What it changes in the activations (seed {first})"}  # fmt: skip
    intro = (
        f"An agent learns {result.world} ({' '.join(plan.base)}; {plan.pre_steps:,} agent steps). Then one thing is "
        f"changed ({' '.join(plan.change)}) and it learns {plan.steps:,} steps more; beside it, from the same weights, "
        f"optimiser state and seeds, a null branch learns as long with nothing changed. The question: does the update, "
        f"the difference of the weights, hold the changed thing, more than training on anyway (null) and more than a "
        f"random change as large in every tensor (noise)?\n\n"
        f"{len(result.seeds)} agents (seeds {', '.join(map(str, result.seeds))}), {plan.episodes} paired test episodes "
        f"of each, tested with {' '.join(plan.test) or 'the same world'}. Intervals: 95 % bootstrap over agents and, "
        f"within them, episodes; in brackets Student's over agents alone, and an exact sign-flip test, which for "
        f"{len(result.seeds)} agents can never say less than p = {min(1.0, 2.0 ** (1 - len(result.seeds))):.3f}."
    )
    notes = {
        "effects": f"The changed term ({result.term}) and the return. Below each contrast, what it is read against.",
        "phases": "Mean per episode of every condition; dots are agents.",
        "sweep": "A real direction of behaviour moves on both sides of 0, opposite ways; damage moves one way on both.",
        "salvage": "Taken away, then trained on as before the change. Kept: with the optimiser state that belongs to "
        "the weights after the change; fresh: with none.",
        "modules": "The change taken away in one module alone.",
        "diff": "Share of the squared update by module, beside each module's share of the weights.",
        "activations": "The same inputs through all weights. Old probe: fitted on the activations before.",
    }
    return study.report("Isolating one update", intro, headings, notes)


def _plan_of(folder: Path) -> dict:
    import json

    card = json.loads((folder / "study.json").read_text())
    return {k: v for k, v in card.items() if k != "study"}
