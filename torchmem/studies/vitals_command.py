"""`torchmem vitals RECORDING`: arguments, and what they do. Imports nothing heavy before it is asked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

log = logging.getLogger("torchmem")


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("recording", metavar="RECORDING", help="of Crafter, with vitals or inventory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="FOLDER", help="save numbers and figure there (those of --agent in _shown)")
    parser.add_argument("--figures", metavar="FOLDER", help="figures of --agent (svg, png)")
    shown = parser.add_argument_group("showing an agent other vitals (the recording must hold pictures)")
    shown.add_argument("--agent", metavar="RUN", help="whose value and actions are read while it sees them")
    shown.add_argument("--scenes", type=int, default=8, metavar="N", help="recorded steps to begin with (%(default)s)")
    shown.add_argument("--every", type=int, default=20, metavar="N", help="taken from every N-th step (%(default)s)")
    shown.add_argument("--vitals", nargs="+", default=["food", "drink", "energy"], metavar="NAME", help="(%(default)s)")
    shown.add_argument("--levels", type=int, nargs="+", default=[0, 3, 6, 9], metavar="N", help="(%(default)s)")
    shown.add_argument("--control", default="sapling", metavar="ITEM", help="swept as a control (%(default)s)")
    shown.add_argument("--history", action="store_true", help="it remembers the episode; default: a blank memory")
    shown.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.analysis.trace_vitals import trace_vitals
        from torchmem.recording import Recording

        rec = Recording(given.recording)
        if given.figures and not given.agent:
            raise ValueError("--figures draws what --agent RUN does: give it, or take --out for the vitals themselves")
        found = trace_vitals(rec, seed=given.seed)
        say(found.summary())
        if given.out:
            log.info("wrote %s", found.save(given.out))
        if given.agent:
            from torchmem.studies.state_probe import probe_state
            from torchmem.surgery.model import load

            same = ("scenes", "every", "vitals", "levels", "control", "history", "seed")
            result = probe_state(load(given.agent, given.device), rec, **{name: getattr(given, name) for name in same})
            say("\n" + result.summary())
            if given.figures:
                result.save_figures(given.figures)
            if given.out:
                log.info("wrote %s", result.save(f"{given.out.rstrip('/')}_shown"))
        return 0

    return act
