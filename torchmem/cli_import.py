"""`torchmem import`: its arguments, and which importer reads what."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any


def json_arguments(text: str | None) -> dict[str, Any]:
    """A world's arguments as given on the command line. Raises ValueError where they are no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--env-kwargs is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--env-kwargs must be a JSON object such as {{\"size\": 9}}; got {text}")
    return found


def fill(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Callable[[argparse.Namespace], int]:
    agents, others = ["dreamerv3", "nm512", "procgen-ppo", "sb3-ppo"], ["dreamerv3f-episodes", "dreamerv3f-logs"]
    programs = [*agents, *others, "irl-recording"]
    parser.add_argument("program", choices=programs, help="who wrote it")
    parser.add_argument(
        "source",
        metavar="PATH",
        help="a logdir (config.yaml, ckpt/, replay/), a latest.pt, a model_<steps>.pth, a zip; others: their folder",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new run folder, such as runs/x")
    parser.add_argument("--spec", metavar="FILE.json", help="the world, where neither checkpoint nor --game tells it")
    parser.add_argument("--game", default="coinrun", help="procgen-ppo: what it was trained on (%(default)s)")
    parser.add_argument("--mode", default="hard", help="procgen-ppo: of that game (%(default)s)")
    parser.add_argument(
        "--no-legacy-reset",
        action="store_true",
        help="procgen-ppo: start episodes from init_hx as was meant, not from zeros as these agents were trained",
    )

    parser.add_argument("--env", metavar="NAME", help="sb3-ppo, nm512: its world, such as lunar_lander")
    parser.add_argument("--env-kwargs", metavar="JSON", help="""its arguments, such as '{"reward_fuel": 0}'""")
    leak = "dreamerv3f-episodes: whether the agent was given its position (%(default)s: by what the files hold)"
    allow = "dreamerv3: also read an agent that was given its position; every result made from it will say so"
    parser.add_argument("--allow-leaked-position", action="store_true", help=allow)
    parser.add_argument("--position-leak", default="auto", choices=["auto", "yes", "no"], help=leak)

    ends = "irl-recording: leave out the black frames that close episodes, or keep them, with the last rewards"
    parser.add_argument("--ends", default="drop", choices=["drop", "keep"], help=f"{ends} (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        if given.program == "dreamerv3f-episodes":
            from torchmem.models.importers.dreamerv3f_episodes import import_episodes

            rec = import_episodes(given.source, given.out, leak=given.position_leak)
            say("\n".join([rec.summary(), *(f"CAVEAT: {one}" for one in rec.provenance.caveats)]))
            return 0
        if given.program == "irl-recording":
            from torchmem.models.importers.irl_recording import import_irl_recording

            rec = import_irl_recording(given.source, given.out, ends=given.ends)
            say("\n".join([rec.summary(), *(f"CAVEAT: {one}" for one in rec.provenance.caveats)]))
            return 0
        if given.program == "dreamerv3f-logs":
            from torchmem.models.importers.dreamerv3f_logs import import_logs

            say(f"wrote {import_logs(given.source, given.out)}; draw it with torchmem plot --y episode/return")
            return 0
        if given.program in ("sb3-ppo", "nm512"):
            from torchmem.envs.make import env_spec
            from torchmem.models.importers.nm512 import import_latest
            from torchmem.models.importers.sb3_ppo import import_zip

            if (given.spec is None) == (given.env is None):
                raise ValueError(f"{given.source} does not name its world: give --env NAME or --spec FILE.json")
            world = given.spec or env_spec(given.env, **json_arguments(given.env_kwargs))
            out = (import_zip if given.program == "sb3-ppo" else import_latest)(given.source, given.out, world)
        elif given.program == "dreamerv3":
            from torchmem.models.importers.dreamerv3_logdir import import_logdir

            out = import_logdir(given.source, given.out, given.spec, allow_leaked_position=given.allow_leaked_position)
        else:
            from torchmem.envs.make import env_spec
            from torchmem.models.importers.procgen_ppo import import_checkpoint

            world = {"game": given.game, "mode": given.mode, "use_backgrounds": False}
            spec = given.spec or env_spec("procgen", **world)
            out = import_checkpoint(given.source, given.out, spec, legacy_reset=not given.no_legacy_reset)
        say(f"wrote {out}; read it with torchmem.load({str(out)!r})")
        return 0

    return act
