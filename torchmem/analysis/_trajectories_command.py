"""`torchmem trajectories`: arguments of `map_trajectories` on the command line. Imports nothing heavy before asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recording", metavar="RECORDING", help="folder that `torchmem record` or `import` wrote")
    parser.add_argument("--target", default="pos", metavar="NAME", help="position, two columns (%(default)s)")
    parser.add_argument("--heading", metavar="NAME", help="default: heading or facing, whichever was recorded")
    parser.add_argument("--source", metavar="NAME", help="of the world's picture: a covariate, mosaic or none")
    parser.add_argument("--world", type=int, metavar="ID", help="default: the one with most steps")
    parser.add_argument("--where", action="append", metavar="CONDITION", help="'daylight > 0.5'; may be repeated")
    parser.add_argument("--cell", type=float, default=1.0, help="side of a tile in units of the target (%(default)s)")
    parser.add_argument("--episodes", type=int, default=0, metavar="N", help="only the first N (all)")
    parser.add_argument("--figures", metavar="FOLDER", help="paths, heat-map, world as png and svg")
    parser.add_argument("--unit", action="append", nargs=2, metavar=("SITE", "N"), help="a unit along the paths, too")
    parser.add_argument("--film", metavar="FILE", help=".gif or .mp4")
    parser.add_argument("--kind", default="view", choices=["view", "paths"], help="of the film (%(default)s)")
    parser.add_argument("--episode", type=int, metavar="N", help="of the film; default: best return, or all paths")
    parser.add_argument("--fps", type=float, default=5.0, help="frames per second of the film (%(default)s)")
    parser.add_argument("--window", type=int, default=17, metavar="TILES", help="side of a film (%(default)s)")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="frames of the film at most (%(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="save the result there")

    def act(given: argparse.Namespace) -> int:
        from torchmem.analysis.map_trajectories import map_trajectories
        from torchmem.recording import Recording

        units = tuple((site, whole_number(number)) for site, number in given.unit or ())
        if units and not given.figures:
            raise ValueError("--unit draws a figure: say where, with --figures FOLDER")
        rec = Recording(given.recording)
        result = map_trajectories(
            rec, given.target,
            **{n: getattr(given, n) for n in ("heading", "source", "world", "where", "cell", "episodes")},
        )  # fmt: skip
        say(result.summary())
        log = logging.getLogger("torchmem")
        if given.figures:
            for path in result.save_figures(given.figures, rec, units):
                log.info("wrote %s", path)
        if given.film:
            film = result.film(given.film, rec, kind=given.kind, episode=given.episode, fps=given.fps,
                               window=given.window, steps=given.steps)  # fmt: skip
            log.info("wrote %s", film)
        if given.out:
            log.info("wrote %s", result.save(given.out))
        return 0

    return act


def whole_number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"--unit SITE N: N is the number of a unit, got {text!r}")
    return int(text)
