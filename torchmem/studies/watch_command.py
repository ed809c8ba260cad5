"""`torchmem watch`: words to `watch`. Imports nothing heavy at first."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder")
    parser.add_argument("--out", metavar="FILE", help=".gif or .mp4 instead of a window")
    parser.add_argument("--episodes", type=int, default=4, metavar="N", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="shown of each at most (%(default)s)")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest action")
    parser.add_argument("--fps", type=float, metavar="X", help="frames per second (the world's own, at least 4)")
    parser.add_argument("--seed", type=int, default=0, help="of worlds and actions; never meets a training seed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.studies.watch import watch

        names = ("episodes", "steps", "greedy", "fps", "seed", "device")
        path = watch(given.run, given.out, **{name: getattr(given, name) for name in names})
        if path is not None:
            say(f"wrote {path}")
        return 0

    return act
