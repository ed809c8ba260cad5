"""`torchmem behaviours`. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="of torchmem record or torchmem simulate")
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="(memory, and world where it is recorded)")
    parser.add_argument("--lags", nargs="*", type=int, default=[2, 4, 6], metavar="N", help="of differences (2 4 6)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="first steps left out (%(default)s)")
    parser.add_argument("--count", type=int, metavar="K", help="of behaviours (found by silhouette against mixtures)")
    parser.add_argument("--most", type=int, default=12, metavar="K", help="that are tried (%(default)s)")
    parser.add_argument("--components", type=int, default=64, metavar="N", help="principal ones (%(default)s)")
    parser.add_argument("--draws", type=int, default=20, metavar="N", help="of each control (%(default)s)")
    parser.add_argument("--profile", nargs="+", default=[], metavar="NAME", help="covariates told by behaviour, too")
    parser.add_argument("--exemplars", type=int, default=4, metavar="N", help="clips of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, metavar="N", help="fitted at most (%(default)s)")
    parser.add_argument("--display", default="tsne", choices=["none", "tsne", "umap"], help="a map to look at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the result")

    def act(given: argparse.Namespace) -> int:
        from torchmem.analysis.cluster_behaviours import cluster_behaviours
        from torchmem.recording import Recording
        from torchmem.recording.store import HEADER, RecordingError
        from torchmem.result import save_figures

        for path in given.recordings:
            if not _holds(path, HEADER) and (_holds(path, "frozen_agent") or _holds(path, "config.json")):
                raise RecordingError(f"{path} is a run, no recording: torchmem simulate (or record) makes one of it")
        several = [Recording(path) for path in given.recordings]
        names = ("sites", "lags", "skip", "count", "most", "components", "draws", "profile", "exemplars", "steps",
                 "display", "seed")  # fmt: skip
        found = cluster_behaviours(several, **{name: getattr(given, name) for name in names})
        say(found.summary())
        folder = found.save(given.out)
        save_figures({"behaviours": found.figure()}, folder, found.provenance.caveats)
        write_more(found, several, folder)
        logging.getLogger("torchmem").info("wrote %s", folder)
        return 0

    return act


def write_more(found: Any, recordings: list[Any], folder: Any) -> None:
    """profile.csv, and where images were recorded a film and a sheet of the exemplars of each behaviour."""
    import csv
    import io

    import numpy as np

    from torchmem.files import atomic_write
    from torchmem.video import gif_bytes, png_bytes

    text = io.StringIO()
    writer = csv.writer(text)
    table = found.table()
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    atomic_write(folder / "profile.csv", text.getvalue().encode())
    for k in range(found.count):
        try:
            clips = found.clips(k, recordings)
        except ValueError as error:
            logging.getLogger("torchmem").info("%s", error)
            return
        # one row per exemplar, steps from left to right; in the film the exemplars are side by side
        atomic_write(folder / f"behaviour_{k}.png", png_bytes(np.concatenate(np.concatenate(clips, 1), 1).copy()))
        film = gif_bytes(np.concatenate(clips, 2), recordings[0].control_hz)
        atomic_write(folder / f"behaviour_{k}.gif", film)


def _holds(path: str, name: str) -> bool:
    from pathlib import Path

    return (Path(path) / name).exists()
