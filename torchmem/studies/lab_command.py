"""`torchmem saliency`, `dynamics` and `intervene`: words to functions. Imports nothing heavy at first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
Act = Callable[[argparse.Namespace], int]
STARTS = ("init", "guess", "samples", "seed", "device", "allow", "batch")


def _starts(parser: argparse.ArgumentParser, samples: int, directions: bool) -> None:
    """What every analysis of a simulator is told about its rollouts. directions: it cannot do without them."""
    parser.add_argument("simulator", metavar="SIM", help="its run folder, or that of a dreamer or r2i agent")
    parser.add_argument("--recording", metavar="RECORDING", help="where real starts come from")
    parser.add_argument("--init", default="real", choices=["real", "random", "interpolate"], help="(%(default)s)")
    parser.add_argument("--guess", action="store_true", help="guess the agent's memory at real starts too")
    parser.add_argument("--samples", type=int, default=samples, metavar="N", help="rollouts (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="of them at once (%(default)s)")
    parser.add_argument("--agent", metavar="RUN", help="another agent of the same world")
    parser.add_argument("--seed", type=int, default=0, help="of starts and noise (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--allow", action="store_true", help="also a simulator that failed or was never measured")
    parser.add_argument("--directions", required=directions, metavar="FOLDER", help="that torchmem directions wrote")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the result")


def _agent(given: argparse.Namespace) -> Any:
    from torchmem.models.checkpoint import load

    return load(given.agent, given.device) if given.agent else None


def read_directions(folder: str | None) -> Any:
    """What `torchmem directions` wrote in a folder; None where none is named. Raises ValueError for another result."""
    if folder is None:
        return None
    from torchmem.analysis.find_directions import DirectionsResult
    from torchmem.result import load_result

    found = load_result(folder)
    if not isinstance(found, DirectionsResult):
        raise ValueError(f"{folder} is a {type(found).__name__}, no directions: make them with torchmem directions")
    return found


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--behaviours", metavar="FOLDER", help="that torchmem behaviours wrote of --recording")
    parser.add_argument("--behaviour", type=int, metavar="K", help="only where it is this one")


def _where(given: argparse.Namespace) -> Any:
    """(steps,) bool of the recording, or None."""
    if (given.behaviours is None) != (given.behaviour is None):
        raise ValueError("--behaviours FOLDER and --behaviour K go together")
    if given.behaviours is None:
        return None
    from pathlib import Path

    from torchmem.analysis.cluster_behaviours import BehavioursResult
    from torchmem.result import load_result

    found = load_result(given.behaviours)
    if not isinstance(found, BehavioursResult):
        raise ValueError(f"{given.behaviours} is a {type(found).__name__}: make it with torchmem behaviours")
    mine = [Path(one).resolve() for one in found.recordings]
    if given.recording is None or Path(given.recording).resolve() not in mine:
        told = ", ".join(found.recordings)
        raise ValueError(f"{given.behaviours} is of {told}, not of --recording {given.recording}")
    return found.mask(given.behaviour, mine.index(Path(given.recording).resolve()))


def fill_saliency(parser: argparse.ArgumentParser, say: Say) -> Act:
    """What each scalar hangs on."""
    _starts(parser, 16, directions=False)
    parser.add_argument(
        "--scalars", nargs="+", default=["value", "chosen"], metavar="SCALAR",
        help="value value_change chosen entropy reward done logp:A prob:A odds:A (A+B: of either) logit:A mean:I "
        "unit:N direction:K directions (value chosen)",
    )  # fmt: skip
    parser.add_argument("--at", type=int, default=4, metavar="STEP", help="of the scalars (%(default)s)")
    parser.add_argument(
        "--wrt", nargs="+", metavar="NODE", help="memory carry world action latent obs.KEY (memory, world, all shown)"
    )
    parser.add_argument("--ways", nargs="+", default=["total", "internal"], choices=["total", "internal", "external"])
    parser.add_argument("--horizon", type=int, metavar="N", help="steps kept (up to --at)")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="SmoothGrad over N noisy starts")
    parser.add_argument("--noise", type=float, default=0.1, metavar="X", help="its size (%(default)s)")
    parser.add_argument("--points", type=int, default=0, metavar="N", help="integrated gradients by N points (none)")
    parser.add_argument("--through", default="probs", choices=["probs", "logp", "none"], help="discrete actions")
    parser.add_argument("--sees", default="frames", choices=["frames", "latent"], help="what the agent is given")
    _add_behaviour(parser)
    parser.add_argument("--figures", type=int, default=4, metavar="N", help="samples drawn, of worlds with images")

    def act(given: argparse.Namespace) -> int:
        from torchmem.result import save_figures
        from torchmem.studies.saliency import measure_saliency

        names = (*STARTS, "scalars", "at", "wrt", "ways", "horizon", "copies", "noise", "points", "through", "sees")
        found = measure_saliency(
            given.simulator, given.recording, agent=_agent(given), directions=read_directions(given.directions),
            where=_where(given), **{n: getattr(given, n) for n in names},
        )  # fmt: skip
        say(found.summary())
        folder = found.save(given.out)
        if found.frames.size and any(n.startswith("total.obs.") for n in found.slopes):
            shown = range(min(given.figures, len(found.frames)))
            save_figures({f"sample_{i}": found.figure(i) for i in shown}, folder, found.provenance.caveats)
        say(f"wrote {folder}")
        return 0

    return act


def fill_dynamics(parser: argparse.ArgumentParser, say: Say) -> Act:
    """What drives what, along directions."""
    _starts(parser, 64, directions=True)
    parser.add_argument("--lags", type=int, default=4, metavar="N", help="steps looked ahead (%(default)s)")
    parser.add_argument("--ways", nargs="+", default=["total", "internal", "external"],
                        choices=["total", "internal", "external"])  # fmt: skip
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="of the nulls (%(default)s)")
    _add_behaviour(parser)
    parser.add_argument("--through", default="probs", choices=["probs", "logp", "none"], help="discrete actions")

    def act(given: argparse.Namespace) -> int:
        from torchmem.result import save_figures
        from torchmem.studies.dynamics import measure_dynamics
        from torchmem.studies.folder import write_csv

        if given.recording is None:
            raise ValueError("dynamics compares a simulator with real play: give --recording")
        names = (*STARTS, "lags", "ways", "draws", "through")
        found = measure_dynamics(
            given.simulator, given.recording, read_directions(given.directions), agent=_agent(given),
            where=_where(given), **{n: getattr(given, n) for n in names},
        )  # fmt: skip
        say(found.summary())
        folder = found.save(given.out)
        write_csv(folder / "edges.csv", found.table())
        save_figures({"matrices": found.figure()}, folder, found.provenance.caveats)
        say(f"wrote {folder}")
        return 0

    return act


def fill_intervene(parser: argparse.ArgumentParser, say: Say) -> Act:
    """What happens when directions are edited."""
    _starts(parser, 64, directions=True)
    parser.add_argument("--swap", nargs="+", default=[], metavar="A:B", help="movement along A goes along B; A<>B both")
    parser.add_argument("--drop", nargs="+", default=[], type=int, metavar="K", help="nothing moves along K")
    parser.add_argument("--clamp", nargs="+", default=[], metavar="K=Y", help="hold direction K at Y")
    parser.add_argument("--in", dest="places", nargs="+", default=["simulator", "world"],
                        choices=["simulator", "world"])  # fmt: skip
    parser.add_argument("--doses", nargs="+", type=float, default=[0.5, 1.0], metavar="X", help="shares of the edit")
    parser.add_argument("--controls", type=int, default=10, metavar="N", help="random directions drawn (%(default)s)")
    parser.add_argument("--horizon", type=int, default=32, metavar="N", help="steps of each play (%(default)s)")
    parser.add_argument("--predict", nargs="+", default=[], metavar="OUTCOME=+", help="sign expected of an outcome")

    def act(given: argparse.Namespace) -> int:
        from torchmem.studies.direction_edits import read_changes
        from torchmem.studies.intervene import measure_interventions

        changes = read_changes(given.swap, given.drop, given.clamp)
        predicted = dict(one.rpartition("=")[::2] for one in given.predict)
        names = (*STARTS, "places", "doses", "controls", "horizon")
        found = measure_interventions(
            given.simulator, given.recording, read_directions(given.directions), changes, agent=_agent(given),
            predicted=predicted, **{n: getattr(given, n) for n in names},
        )  # fmt: skip
        say(found.summary())
        say(f"wrote {found.save(given.out)}")
        return 0

    return act
