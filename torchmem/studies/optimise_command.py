"""`torchmem optimise`: words to `optimise_latent`. Imports nothing heavy at first."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("simulator", metavar="SIM", help="run folder of torchmem simulator train")
    parser.add_argument("--recording", metavar="RECORDING", help="real starts, as a control and for --realism")
    parser.add_argument(
        "--target", default="value", metavar="SCALAR",
        help="value value_change chosen entropy reward done logp:A prob:A odds:A (A+B: of either) logit:A mean:I "
        "unit:N direction:K (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--minimise", action="store_true", help="lower it instead of raising it")
    parser.add_argument("--at", type=int, nargs="+", default=[4], metavar="STEP", help="several: their mean (4)")
    parser.add_argument("--init", default="random", choices=["random", "real"], help="(%(default)s)")
    parser.add_argument("--restarts", type=int, default=8, metavar="N", help="starts at once (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of the ascent (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.1, metavar="X", help="radians per step (%(default)s)")
    parser.add_argument("--realism", type=float, default=0.0, metavar="X", help="weight of being far from real starts")
    parser.add_argument("--realism-by", default="auto", choices=["auto", "data", "prior"], help="(%(default)s)")
    parser.add_argument("--diversity", type=float, default=0.0, metavar="X", help="weight of crowding (%(default)s)")
    parser.add_argument("--directions", metavar="FOLDER", help="that torchmem directions wrote, for direction:K")
    parser.add_argument("--horizon", type=int, metavar="N", help="steps of the clips (up to --at)")
    parser.add_argument("--random", type=int, metavar="N", help="random starts (as many as rollouts are made)")
    parser.add_argument("--encoded", type=int, default=256, metavar="N", help="real starts at most (%(default)s)")
    parser.add_argument("--through", default="probs", choices=["probs", "logp", "none"], help="discrete actions")
    parser.add_argument("--agent", metavar="RUN", help="another agent of the same world")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="controls at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--allow", action="store_true", help="also a simulator that failed or was never measured")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the result")

    def act(given: argparse.Namespace) -> int:
        import numpy as np

        from torchmem.files import atomic_write
        from torchmem.models.checkpoint import load
        from torchmem.result import save_figures
        from torchmem.studies.lab_command import read_directions
        from torchmem.studies.optimise import optimise_latent
        from torchmem.video import gif_bytes

        names = ("target", "minimise", "at", "init", "restarts", "steps", "rate", "realism", "realism_by", "diversity",
                 "horizon", "random", "encoded", "through", "batch", "seed", "device", "allow")  # fmt: skip
        found = optimise_latent(
            given.simulator, given.recording, directions=read_directions(given.directions),
            agent=load(given.agent, given.device) if given.agent else None, **{n: getattr(given, n) for n in names},
        )  # fmt: skip
        say(found.summary())
        folder = found.save(given.out)
        if found.frames.size:
            save_figures({"clips": found.figure()}, folder, found.provenance.caveats)
            side_by_side = np.concatenate(found.frames, 2)
            atomic_write(folder / "clips.gif", gif_bytes(np.ascontiguousarray(side_by_side), found.control_hz))
        say(f"wrote {folder}")
        return 0

    return act
