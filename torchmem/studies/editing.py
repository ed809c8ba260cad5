"""study_editing: rewrite what an agent does by changing its circuit only, beside every other set of weights as large.

For each edit (behaviour_edits.py) and each set of weights: learn the new behaviour from a few forced episodes, keep the
old one in episodes that are not meant, leave all other weights bit-equal, and see in fresh episodes what came of it.
A random set of weights may serve as well as the circuit; so the numbers stand side by side, and success alone is no
evidence that the circuit is special.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.style import finish
from torchmem.result import Provenance, Result
from torchmem.studies.behaviour_edits import BehaviourEdit, EditSet, edits_of
from torchmem.studies.folder import StudyFolder
from torchmem.studies.masked_training import Trained, imitate, train_masked
from torchmem.surgery.delta_math import same_bits
from torchmem.surgery.gates import top
from torchmem.surgery.mask_controls import Masks
from torchmem.surgery.policy_distance import Bed, substituted
from torchmem.surgery.weight_delta import WeightDelta
from torchmem.surgery.weight_edit import weights_hash
from torchmem.surgery.weight_mask import WeightMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("torchmem")
MODES = ("circuit", "circuit core", "random", "last layer", "sparse", "full", "task vector", "none")
GOOD = 0.99  # of the held-out episodes: training stops


@dataclasses.dataclass(frozen=True)
class EditingResult(Result):
    """One edit. rows: set of weights -> edit, keep and lost in fresh episodes (see `EditSet.judge`), locality (keep
    over the untouched agent's), weights that may move, norm of the change and its share of these weights' norm, rate,
    steps, restored (1 where -delta gives back every bit), and "edit <size>" in other sizes of the world. efficiency:
    set of weights -> examples -> edit success in the same fresh episodes.
    """

    edit: str
    examples: int
    episodes: int
    rows: dict[str, dict[str, float]]
    efficiency: dict[str, dict[int, float]]

    def table(self) -> dict[str, list]:
        """One row per set of weights."""
        keys = list(next(iter(self.rows.values())))
        rows = self.rows.values()
        return {"set": list(self.rows), **{k: [row.get(k, float("nan")) for row in rows] for k in keys}}

    def summary(self) -> str:
        lines = [
            f"{self.edit}: learned from {self.examples} episodes, judged on {self.episodes} fresh ones",
            f"{'weights that may move':<22} {'count':>7} {'edit':>6} {'keep':>6} {'lost':>6} {'|dW|':>7} "
            f"{'|dW|/|W|':>9} {'rate':>6} {'steps':>6} {'restored':>8}",
        ]
        for name, row in self.rows.items():
            lines.append(
                f"{name:<22} {row['weights']:7.0f} {row['edit']:6.3f} {row['keep']:6.3f} {row['lost']:6.3f} "
                f"{row['norm']:7.2f} {row['share']:9.3f} {row['rate']:6g} {row['steps']:6.0f} {row['restored']:8.0f}"
            )
            others = ", ".join(f"{k.removeprefix('edit ')}: {v:.3f}" for k, v in row.items() if k.startswith("edit "))
            lines += [f"    elsewhere: {others}"] if others else []
        for name, curve in self.efficiency.items():
            lines.append(f"examples, {name}: " + ", ".join(f"{n}: {v:.3f}" for n, v in curve.items()))
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        place = np.arange(len(self.rows))
        for shift, key, colour in ((-0.2, "edit", "tab:red"), (0.2, "keep", "tab:blue")):
            ax.bar(place + shift, [row[key] for row in self.rows.values()], 0.4, color=colour, label=key)
        ax.set_xticks(place, list(self.rows), rotation=45, ha="right")
        ax.set_ylim(0, 1.05)
        return finish(ax, self.edit, "share of episodes")


def study_editing(
    model: Any,
    out: str | Path,
    circuit: WeightMask,
    *,
    edits: Sequence[BehaviourEdit] | None = None,
    modes: Sequence[str] = MODES,
    examples: int = 64,
    kept: int = 128,
    episodes: int = 500,
    steps: int = 80,
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    most: int = 2000,
    beta: float = 1.0,
    shrink: float = 0.0,
    sweep: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Result]:
    """Every edit with every set of weights, written to the folder `out`; edits done earlier are read.

    circuit: as `study_circuits` found it on these weights. edits: default, those built in for the world. examples:
    episodes that an edit learns from; kept: others that hold the old behaviour. rates: of Adam, the best on held-out
    episodes is taken. most: steps of each. beta, shrink: prices of leaving the old behaviour and of the squared change.
    sweep: other numbers of examples, for the circuit, random and full sets. Raises ValueError where the circuit does
    not fit.
    """
    circuit.check(model.agent)
    found = list(edits_of(model.spec).values()) if edits is None else list(edits)
    settings = {
        "modes": list(modes), "examples": examples, "kept": kept, "episodes": episodes, "steps": steps,
        "rates": list(rates), "most": most, "beta": beta, "shrink": shrink, "sweep": list(sweep), "seed": seed,
        "circuit": circuit.digest, "weights": weights_hash(model.agent),
        "world": [model.spec.name, dict(model.spec.kwargs)],
    }  # fmt: skip
    folder = StudyFolder(out, "editing", settings)
    provenance = folder.provenance(model, {"study": seed})
    for edit in found:
        work = _Work(model, circuit, edit, settings)
        folder.part(edit.name, lambda work=work: work.result(provenance, folder.path / "changes"))
    headings = {edit.name: f"Edit: {edit.name}" for edit in found}
    folder.report(f"Editing the circuit of {model.spec.name}", INTRO, headings, {})
    return folder.parts


class _Work:
    """One edit on one agent."""

    def __init__(self, model: Any, circuit: WeightMask, edit: BehaviourEdit, settings: Mapping[str, Any]) -> None:
        self.model, self.edit, self.s = model, edit, settings
        self.circuit: Masks = dict(circuit.masks)
        seed = settings["seed"]
        self.train = EditSet.draw(model.spec, edit, settings["examples"] + settings["kept"], seed + 11)
        self.held = EditSet.draw(model.spec, edit, 128, seed + 12)
        self.fresh = EditSet.draw(model.spec, edit, settings["episodes"], seed + 13)
        self.own = {name: p.detach() for name, p in model.agent.named_parameters()}

    def result(self, provenance: Provenance, changes: Path) -> EditingResult:
        """changes: where each change is written, as <edit>_<set>.safetensors."""
        changes.mkdir(exist_ok=True)
        before = self.fresh.judge(self.model, self.s["steps"])
        beds = self.beds(self.s["examples"])
        rows = {}
        for mode in self.s["modes"]:
            log.info("editing: %s, %s", self.edit.name, mode)
            rows[mode], delta = self.row(mode, beds, before)
            if delta.deltas:
                delta.save(changes / f"{self.edit.name}_{mode.replace(' ', '_')}.safetensors")
        efficiency: dict[str, dict[int, float]] = {}
        for n in self.s["sweep"]:
            fewer = self.beds(n)
            for mode in ("circuit", "random", "full"):
                trained, _ = self.best(self.masks(mode, fewer), fewer)
                efficiency.setdefault(mode, {})[n] = self.judged(trained.delta, self.fresh)["edit"]
        return EditingResult(
            edit=self.edit.name, examples=self.s["examples"], episodes=self.s["episodes"], rows=rows,
            efficiency=efficiency, provenance=provenance,
        )  # fmt: skip

    def beds(self, examples: int) -> tuple[Bed, Bed | None]:
        """What is wanted, of so many episodes that the edit means, and what is to be kept."""
        meant = self.train.applies.nonzero().squeeze(1).tolist()[:examples]
        others = (~self.train.applies).nonzero().squeeze(1).tolist()[: self.s["kept"]]
        wanted = self.train.some(meant).bed(self.model, True, self.s["steps"])
        if wanted is None:
            raise ValueError(f"edit {self.edit.name} means none of {len(self.train)} episodes of this world")
        return wanted, self.train.some(others).bed(self.model, False, self.s["steps"]) if others else None

    def masks(self, mode: str, beds: tuple[Bed, Bed | None]) -> Masks:
        """Which weights may move."""
        count = sum(int(mask.sum()) for mask in self.circuit.values())
        if mode == "circuit":
            return self.circuit
        if mode == "circuit core":
            return {n: m for n, m in self.circuit.items() if n.startswith(("core.", "dynamics."))}
        if mode in ("full", "task vector"):
            return {n: torch.ones_like(m) for n, m in self.circuit.items()}
        if mode == "random":
            generator = torch.Generator().manual_seed(self.s["seed"])
            return {
                n: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view_as(m)
                for n, m in self.circuit.items()
            }
        if mode == "last layer":
            last = [name for name in self.own if name in self.circuit][-1]  # in the order of the pass
            return {last: torch.ones_like(self.circuit[last])}
        if mode == "sparse":
            leaves = {n: self.own[n].clone().requires_grad_() for n in self.circuit}
            with torch.enable_grad():
                grads = torch.autograd.grad(beds[0].surprise(beds[0].policy(leaves)), list(leaves.values()))
            return dict(zip(leaves, top([g.abs() for g in grads], [1] * len(grads), count), strict=True))
        raise ValueError(f"no set of weights is called {mode!r}: choose from {', '.join(MODES)}")

    def row(self, mode: str, beds: tuple[Bed, Bed | None], before: Mapping[str, float]) -> Any:
        """The numbers and the change."""
        if mode == "none":
            delta, rate, steps, free = WeightDelta({}), 0.0, 0, {}
        else:
            free = self.masks(mode, beds)
            trained, rate = self.best(free, beds)
            delta, steps = trained.delta, trained.steps
            if mode == "task vector":
                free = self.circuit
                delta = self.scaled(WeightDelta({n: torch.where(free[n], delta.value(n).to(self.own[n]), 0.0)
                                                 for n in delta.deltas}))  # fmt: skip
        told = self.judged(delta, self.fresh)
        norm = delta.norm() if delta.deltas else 0.0
        inside = sum(float((self.own[n][m] ** 2).sum()) for n, m in free.items()) ** 0.5
        row = {
            **told, "locality": told["keep"] / before["keep"] if before["keep"] else float("nan"),
            "weights": float(sum(int(m.sum()) for m in free.values())), "norm": norm,
            "share": norm / max(inside, 1e-12), "rate": rate, "steps": float(steps),
            "restored": float(self.restores(delta, free)),
        }  # fmt: skip
        for size in self.sizes():
            other = EditSet.draw(self.model.spec, self.edit, 200, self.s["seed"] + 14, {"size": size})
            row[f"edit size {size}"] = self.judged(delta, other)["edit"]
        return row, delta

    def sizes(self) -> list[int]:
        size = self.model.spec.kwargs.get("size")
        least = 7 if self.model.spec.name == "minigrid_memory" else 9
        return [] if size is None else [s for s in (size - 2, size + 2) if s >= least]

    def best(self, masks: Masks, beds: tuple[Bed, Bed | None]) -> tuple[Trained, float]:
        """Of all rates the one with the best held-out episodes, the edit and what is kept alike."""
        tried = []
        for rate in self.s["rates"]:
            trained = train_masked(
                self.own, masks, imitate(*beds, beta=self.s["beta"], seed=self.s["seed"]), rate=rate,
                steps=self.s["most"], shrink=self.s["shrink"], stop=self.good, check=50,
            )  # fmt: skip
            told = self.judged(trained.delta, self.held)
            keep = told["keep"] if told["keep"] == told["keep"] else 1.0
            tried.append((min(told["edit"], keep), -trained.delta.norm(), rate, trained))
        _, _, rate, trained = max(tried, key=lambda item: item[:2])
        return trained, rate

    def good(self, weights: Mapping[str, Tensor]) -> bool:
        with substituted(self.model.agent, dict(weights)):
            told = self.held.judge(self.model, self.s["steps"])
        return told["edit"] >= GOOD and not told["keep"] < GOOD

    def judged(self, delta: WeightDelta, episodes: EditSet) -> dict[str, float]:
        if not delta.deltas:
            return episodes.judge(self.model, self.s["steps"])
        with self.model.edited([delta], guard=False):
            return episodes.judge(self.model, self.s["steps"])

    def scaled(self, delta: WeightDelta) -> WeightDelta:
        """The scale of a task vector that does best on held-out episodes."""
        tried = []
        for scale in (0.5, 1.0, 1.5, 2.0):
            told = self.judged(scale * delta, self.held)
            tried.append((min(told["edit"], told["keep"] if told["keep"] == told["keep"] else 1.0), scale))
        return max(tried)[1] * delta

    def restores(self, delta: WeightDelta, free: Masks) -> bool:
        """Whether weights that may not move are bit-equal under the change, and all are once it is taken off again."""
        if not delta.deltas:
            return True
        after = delta.apply(self.own)
        still = all(same_bits(after[n][~m], self.own[n][~m]) for n, m in free.items() if n in after)
        back = (-delta).apply(after)
        return still and (delta.scale != 1.0 or all(torch.equal(back[n], self.own[n]) for n in self.own))


INTRO = """An edit asks the agent to act, in some episodes, as it would in others: "as if the cue had been the other".
What it does itself in those, forced upon it here, is what it learns from. In episodes that are not meant it is held to
its old policy. Only the named weights may move; a row with a random set as large stands beside the circuit, as success
by itself does not make the circuit special. "Restored" is 1 where all other weights are bit-equal under the change and
taking the change off gives back every bit."""
