"""`torchmem probe`: which question is asked of a recording, and how. Imports nothing heavy before it is."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

DECODERS = ("tiles", "ridge", "mlp", "prnn")


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recording", metavar="RECORDING", help="folder that `torchmem record` wrote")
    parser.add_argument("--target", required=True, metavar="NAME", help="covariate to decode, such as cue_type or pos")
    parser.add_argument("--sites", nargs="+", default=["*"], metavar="SITE", help="names or patterns, quoted ('*')")
    parser.add_argument("--kind", default="auto", choices=["auto", "ridge", "logistic", "circular"])
    parser.add_argument("--metric", help="accuracy (default) or balanced_accuracy; r2 for numbers")
    parser.add_argument("--groups", default="episode", metavar="NAME", help="what is held out as a whole (%(default)s)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--where", action="append", metavar="CONDITION", help="'steps_since_cue >= 0'; may be repeated")
    parser.add_argument("--by", metavar="NAME", help="covariate, or step, over which scores are also shown")
    parser.add_argument("--observation", default="auto", metavar="NAME", help="site or covariate: what is seen now")
    parser.add_argument("--untrained", metavar="RECORDING", help="the same agent before learning")
    parser.add_argument("--draws", type=int, default=20, help="of exchanged and of shifted labels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="save numbers and figure there")
    parser.add_argument("--json", action="store_true", help="scores and controls as JSON instead of a table")
    place = parser.add_argument_group(
        "position", "a target of two columns in cells is decoded as a tile, unless --kind, --metric or --by is given"
    )
    place.add_argument(
        "--decoder", choices=DECODERS, help="tiles: linear classifier (default); prnn: the one of dreamerv3f"
    )
    place.add_argument("--cell", type=float, default=1.0, help="side of a tile in units of the target (%(default)s)")
    place.add_argument("--area", type=int, nargs=2, metavar=("W", "H"), help="grid from 0; default: what was visited")
    place.add_argument("--holdout", type=float, default=0.0, metavar="SHARE", help="one split in place of folds")
    place.add_argument("--iterations", type=int, default=5000, metavar="N", help="of --decoder prnn (%(default)s)")
    place.add_argument("--figures", metavar="FOLDER", help="layer comparison, occupancy against error, maps (svg, png)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.recording import Recording

        rec = Recording(given.recording)
        untrained = None if given.untrained is None else Recording(given.untrained)
        column = rec.covariates[given.target] if given.target in rec.covariates else None
        asked = given.kind != "auto" or given.metric is not None or given.by is not None
        tiles = column is not None and column.shape[1:] == (2,) and rec.units.get(given.target, "").startswith("cells")
        if given.decoder is not None or (tiles and not asked):
            from torchmem.analysis.probe_position import Prnn, probe_position

            result = probe_position(
                rec, given.sites, given.target, decoder=given.decoder or "tiles", untrained=untrained,
                area=None if given.area is None else tuple(given.area), prnn=Prnn(iterations=given.iterations),
                **{name: getattr(given, name) for name in
                   ("groups", "folds", "holdout", "where", "cell", "draws", "seed", "device")},
            )  # fmt: skip
            if given.figures:
                result.save_figures(given.figures)
        else:
            from torchmem.analysis.fit_probe import fit_probe

            result = fit_probe(
                rec, given.sites, given.target, untrained=untrained,
                **{name: getattr(given, name) for name in
                   ("kind", "metric", "groups", "folds", "where", "by", "observation", "draws", "seed", "device")},
            )  # fmt: skip
        say(result.to_json() if given.json else result.summary())
        if given.out:
            logging.getLogger("torchmem").info("wrote %s", result.save(given.out))
        return 0

    return act
