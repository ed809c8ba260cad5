"""study_maze: the Memory Maze probing benchmark on an agent, beside a constant guess, its place alone and an oracle."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.result import Provenance, Result
from torchmem.studies.folder import StudyFolder
from torchmem.studies.maze.features import Truth, check_agent, read_sites, truth_of
from torchmem.studies.maze.heads import HeadPlan, Source, fit_head
from torchmem.studies.maze.result import MazeResult, MazeRow
from torchmem.studies.maze.scores import ball_squares, by_age, constant, predict, walls_right
from torchmem.studies.maze.teach import TeachPlan, teach_oracle, teach_world
from torchmem.studies.maze.trajectories import MazeSet, MazeSetError, open_set
from torchmem.surgery.model import untrained
from torchmem.surgery.record import weights_hash

log = logging.getLogger("torchmem")
KINDS = ("walls", "balls")
NOTES = {
    "constant": "every cell as it mostly is, every ball at its mean place; it has seen nothing",
    "place alone": "probes of position and heading without any latent",
    "untrained": "the same kind of agent before learning",
    "agent": "the agent as it was given",
    "learned here": "a fresh agent whose world model learned from the training trajectories",
    "oracle": "a fresh agent of the kind, trained with the probes' gradients on the training trajectories",
}


@dataclasses.dataclass(frozen=True)
class _Bench:
    train: MazeSet
    held: MazeSet
    truth: Truth  # of the training trajectories
    asked: Truth  # of the held-out ones
    plan: HeadPlan
    seed: int
    device: torch.device
    progress: bool

    def row(self, name: str, provenance: Provenance, model: Any = None, sites: Sequence[str] = ()) -> MazeRow:
        """Probe what the sites of `model` hold; without a model, what the place alone tells."""
        told: dict[str, Tensor] = {}
        latents: list[Tensor | None] = [None, None]
        if model is not None:
            latents = [
                read_sites(model, walks, sites, seed=self.seed, progress=self.progress)
                for walks in (self.train, self.held)
            ]
        for kind in KINDS:
            place = self.plan.sees_place(kind) or model is None
            head = fit_head(kind, Source(latents[0], self.truth, place), self.plan, self.seed, self.device)
            told[kind] = predict(head, Source(latents[1], self.asked, place))
        return self.score(name, told["walls"], told["balls"], provenance)

    def score(self, name: str, walls: Tensor, balls: Tensor, provenance: Provenance) -> MazeRow:
        squares = ball_squares(balls, self.asked)
        age, count = by_age(squares, self.asked)
        return MazeRow(
            row=name, walls=walls_right(walls, self.asked), squares=squares.mean((1, 2)).double().numpy(), age=age,
            count=count, note=NOTES[name], provenance=provenance,
        )  # fmt: skip


def study_maze(
    model: Any,
    out: str | Path,
    data: str | Path,
    *,
    sites: Sequence[str] = (),
    heads: HeadPlan | None = None,
    teach: TeachPlan | None = None,
    learn: bool = True,
    limit: tuple[int, int] = (2000, 200),
    seed: int = 0,
    progress: bool = False,
) -> Mapping[str, Result]:
    """Walls and balls from what an agent holds along the set `data`, written to `out`; finished rows are read.

    sites: what is probed, one after another; default: the memory and, where there is one, the stochastic state.
    heads, teach: the probes, and the training of the oracle and of the world model. learn: also train a world model on
    the set (agents that have one). limit: most trajectories that are used for training and evaluation.
    Parts: one `MazeRow` per row, and "benchmark" (`MazeResult`). Raises MazeSetError, StudyError, UnknownSite.
    """
    heads, teach = heads or HeadPlan(), teach or TeachPlan()
    chosen = [model.find(site).name for site in sites or default_sites(model)]
    whole = open_set(data)
    train, held = (MazeSet(part.files[:most]) for part, most in zip(whole, limit, strict=True))
    if (len(train), len(held)) != tuple(map(len, whole)):
        log.info("maze: %d and %d of %d and %d trajectories are used", len(train), len(held), *map(len, whole))
    check_agent(model, train[0])
    truth, asked = truth_of(train), truth_of(held)
    if truth.place.shape[1:] != asked.place.shape[1:] or truth.walls.shape[1:] != asked.walls.shape[1:]:
        raise MazeSetError("training and evaluation trajectories differ in length or size")
    settings = {
        "sites": chosen, "heads": dataclasses.asdict(heads), "teach": dataclasses.asdict(teach), "seed": seed,
        "mazes": [len(train), len(held)], "learn": learn,
        "layouts": hashlib.sha256("".join(train.layouts() + held.layouts()).encode()).hexdigest(),
        "weights": weights_hash(model.agent),
    }  # fmt: skip
    folder = StudyFolder(out, "maze", settings)
    here = folder.provenance(model, {"study": seed})
    bench = _Bench(train, held, truth, asked, heads, seed, model.agent.device, progress)
    rows: dict[str, Callable[[], MazeRow]] = {
        "constant": lambda: bench.score("constant", *constant(truth), here),
        "place alone": lambda: bench.row("place alone", here),
        "untrained": lambda: bench.row("untrained", here, untrained(model, seed), chosen),
        "agent": lambda: bench.row("agent", here, model, chosen),
        "oracle": lambda: bench.row("oracle", here, teach_oracle(model, train, chosen, teach, heads, seed, progress),
                                    chosen),
    }  # fmt: skip
    if learn and hasattr(model.agent, "world_loss"):
        rows["learned here"] = lambda: bench.row(
            "learned here", here, teach_world(model, train, teach, seed, progress), chosen)
    found: dict[str, MazeRow] = {}
    for name in [name for name in NOTES if name in rows]:
        part = folder.part(name.replace(" ", "_"), rows[name])
        assert isinstance(part, MazeRow)
        found[name] = part
    folder.part("benchmark", lambda: MazeResult(
        size=round(truth.walls.shape[1] ** 0.5), mazes=(len(train), len(held)), steps=truth.place.shape[1] - 1,
        rows={name: row.numbers() for name, row in found.items()}, age={name: row.age for name, row in found.items()},
        count=next(iter(found.values())).count, notes={name: row.note for name, row in found.items()},
        settings=settings, provenance=here,
    ))  # fmt: skip
    folder.report("Memory Maze: what the memory holds of walls and balls", INTRO, {
        "benchmark": "All rows", **{name.replace(" ", "_"): name for name in found},
    }, {"benchmark": NOTE})  # fmt: skip
    return {"benchmark": folder.parts["benchmark"]}


INTRO = (
    "An agent is led along trajectories of a scripted walker (Memory Maze's offline set) and remembers what it sees. "
    "Probes learn from other mazes to tell, from what it holds at a moment, the walls of the whole maze and where the "
    "balls lie. The score is that of the second half of each trajectory."
)
NOTE = (
    "Walls are told from latent and place, so compare with 'place alone'; balls (by default) from the latent alone, so "
    "compare with 'constant' and 'untrained'. Errors by age say for how long something is held: a ball in view can be "
    "read from the picture of that moment, one that was seen long ago only from memory."
)


def default_sites(model: Any) -> list[str]:
    """The memory, and the stochastic state of agents that have one: the paper's latent."""
    return ["memory", *(["dynamics.stoch"] if "dynamics.stoch" in model.sites else [])]
