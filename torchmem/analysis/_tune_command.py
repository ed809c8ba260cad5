"""`torchmem tune`: arguments of `tune_units` on the command line. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recording", metavar="RECORDING", help="folder that `torchmem record` or `import` wrote")
    parser.add_argument("--sites", nargs="+", default=["*"], metavar="SITE", help="names or patterns, quoted ('*')")
    parser.add_argument("--target", default="pos", metavar="NAME", help="position, two columns (%(default)s)")
    parser.add_argument("--heading", metavar="NAME", help="default: heading or facing, whichever was recorded")
    parser.add_argument("--where", action="append", metavar="CONDITION", help="'daylight > 0.5'; may be repeated")
    parser.add_argument("--cell", type=float, default=1.0, help="side of a tile in units of the target (%(default)s)")
    parser.add_argument("--area", type=int, nargs=2, metavar=("W", "H"), help="grid from 0; default: what was visited")
    parser.add_argument("--walls", metavar="FILE.npy", help="(W, H) booleans, for the border score")
    parser.add_argument("--rectify", default="auto", choices=["auto", "relu", "shift", "none"])
    parser.add_argument("--shifts", type=int, default=100, help="turns within episodes, the null (%(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="of episodes, for explained variance (%(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="share of untuned units that may pass (%(default)s)")
    parser.add_argument("--original", action="store_true", help="group by raw scores in sample, as dreamerv3f does")
    parser.add_argument("--worlds", metavar="NAME", help="covariate with the world's id: also compare maps across them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="FOLDER", help="save maps, scores and figure there")
    parser.add_argument("--figures", metavar="FOLDER", help="figures under the names of dreamerv3f (png, svg)")
    parser.add_argument("--page", metavar="FILE.html", help="click a unit in the scatter, see its map")
    parser.add_argument("--json", action="store_true", help="scores as JSON instead of a table")

    def act(given: argparse.Namespace) -> int:
        import numpy as np

        from torchmem.analysis.remap_units import remap_units
        from torchmem.analysis.tune_units import tune_units
        from torchmem.recording import Recording

        rec = Recording(given.recording)
        result = tune_units(
            rec, given.sites, given.target,
            area=None if given.area is None else tuple(given.area),
            walls=None if given.walls is None else np.load(given.walls, allow_pickle=False),
            corrected=not given.original,
            **{n: getattr(given, n) for n in
               ("heading", "where", "cell", "rectify", "shifts", "folds", "alpha", "seed")},
        )  # fmt: skip
        say(result.to_json() if given.json else result.summary())
        log = logging.getLogger("torchmem")
        if given.figures:
            result.save_figures(given.figures)
        if given.page:
            log.info("wrote %s", result.save_page(given.page))
        if given.out:
            log.info("wrote %s", result.save(given.out))
        if given.worlds:
            remapped = remap_units(rec, given.sites, given.target, worlds=given.worlds, where=given.where,
                                   cell=given.cell, seed=given.seed)  # fmt: skip
            log.info("%s", remapped.summary()) if given.json else say(remapped.summary())
            if given.out:
                log.info("wrote %s", remapped.save(f"{given.out.rstrip('/')}_remapping"))
        return 0

    return act
