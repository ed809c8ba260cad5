"""`torchmem study NAME RUN`: the arguments of each study. Imports nothing heavy before a study runs.

A new study is one function here: it adds its arguments to the parser and returns what to do with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[argparse.Namespace], Mapping[str, Any]]  # returns the parts, by name
MANY = ("sizes",)  # studies that compare runs
STUDIES: dict[str, Callable[[argparse.ArgumentParser], Run]] = {}


def _study(function: Callable[[argparse.ArgumentParser], Run]) -> Callable[[argparse.ArgumentParser], Run]:
    STUDIES[function.__name__.strip("_").replace("_", "-")] = function
    return function


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    """Add all studies as sub-verbs. Returns what runs the chosen one and tells its findings."""
    found = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    runs = {}
    for name, make in STUDIES.items():
        text = (make.__doc__ or "").strip()
        child = found.add_parser(name, help=text.split(":")[0].rstrip("."), description=text)
        if name in MANY:
            child.add_argument("runs", metavar="RUN", nargs="+", help="run folders, such as multirun/*")
        else:
            child.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder")
        child.add_argument("--out", required=True, metavar="FOLDER", help="of the study; goes on where it stopped")
        child.add_argument("--seed", type=int, default=0, help="of worlds and draws (%(default)s)")
        child.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
        runs[name] = make(child)

    def act(given: argparse.Namespace) -> int:
        for name, part in runs[given.study](given).items():
            say(f"[{name}]\n{part.summary()}\n")
        say(f"report: {given.out}/report.html")
        return 0

    return act


def _open(given: argparse.Namespace) -> Any:
    from torchmem.surgery.model import load

    return load(given.run, given.device)


def _numbers(parser: argparse.ArgumentParser, **options: tuple[Any, str]) -> list[str]:
    """Options with defaults, typed as these are: name=(default, help). Returns their names."""
    for name, (default, text) in options.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar=name[0].upper(),
            help=f"{text} (%(default)s)",
        )  # fmt: skip
    return list(options)


@_study
def intervention(parser: argparse.ArgumentParser) -> Run:
    """Change the memory in the middle of the delay: does the choice turn around, and how many units does it take?"""
    parser.add_argument("--site", default="memory", help="whose values are changed (%(default)s)")
    names = _numbers(
        parser,
        pairs=(400, "episodes, each played with either cue"),
        steps=(80, "steps that an episode is given"),
        hold=(3, "steps of the held swap"),
        draws=(5, "of random units"),
        most=(512, "units that are swapped one by one"),
    )

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.intervention import study_intervention

        settings = {name: getattr(given, name) for name in names}
        return study_intervention(_open(given), given.out, site=given.site, seed=given.seed, **settings)

    return run


@_study
def circuits(parser: argparse.ArgumentParser) -> Run:
    """Find the fewest weights that still solve the world: a mask, its controls, its stability, its parts."""
    parser.add_argument(
        "--alphas", type=float, nargs="+", default=[3e-4, 5e-4, 1e-3], metavar="A", help="prices of a weight, in nats"
    )
    parser.add_argument("--gate", default="gumbel_st", help="gumbel_st, hard_concrete, ste_sigmoid or topk")
    parser.add_argument("--penalty", help="sum_prob (default), sum_logit, l0, lagrangian, constrained or none")
    parser.add_argument("--target", type=float, default=0.01, help="kept share of topk and lagrangian (%(default)s)")
    names = _numbers(
        parser,
        seeds=(3, "masks of the chosen price"),
        rows=(256, "episodes that a search sees"),
        episodes=(500, "of each score"),
        steps=(80, "steps that an episode is given"),
        fit_steps=(3000, "steps of a search"),
        rate=(2e-2, "learning rate of the logits"),
        wander=(0.1, "share of random actions in those episodes"),
        singles=(200, "kept weights that are dropped one by one"),
    )

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.circuits import study_circuits

        fit = {"gate": given.gate, "penalty": given.penalty, "target": given.target}
        settings = {name: getattr(given, name) for name in names}
        return study_circuits(_open(given), given.out, alphas=given.alphas, seed=given.seed, **settings, **fit)

    return run


@_study
def editing(parser: argparse.ArgumentParser) -> Run:
    """Rewrite what the agent does by its circuit only: success, what is kept, and every other set beside it."""
    parser.add_argument(
        "--circuit", required=True, metavar="FILE", help="circuit.safetensors, as `study circuits` wrote it"
    )
    parser.add_argument("--edits", nargs="+", metavar="NAME", help="such as anti_match (default: all of the world)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], metavar="R", help="Adam's, tried")
    parser.add_argument("--sweep", type=int, nargs="*", default=[], metavar="N", help="other numbers of examples")
    names = _numbers(
        parser,
        examples=(64, "episodes that an edit learns from"),
        kept=(128, "other episodes that hold the old behaviour"),
        episodes=(500, "of each score"),
        steps=(80, "steps that an episode is given"),
        most=(2000, "steps of training, at most"),
    )

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.behaviour_edits import edits_of
        from torchmem.studies.editing import study_editing
        from torchmem.surgery.weight_mask import WeightMask

        model = _open(given)
        known = edits_of(model.spec)
        unknown = [name for name in given.edits or [] if name not in known]
        if unknown:
            raise ValueError(f"{model.spec.name} has no edit {unknown[0]!r}; it has {', '.join(known)}")
        settings = {name: getattr(given, name) for name in names}
        return study_editing(
            model, given.out, WeightMask.load(given.circuit, model.agent), rates=given.rates, sweep=given.sweep,
            edits=[known[name] for name in given.edits or known], seed=given.seed, **settings,
        )  # fmt: skip

    return run


@_study
def development(parser: argparse.ArgumentParser) -> Run:
    """When does a circuit form: the late mask on the checkpoints of a training, beside random masks."""
    parser.add_argument(
        "--circuit", required=True, metavar="FILE", help="circuit.safetensors, as `study circuits` wrote it"
    )
    parser.add_argument("--ladder", metavar="FOLDER", help="with agents by their steps (default: RUN's own)")
    parser.add_argument("--others", nargs="*", default=[], metavar="RUN", help="agents of other seeds")
    names = _numbers(
        parser,
        episodes=(500, "of each score"),
        steps=(80, "steps that an episode is given"),
        fits=(4, "checkpoints that get masks of their own"),
        rows=(256, "episodes that their search sees"),
    )

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.development import find_ladder, study_development
        from torchmem.surgery.weight_mask import WeightMask

        model, others = _open(given), {str(path): path for path in given.others}
        settings = {name: getattr(given, name) for name in names}
        return study_development(
            model, given.out, WeightMask.load(given.circuit, model.agent), find_ladder(given.ladder or given.run),
            others=others, seed=given.seed, **settings,
        )  # fmt: skip

    return run


@_study
def sizes(parser: argparse.ArgumentParser) -> Run:
    """Compare runs by the size of their memory: success, steps to 90 %, units that it takes, spread, circuits."""
    parser.add_argument("--metric", default="eval/score", help="of metrics.jsonl, for the steps to 90 %% (%(default)s)")
    names = _numbers(
        parser,
        pairs=(200, "episodes of the interventions"),
        episodes=(500, "of each score"),
        steps=(80, "steps that an episode is given"),
        alpha=(0.0, "price of a weight in the search for a circuit; 0: none is sought"),
        fit_steps=(2000, "steps of that search"),
    )

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.sizes import study_sizes

        settings = {name: getattr(given, name) for name in names}
        return study_sizes(
            given.runs, given.out, metric=given.metric, seed=given.seed, device=given.device, **settings
        )

    return run


@_study
def maze(parser: argparse.ArgumentParser) -> Run:
    """Probe what the memory holds of a maze: walls and balls along Memory Maze's offline set, beside an oracle."""
    parser.add_argument("--data", required=True, metavar="SET", help="as `torchmem collect` or the published archive")
    parser.add_argument("--sites", nargs="+", default=(), metavar="SITE", help="(memory and the stochastic state)")
    heads = _numbers(
        parser,
        hidden=(1024, "units of the probes' layers"),
        updates=(2000, "of each probe"),
    )
    teach = _numbers(
        parser,
        lessons=(1000, "updates of the oracle, and of the world model that learns here"),
        rows=(8, "trajectories side by side in them"),
        length=(48, "steps of them that gradients go back"),
    )
    parser.add_argument("--no-learn", action="store_true", help="train no world model on the set")
    parser.add_argument("--balls-place", action="store_true", help="the balls' probe sees position and heading too")

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from torchmem.studies.maze.heads import HeadPlan
        from torchmem.studies.maze.study import study_maze
        from torchmem.studies.maze.teach import TeachPlan

        plan = {name: getattr(given, name) for name in heads}
        lessons = {"updates" if name == "lessons" else name: getattr(given, name) for name in teach}
        return study_maze(
            _open(given), given.out, given.data, sites=given.sites, seed=given.seed, learn=not given.no_learn,
            heads=HeadPlan(**plan, balls_place=given.balls_place), teach=TeachPlan(**lessons), progress=True,
        )  # fmt: skip

    return run
