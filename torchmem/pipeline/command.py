"""`torchmem pipeline` and `torchmem provenance`: their arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from torchmem.pipeline.file import Verbs

Action = Callable[[argparse.Namespace], int]


def fill_pipeline(parser: argparse.ArgumentParser, say: Callable[[str], None], verbs: Callable[[], Verbs]) -> Action:
    parser.add_argument("file", metavar="FILE.yaml", help="stages: see docs/pipeline.md and examples/pipelines")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run, what is cached and why")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="run just this; may be repeated")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="make this anew; may be repeated")
    parser.add_argument("--keep-going", action="store_true", help="after a failure, run what does not need it")
    parser.add_argument("--seed", action="append", default=[], metavar="NAME=N", help="another seed than the file's")
    parser.add_argument("--folder", metavar="DIR", help="manifest and links (default: what the file says)")
    parser.add_argument("--cache", metavar="DIR", help="outputs (default: what the file says, or DIR/cache)")
    parser.add_argument("--slurm", metavar="DIR", help="run nothing: write a job script per stage and submit.sh there")

    def act(given: argparse.Namespace) -> int:
        from torchmem.pipeline.file import read_pipeline
        from torchmem.pipeline.plan import plan, table
        from torchmem.pipeline.run import FAILED, Interrupted, Runner, StageFailed
        from torchmem.pipeline.slurm import write_jobs

        found = read_pipeline(
            given.file, verbs(), folder=given.folder, cache=given.cache, seeds=dict(map(_seed, given.seed))
        )
        if given.dry_run or given.slurm:
            verdicts = plan(found, given.only, given.force)
            say(table(verdicts))
            if given.slurm:
                say(f"submit with {write_jobs(found, verdicts, given.slurm, set(given.force))}")
            return 0
        runner = Runner(found, given.only, given.force, given.keep_going)
        try:
            states = runner.run()
        except (Interrupted, StageFailed) as error:
            sys.stderr.write(f"torchmem pipeline: {error}\n")
            return error.code
        shown = {name: state for name, state in states.items() if name in runner.chosen}
        say("\n".join(f"{state:<8}{name:<16}{found.folder / name}" for name, state in shown.items()))
        return 1 if FAILED in states.values() else 0

    return act


def _seed(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal():
        raise ValueError(f"--seed {text}: write NAME=N with a whole number from 0, such as --seed train=1")
    return name, int(number)


def fill_provenance(parser: argparse.ArgumentParser, say: Callable[[str], None]) -> Action:
    parser.add_argument("path", metavar="PATH", help="a run, recording, result, output of a stage, or a file of one")
    parser.add_argument("--check", action="store_true", help="read the files again: are they what the records say?")
    parser.add_argument("--json", action="store_true", help="the records themselves")

    def act(given: argparse.Namespace) -> int:
        from torchmem.pipeline.chain import chain, tree

        found = chain(given.path, check=given.check)
        say(json.dumps(found, indent=1) if given.json else tree(found))
        return 1 if given.check and _changed(found) else 0

    return act


def _changed(node: dict) -> bool:
    return node["altered"] or any(map(_changed, node["inputs"]))
