"""`torchmem collect FOLDER`: arguments, and what they do. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("out", metavar="FOLDER", help="of the set; goes on where it stopped")
    parser.add_argument("--size", type=int, default=9, metavar="N", help="cells a side (%(default)s)")
    parser.add_argument("--trajectories", type=int, default=60, metavar="N", help="each in its own maze (%(default)s)")
    parser.add_argument("--held-out", type=int, default=10, metavar="N", help="of them, for evaluation (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each (default: a whole episode, 1000 at size 9)")
    parser.add_argument("--noise", type=float, default=0.2, metavar="X", help="share of random actions (%(default)s)")
    parser.add_argument("--worlds", type=int, default=1, metavar="N", help="that walk side by side (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes for them (0: this one)")
    parser.add_argument("--seed", type=int, default=0, help="of mazes and walks (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.studies.maze.collect import CollectPlan, collect

        names = ("size", "trajectories", "held_out", "steps", "noise", "worlds", "seed")
        plan = CollectPlan(**{name: getattr(given, name) for name in names})
        out = collect(given.out, plan, workers=given.workers, progress=True)
        say(f"{plan.trajectories} trajectories in {out}, {plan.held_out} of them in eval/")
        return 0

    return act
