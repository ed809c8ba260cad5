"""`torchmem dream RUN --probe PROBE`: arguments, and what they do. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("torchmem")


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder, with a world model")
    parser.add_argument("--probe", required=True, metavar="FOLDER", help="that `probe --target pos --out` wrote")
    parser.add_argument("--recording", metavar="RECORDING", help="whose steps to dream from; default: fresh episodes")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="fresh ones (%(default)s)")
    parser.add_argument("--site", help="to decode; default: the probe's best that runs while dreaming")
    parser.add_argument("--warmup", type=int, metavar="N", help="steps seen before; default: since the episode began")
    parser.add_argument("--horizon", type=int, default=15, metavar="N", help="steps of a dream (%(default)s)")
    parser.add_argument("--actions", default="policy", choices=["policy", "replayed"], help="in dreams (%(default)s)")
    parser.add_argument("--starts", type=int, default=256, metavar="N", help="to dream from, at most (%(default)s)")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="of every N-th step only (%(default)s)")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="dreams per start (%(default)s)")
    text = "how dreams begin: A, B, C, D, E, \"A'\", 'other actions' (A; see docs/spatial.md)"
    parser.add_argument("--conditions", nargs="+", default=["A"], metavar="C", help=text)
    nulls = ["shuffle", "matched", "matched_relu", "truncnorm"]
    parser.add_argument("--null", default="shuffle", choices=nulls, help="noise for memory in C and D (%(default)s)")
    parser.add_argument("--vitals", default="uniform", choices=["uniform", "one_low"], help="shown in A' (%(default)s)")
    parser.add_argument("--vitals-from", default="start", choices=["start", "warmup"], help="on (%(default)s)")
    parser.add_argument("--modes", action="store_true", help="take the likeliest latents and actions, draw nothing")
    parser.add_argument("--edits", metavar="FOLDER", help="edits that hold while observing and dreaming")
    parser.add_argument("--seed", type=int, default=1, help="of fresh episodes, starts and noise (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="save curves, paths and figure there")
    parser.add_argument("--figures", metavar="FOLDER", help="figures (svg, png), dreams.gif")
    parser.add_argument("--states", metavar="FOLDER", help="also keep all dreamed states (a DreamBatch)")
    parser.add_argument("--json", action="store_true", help="curves as JSON instead of a table")

    def act(given: argparse.Namespace) -> int:
        result, batch, world = run(given)
        say(result.to_json() if given.json else result.summary())
        if given.figures:
            result.save_figures(given.figures, world)
        if given.out:
            log.info("wrote %s", result.save(given.out))
        if given.states:
            log.info("wrote %s", batch.save(given.states))
        return 0

    return act


def run(given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(DreamResult, DreamBatch or None, picture of the world or None)."""
    from contextlib import nullcontext

    from torchmem.analysis.decode_dreams import DreamBatch, decode_dreams
    from torchmem.recording import Recording
    from torchmem.result import load_result
    from torchmem.studies.dreams import DreamError, dream_batches, dreamable
    from torchmem.surgery.edit_files import load_edits
    from torchmem.surgery.model import load
    from torchmem.surgery.record import record

    model, probe = load(given.run, given.device), load_result(given.probe)
    if not hasattr(probe, "decode"):
        raise DreamError(f"{given.probe} is a {type(probe).__name__} and decodes no position: make one with "
                         f"torchmem probe RECORDING --target pos --decoder tiles --out FOLDER")  # fmt: skip
    known = dreamable(model, probe.sites)  # type: ignore[attr-defined]
    if given.site is None and not known:
        raise DreamError(f"of the probe's sites {', '.join(probe.sites)} none runs while this agent dreams: probe "  # type: ignore[attr-defined]
                         f"memory, dynamics.deter or dynamics.stoch")  # fmt: skip
    best = min(known, key=lambda name: probe.scores["manhattan"][probe.sites.index(name)], default="")  # type: ignore[attr-defined]
    site = given.site or best
    with model.edited(load_edits(given.edits)) if given.edits else nullcontext():
        if given.recording is None:
            log.info("recording %d fresh episodes of %s", given.episodes, model.spec.name)
            rec = record(model, sites=["memory"], episodes=given.episodes, seed=given.seed)
        else:
            rec = Recording(given.recording)
        same = ("warmup", "horizon", "actions", "starts", "stride", "copies", "conditions", "null", "vitals",
                "vitals_from", "modes", "seed")  # fmt: skip
        pieces = dream_batches(model, rec, sites=(site,), target=probe.target,  # type: ignore[attr-defined]
                               **{name: getattr(given, name) for name in same})  # fmt: skip
        batch = DreamBatch.join(list(pieces)) if given.states else None
        result = decode_dreams(batch or pieces, probe, site=site, seed=given.seed)  # type: ignore[arg-type]
        return result, batch, picture_of(rec, result) if given.figures else None


def picture_of(recording: Any, result: Any) -> Any:
    """The world on the grid of a result, (H, W, 3), where the recording is of one world and holds its map; or None."""
    import numpy as np

    from torchmem.analysis._trajectory_world import BLANK, MAPS, sight_of, world_picture

    columns = recording.covariates
    name = next((one for one in MAPS if one in columns), None)
    if name is None or result.cell != 1:
        return None
    same = columns["world" if "world" in columns else name][recording.episodes["start"]]
    if (same != same[0]).any():
        return None
    rows = np.arange(recording.steps)
    tile = np.floor(columns[result.target][:]).astype(int)
    whole = world_picture(recording, rows, tile, name, sight_of(recording)).image
    (x, y), (width, height) = result.origin, result.shape
    out = np.full((height, width, 3), BLANK, np.uint8)
    seen = whole[max(y, 0) : y + height, max(x, 0) : x + width]
    out[max(-y, 0) : max(-y, 0) + len(seen), max(-x, 0) : max(-x, 0) + seen.shape[1]] = seen
    return out
