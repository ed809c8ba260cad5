"""`torchmem panel`: words to make_panel. Imports nothing heavy at first."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Say = Callable[[str], None]


def fill(parser: argparse.ArgumentParser, say: Say) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("source", metavar="SIM_OR_RUN", help="or an agent folder, or an old panel_data.json")
    parser.add_argument("--out", metavar="FILE", help="an .html file, or a folder for panel.html")
    parser.add_argument("--recording", metavar="RECORDING", help="real play, with observations; starts of rollouts too")
    parser.add_argument("--simulated", metavar="RECORDING", help="of torchmem simulate, instead of fresh rollouts")
    parser.add_argument("--edited", nargs="+", default=[], metavar="RECORDING", help="made under edits, same seeds")
    parser.add_argument("--directions", metavar="FOLDER", help="that torchmem directions wrote")
    parser.add_argument("--saliency", metavar="FOLDER", help="that torchmem saliency wrote; rollouts are those")
    parser.add_argument("--dynamics", metavar="FOLDER", help="that torchmem dynamics wrote")
    parser.add_argument("--intervene", metavar="FOLDER", help="that torchmem intervene wrote")
    parser.add_argument("--clusters", metavar="FOLDER", help="that torchmem behaviours wrote, of what is shown")
    numbers = {
        "episodes": (16, "of the recording"), "steps": (64, "of each at most"), "samples": (16, "rollouts"),
        "horizon": (16, "steps of each"), "seed": (0, "of the rollouts"), "batch": (32, "rollouts at once"),
    }  # fmt: skip
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
    parser.add_argument("--init", default="real", choices=["real", "random", "interpolate"], help="(%(default)s)")
    parser.add_argument("--guess", action="store_true", help="guess the agent's memory at real starts too")
    parser.add_argument("--swap", nargs="+", default=[], metavar="A:B", help="rollouts again, so edited, side by side")
    parser.add_argument("--drop", nargs="+", default=[], type=int, metavar="K", help="nothing moves along K")
    parser.add_argument("--clamp", nargs="+", default=[], metavar="K=Y", help="hold direction K at Y")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--allow", action="store_true", help="also a simulator that failed or was never measured")
    parser.add_argument(
        "--export-old", metavar="FILE.json",
        help="also as interpreting-rl-behavior's panel_data.json, with extrema.json and pictures beside it",
    )  # fmt: skip

    def act(given: argparse.Namespace) -> int:
        from torchmem.studies.direction_edits import make_edits, read_changes
        from torchmem.studies.lab_command import read_directions
        from torchmem.studies.panel.build import gather, write
        from torchmem.studies.panel.old_format import export_old, import_old

        if given.out is None and given.export_old is None:
            raise ValueError("say where to: --out FILE.html, or --export-old FILE.json")
        if given.source.endswith(".json"):
            made = import_old(given.source)
        else:
            names = ("recording", "simulated", "edited", "saliency", "dynamics", "intervene", "clusters", "episodes",
                     "steps", "samples", "horizon", "init", "guess", "seed", "batch", "device", "allow")  # fmt: skip
            directions = read_directions(given.directions)
            changes = read_changes(given.swap, given.drop, given.clamp)
            if changes.numbers and directions is None:
                raise ValueError("swap, drop and clamp edit along directions: give --directions")
            made = gather(
                given.source, directions=directions, edits=make_edits(directions, changes) if changes.numbers else (),
                edit_name=changes.describe() if changes.numbers else "", **{n: getattr(given, n) for n in names},
            )  # fmt: skip
        if given.export_old:
            say(f"wrote {export_old(made, given.export_old)}")
        if given.out:
            path = write(made, given.out)
            kinds = [one["source"] for one in made.meta["samples"]]
            told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
            say(f"wrote {path}: {told} samples, {path.stat().st_size / 1e6:.1f} MB")
        return 0

    return act
