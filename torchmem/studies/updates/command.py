"""`torchmem updates TASK`: the arguments of each task. Imports nothing heavy before one runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

Say = Callable[[str], None]


def fill(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], int]:
    """Add the tasks as sub-verbs. Returns what runs the chosen one and tells its findings."""
    found = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    tasks = {}
    for make in (run, report, compare, import_old):
        name = make.__name__.removesuffix("_old")
        text = (make.__doc__ or "").strip()
        tasks[name] = make(found.add_parser(name, help=text.split(":")[0].rstrip("."), description=text), say)

    def act(given: argparse.Namespace) -> int:
        tasks[given.task](given)
        return 0

    return act


def run(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], None]:
    """Train, change one thing, train on, take the update away, salvage: with a null and a noise branch, several seeds.

    Goes on where it stopped. Several processes may do different seeds in one folder.
    """
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the experiment")
    parser.add_argument("--plan", default="lunar_lander", help="lunar_lander, switching or a JSON file (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="(0 1 2 3 4)")
    parser.add_argument("--base", nargs="*", default=[], metavar="KEY=VALUE", help="further words of all training")
    parser.add_argument("--change", nargs="+", metavar="KEY=VALUE", help="in place of the plan's change")
    parser.add_argument("--steps", type=int, metavar="N", help="agent steps of each branch")
    parser.add_argument("--small", action="store_true", help="a budget for a first look; its numbers mean nothing")

    def act(given: argparse.Namespace) -> None:
        from torchmem.studies.updates.experiment import run_experiment
        from torchmem.studies.updates.plan import plan_of, small

        plan = plan_of(given.plan)
        plan = small(plan) if given.small else plan
        changed = {"base": (*plan.base, *given.base)}
        changed |= {"change": tuple(given.change)} if given.change else {}
        changed |= {"steps": given.steps} if given.steps else {}
        plan = dataclasses.replace(plan, **changed)
        run_experiment(plan, given.out, given.seeds)
        _tell(given.out, say)

    return act


def report(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], None]:
    """Join the seeds that are done: tables, figures and a page to read."""
    parser.add_argument("folder", metavar="FOLDER", help="that `torchmem updates run` wrote")

    def act(given: argparse.Namespace) -> None:
        from torchmem.studies.updates.experiment import report_experiment

        report_experiment(given.folder)
        _tell(given.folder, say)

    return act


def compare(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], None]:
    """Several experiments beside each other, such as two prices of fuel or two agents."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="that `torchmem updates run` wrote")
    parser.add_argument("--out", metavar="FOLDER", help="save numbers and figure there")

    def act(given: argparse.Namespace) -> None:
        from torchmem.studies.updates.compare import compare_experiments

        found = compare_experiments(given.folders)
        say(found.summary())
        if given.out:
            say(f"wrote {found.save(given.out)}")

    return act


def import_old(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], None]:
    """Read recorded runs of the program that isolated updates came from, check them and describe what they recorded."""
    parser.add_argument("source", metavar="PATH", help="one run (with metadata.json), or a folder of runs")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder: agents, tables, report")
    parser.add_argument(
        "--replay", type=int, default=0, metavar="STEPS",
        help="also play each policy again so long, with and without the old shaping leak (20000 as recorded)",
    )  # fmt: skip

    def act(given: argparse.Namespace) -> None:
        from torchmem.studies.updates.legacy_report import import_runs

        for name, part in import_runs(given.source, given.out, given.replay).items():
            say(f"[{name}]\n{part.summary()}\n")
        say(f"report: {given.out}/report.html")

    return act


def _tell(folder: str, say: Say) -> None:
    from torchmem.studies.updates.experiment import load_experiment

    say(load_experiment(folder).summary())
    say(f"report: {folder}/report.html")
