"""`torchmem simulator train|report` and `torchmem simulate`: words to functions. Imports nothing heavy at first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
Act = Callable[[argparse.Namespace], int]


def fill_simulator(parser: argparse.ArgumentParser, say: Say) -> Act:
    """The verbs that make a simulator and tell how good it is."""
    verbs = parser.add_subparsers(dest="what", metavar="VERB", required=True)
    train = verbs.add_parser("train", help="train one from a recording; runs, stops and goes on like train.py")
    train.add_argument("recording", metavar="RECORDING", help="of torchmem record, with observations")
    train.add_argument("--agent", required=True, metavar="RUN", help="the agent in the loop: run, snapshot or folder")
    train.add_argument("--out", required=True, metavar="FOLDER", help="of the run; goes on where it stopped")
    train.add_argument("--preset", metavar="NAME", help="irl_rssm: the original's sizes and losses (64 x 64 images)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="such as steps=1e6; torchmem train --keys agent=simulator env=recording lists them all",
    )  # fmt: skip

    train.add_argument(
        "--report", nargs="*", metavar="NAME=N",
        help="once it is trained, measure it as simulator report does, with its numbers: horizon=8 gate=6",
    )  # fmt: skip

    report = verbs.add_parser("report", help="measure it on levels held out, beside copying the last frame")
    report.add_argument("simulator", metavar="SIM", help="its run folder, or that of a dreamer or r2i agent")
    report.add_argument("--recording", required=True, metavar="RECORDING", help="its own, or another of its world")
    report.add_argument("--out", metavar="FOLDER", help="(in SIM/fidelity, where analyses look)")
    numbers = {"horizon": 16, "gate": 8, "episodes": 64, "each": 4, "seed": 0}
    helps = ("steps simulated", "steps the gate looks at", "held-out episodes at most", "windows of each", "of windows")
    for (name, default), text in zip(numbers.items(), helps, strict=True):
        report.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
    report.add_argument("--limit", type=float, default=1.0, metavar="X", help="of error / error of copying")
    report.add_argument("--all-levels", action="store_true", help="of a recording that training never saw")
    report.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.result import load_result
        from torchmem.studies.fidelity import report_fidelity

        if given.what == "train":
            from torchmem.training.command import main

            asked = None if given.report is None else _numbers(given.report, numbers)  # what is wrong is said at once
            words = ["agent=simulator", "env=recording", f"env.path={given.recording}", f"env.agent={given.agent}"]
            words += [f"logdir={given.out}", *([f"preset={given.preset}"] if given.preset else []), *given.set]
            code = main(words)
            if code or asked is None:
                return code
            folder = report_fidelity(given.out, given.recording, **asked)
            say(f"{load_result(folder).summary()}\nwrote {folder}")
            return 0  # it is trained; whether it may be used is what every analysis asks of the report
        names = (*numbers, "limit", "all_levels", "device")
        folder = report_fidelity(given.simulator, given.recording, given.out, **{n: getattr(given, n) for n in names})
        found = load_result(folder)
        say(f"{found.summary()}\nwrote {folder}")
        return 0 if found.passed else 1  # type: ignore[attr-defined]

    return act


def _numbers(words: list[str], known: dict[str, int]) -> dict[str, Any]:
    """horizon=8 -> {"horizon": 8}. Raises ValueError naming the word that is wrong."""
    found = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in known or not number.isdecimal():
            raise ValueError(f"--report {word}: write NAME=N, with a name of {', '.join(known)}")
        found[name] = int(number)
    return found


def fill_simulate(parser: argparse.ArgumentParser, say: Say) -> Act:
    """Rollouts of an agent in its simulator."""
    parser.add_argument("simulator", metavar="SIM", help="its run folder, or that of a dreamer or r2i agent")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the recording")
    parser.add_argument("--init", default="real", choices=["real", "random", "interpolate"], help="(%(default)s)")
    parser.add_argument("--recording", metavar="RECORDING", help="where real starts come from")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="rollouts (%(default)s)")
    parser.add_argument("--horizon", type=int, default=16, metavar="N", help="steps of each (%(default)s)")
    parser.add_argument("--actions", nargs="+", type=int, metavar="A", help="take these: one, or one per step")
    parser.add_argument("--agent", metavar="RUN", help="another agent of the same world")
    parser.add_argument("--guess", action="store_true", help="guess the agent's memory at real starts too")
    parser.add_argument("--world-noise", action="store_true", help="sample the world's latents, not their modes")
    parser.add_argument("--action-noise", action="store_true", help="sample the agent's actions, not their modes")
    parser.add_argument("--sees", default="frames", choices=["frames", "latent"], help="what the agent is given")
    parser.add_argument("--directions", metavar="FOLDER", help="of the agent's memory, for the next three")
    parser.add_argument("--swap", nargs="+", default=[], metavar="A:B", help="movement along A goes along B; A<>B both")
    parser.add_argument("--drop", nargs="+", default=[], type=int, metavar="K", help="nothing moves along K")
    parser.add_argument("--clamp", nargs="+", default=[], metavar="K=Y", help="hold direction K at Y")
    parser.add_argument("--seed", type=int, default=0, help="of starts and noise (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--allow", action="store_true", help="also a simulator that failed or was never measured")
    parser.add_argument("--gif", metavar="FILE", help="also a film of the first 16 rollouts, of worlds with images")

    def act(given: argparse.Namespace) -> int:
        from torchmem.models.checkpoint import load
        from torchmem.studies.direction_edits import named_edits
        from torchmem.studies.lab_command import read_directions
        from torchmem.studies.simulate import film, simulate

        names = ("init", "recording", "samples", "horizon", "actions", "guess", "world_noise", "action_noise", "sees",
                 "seed", "device", "allow")  # fmt: skip
        agent = load(given.agent, given.device) if given.agent else None
        edits = named_edits(read_directions(given.directions), given.swap, given.drop, given.clamp)
        rec = simulate(given.simulator, given.out, agent=agent, edits=edits, **{n: getattr(given, n) for n in names})
        say(rec.summary())
        if given.gif:
            say(f"wrote {film(rec, given.gif)}")
        return 0

    return act
