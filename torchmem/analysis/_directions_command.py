"""`torchmem directions`. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recording", metavar="RECORDING", help="of torchmem record or torchmem simulate")
    parser.add_argument("--site", default="memory", metavar="SITE", help="also world or latent (%(default)s)")
    parser.add_argument("--method", default="pca", choices=["pca", "ica", "nmf"], help="(%(default)s)")
    parser.add_argument("--count", type=int, default=16, metavar="K", help="directions (%(default)s)")
    parser.add_argument("--where", action="append", metavar="CONDITION", help="'step >= 3'; may be repeated")
    parser.add_argument("--steps", type=int, default=50_000, metavar="N", help="fitted at most (%(default)s)")
    parser.add_argument("--draws", type=int, default=10, help="refits on episodes drawn again (%(default)s)")
    parser.add_argument("--outliers", action="store_true", help="leave lonely states out of the fit")
    parser.add_argument("--display", default="none", choices=["none", "tsne", "umap"], help="a map to look at")
    parser.add_argument("--colour", metavar="NAME", help="covariate that colours the scatter plot (with --out)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="what saliency, dynamics and interventions read")

    def act(given: argparse.Namespace) -> int:
        from torchmem.analysis._probe_data import lookup
        from torchmem.analysis.find_directions import find_directions
        from torchmem.recording import Recording
        from torchmem.result import save_figures

        rec = Recording(given.recording)
        colour = rec.step if given.colour is None else lookup(rec.covariates, given.colour, "covariate")
        if colour.ndim != 1:
            raise ValueError(f"--colour {given.colour} has shape {colour.shape[1:]} per step; it must be one number")
        names = ("method", "count", "where", "steps", "draws", "outliers", "display", "seed")
        found = find_directions(rec, given.site, **{name: getattr(given, name) for name in names})
        say(found.summary())
        folder = found.save(given.out)
        if found.count > 1:
            figure = found.plot_scatter(colour, given.colour or "step of the episode")
            save_figures({"scatter": figure}, folder, found.provenance.caveats)
        logging.getLogger("torchmem").info("wrote %s", folder)
        return 0

    return act
