"""`torchmem VERB ...`: thin verbs over the package's functions, with the same names and defaults.

A new verb is one function here: it adds its arguments to the parser and returns what to do with them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence

from torchmem.cli_import import json_arguments
from torchmem.cli_verbs import ELSEWHERE
from torchmem.errors import TorchmemError

Action = Callable[[argparse.Namespace], int]  # returns the exit code
VERBS: dict[str, Callable[[argparse.ArgumentParser], Action]] = {}


def verb(
    name: str,
) -> Callable[[Callable[[argparse.ArgumentParser], Action]], Callable[[argparse.ArgumentParser], Action]]:
    """Register a verb; its docstring is its help."""

    def register(function: Callable[[argparse.ArgumentParser], Action]) -> Callable[[argparse.ArgumentParser], Action]:
        VERBS[name] = function
        return function

    return register


def say(text: str) -> None:
    """The answer of a verb goes to stdout; logs go to stderr."""
    sys.stdout.write(text + "\n")


@verb("train")
def train(parser: argparse.ArgumentParser) -> Action:
    """Train an agent: the same as python train.py, whose --help lists every KEY."""
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="such as agent=ppo env=minigrid_memory seed=1")
    parser.add_argument("-m", "--multirun", action="store_true", help="run after run: seed=0,1,2")
    parser.add_argument("--keys", action="store_true", help="list every KEY for this agent and world; train nothing")

    def act(given: argparse.Namespace) -> int:
        from torchmem.allocator import use_huge_pages

        use_huge_pages()  # before torch is imported
        from torchmem.training.command import main

        flags = {"--multirun": given.multirun, "--help": given.keys}
        return main([*given.words, *(flag for flag, is_set in flags.items() if is_set)])

    return act


@verb("plot")
def plot(parser: argparse.ArgumentParser) -> Action:
    """Draw learning curves: median and quartiles over runs that differ only by seed, with chance, human and oracle."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, such as runs/*")
    parser.add_argument("--x", default="env_steps", choices=["env_steps", "agent_steps", "updates", "wall_s"])
    parser.add_argument(
        "--y", action="append", metavar="METRIC", help="name in metrics.jsonl; may be repeated (eval/score)"
    )
    parser.add_argument("--out", default="curves.png", metavar="FILE", help="png, pdf or svg (%(default)s)")
    parser.add_argument("--progress", action="store_true", help="one run on one page: returns, losses, achievements")
    parser.add_argument("--smooth", type=int, default=50, metavar="ROWS", help="of --progress (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        if given.progress:
            from torchmem.training.progress import save_progress

            if len(given.runs) > 1 or given.y:
                raise ValueError("--progress draws one run, and everything that it logs: give one RUN and no --y")
            say(f"wrote {save_progress(given.runs[0], given.out, given.x, given.smooth)}")
            return 0
        from torchmem.training.plot import save_plot

        say(f"wrote {save_plot(given.runs, given.out, given.x, given.y or ('eval/score',))}")
        return 0

    return act


@verb("doctor")
def doctor(parser: argparse.ArgumentParser) -> Action:
    """Say what this machine lacks and how to get it: GL, Qt, compiler, disk, worlds."""
    parser.add_argument("folder", nargs="?", default=".", help="where runs will be written (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem import doctor as look

        checks = look.doctor(given.folder)
        say(look.report(checks))
        return look.exit_code(checks)

    return act


@verb("envs")
def envs(parser: argparse.ArgumentParser) -> Action:
    """List the worlds: every id with what it shows, its actions, truth and reference levels; of one, its arguments."""
    parser.add_argument("name", nargs="?", help="only this one, by its name or an id, with every argument it takes")
    parser.add_argument("--measure", type=float, metavar="SECONDS", help="step each so long: steps/s of one copy here")
    parser.add_argument("--json", action="store_true", help="the same as JSON")

    def act(given: argparse.Namespace) -> int:
        import json

        from torchmem.envs.catalogue import catalogue, text
        from torchmem.training.config import components
        from torchmem.training.typed import documented

        blocks = catalogue(given.name, given.measure)
        if given.json:
            say(json.dumps([entry.to_json() for block in blocks for entry in block], indent=1, allow_nan=False))
            return 0
        for block in blocks:  # one after the other: making a simulator takes seconds
            say(text(block))
            if given.name is not None:
                for field, described, value, sentence in documented(components("env")[block[0].name], "env."):
                    shown = "null" if value is None else value
                    say(f"  {f'{field}={shown}':<32}{sentence} ({described})")
            say("")
        return 0

    return act


@verb("verify")
def verify(parser: argparse.ArgumentParser) -> Action:
    """Test an agent and a world before they train: resets, acting against training, returns, truth apart, seeds, spec.

    Nothing is trained and nothing is written. Exit code 1 where a check fails.
    """
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as for train.py, such as agent=ppo env=dummy")
    parser.add_argument("--json", action="store_true", help="the checks as JSON instead of a table")

    def act(given: argparse.Namespace) -> int:
        from torchmem.verify import verify

        found = verify(given.words)
        say(found.to_json() if given.json else found.summary())
        return 0 if found.ok else 1

    return act


@verb("import")
def import_(parser: argparse.ArgumentParser) -> Action:
    """Read what another program wrote: agents (danijar/dreamerv3, NM512/dreamerv3-torch, train-procgen-pytorch,
    Stable-Baselines3) into a run folder, episodes of vviggyy/dreamerv3f and of interpreting-rl-behavior into a
    recording, the former's logs into a run."""
    from torchmem.cli_import import fill

    return fill(parser, say)


@verb("eval")
def evaluate(parser: argparse.ArgumentParser) -> Action:
    """Play fresh episodes with a trained agent: success or return with its interval, with and without memory."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="whole episodes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of worlds and actions; never meets a training seed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the scores there")

    def act(given: argparse.Namespace) -> int:
        from torchmem.files import atomic_write
        from torchmem.models.checkpoint import load
        from torchmem.training.evaluate import evaluate
        from torchmem.training.world_views import has_batched_form

        agent = load(given.run, given.device)
        many = has_batched_form(agent.spec.name)  # the same worlds, a hundred times as fast
        kwargs = {**agent.spec.kwargs, "backend": "batched"} if many else agent.spec.kwargs
        results = {}
        for name, memory in {"eval": True, "eval_no_memory": False}.items():
            result = evaluate(
                agent, agent.spec.name, kwargs, given.episodes, given.seed, memory=memory, envs=256 if many else 16
            )
            say(f"{'with memory' if memory else 'carry reset every step'}: {result.summary()}")
            results |= result.metrics(name)
        for name, level in agent.spec.levels.items():
            say(f"{name} level: {level:g}")
        for caveat in agent.spec.caveats:
            say(f"CAVEAT: {caveat}")
        results |= {"caveats": list(agent.spec.caveats)} if agent.spec.caveats else {}
        if given.json:
            atomic_write(given.json, json.dumps(results | {"seed": given.seed, "run": str(given.run)}, indent=1))
        return 0

    return act


@verb("video")
def video(parser: argparse.ArgumentParser) -> Action:
    """Let an agent play, then show what its world model predicts open-loop: truth, model, error as a GIF."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder")
    parser.add_argument("--out", default="open_loop.gif", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="agent steps, 5 of them observed")
    parser.add_argument("--seed", type=int, default=0)

    def act(given: argparse.Namespace) -> int:
        from torchmem.surgery.model import load

        say(f"wrote {load(given.run).video(given.out, given.steps, seed=given.seed)}")
        return 0

    return act


@verb("sites")
def sites(parser: argparse.ArgumentParser) -> Action:
    """List the sites of an agent: every value that can be read, edited and recorded, with sizes and meaning."""
    parser.add_argument("run", metavar="RUN", help="run folder, snapshot or agent folder")
    parser.add_argument("pattern", nargs="?", default="*", help="only these, such as 'core.*' (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.models.checkpoint import load
        from torchmem.models.site_table import matching, text

        say(text(matching(load(given.run).sites, given.pattern)))
        return 0

    return act


@verb("record")
def record(parser: argparse.ArgumentParser) -> Action:
    """Let an agent play whole episodes and keep what its sites hold: activations, actions, reward, value, truth."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a snapshot or an agent folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the recording")
    parser.add_argument("--env", metavar="NAME", help="another world than the agent was made for")
    parser.add_argument("--env-kwargs", metavar="JSON", help="""its arguments, such as '{"size": 9}'""")
    parser.add_argument("--sites", nargs="+", default=["memory"], metavar="SITE", help="names or quoted patterns")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="whole episodes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of worlds and noise; never meets a training seed")
    parser.add_argument("--envs", type=int, default=16, metavar="N", help="worlds in lock-step (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes for them (%(default)s)")
    parser.add_argument("--batched", action="store_true", help="MiniGrid memory worlds in one table, for --envs 1024")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest action")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="divides its logits (%(default)s)")
    parser.add_argument("--epsilon", type=float, default=0.0, metavar="P", help="share of random actions (%(default)s)")
    parser.add_argument("--sticky", type=float, default=0.0, metavar="P", help="share of repeated ones (%(default)s)")
    parser.add_argument("--untrained", action="store_true", help="the same agent before learning, a control")
    parser.add_argument("--edits", metavar="FOLDER", help="edits that hold while recording (surgery's save_edits)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="of the sites")
    parser.add_argument("--pooling", default="none", choices=["none", "mean"], help="of maps, over height and width")
    parser.add_argument("--no-observations", action="store_true", help="leave out what the agent saw")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished recording in FOLDER")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")

    def act(given: argparse.Namespace) -> int:
        from torchmem.artefact import append_record
        from torchmem.provenance import device
        from torchmem.surgery.behaviour_mix import Behaviour
        from torchmem.surgery.edit_files import load_edits
        from torchmem.surgery.model import load, untrained
        from torchmem.surgery.record import record

        env_kwargs = None if given.env_kwargs is None else json_arguments(given.env_kwargs)
        same = (
            "env", "sites", "episodes", "seed", "envs", "workers", "batched", "greedy", "out", "dtype", "pooling",
            "resume",
        )  # fmt: skip
        model = load(given.run, given.device)
        rec = record(
            untrained(model, given.seed) if given.untrained else model,
            **{name: getattr(given, name) for name in same},
            edits=load_edits(given.edits) if given.edits else (),
            behaviour=Behaviour(given.temperature, given.epsilon, given.sticky),
            observations=not given.no_observations,
            env_kwargs=env_kwargs,
            progress=True,
        )
        # here and not in `record`: the hash reads everything once more, which a program that goes on may not want
        append_record(rec.path, dataclasses.replace(rec.provenance, device=device()), plan=rec.plan)
        say(rec.summary())
        return 0

    return act


def borrowed(name: str, home: str, text: str) -> None:
    """Register a verb of ELSEWHERE; its module is imported when the verb is asked for."""

    def fill(parser: argparse.ArgumentParser) -> Action:
        module, _, function = home.partition(":")
        return getattr(importlib.import_module(module), function)(parser, say)

    fill.__doc__ = text
    verb(name)(fill)


for _name, (_home, _text) in ELSEWHERE.items():
    borrowed(_name, _home, _text)


@verb("pipeline")
def pipeline(parser: argparse.ArgumentParser) -> Action:
    """Run the stages of a file, each only if what it reads, its options, its seeds or the code have changed."""
    from torchmem.pipeline.command import fill_pipeline
    from torchmem.pipeline.file import Verbs

    return fill_pipeline(parser, say, lambda: Verbs(tuple(VERBS), fault))


def fault(words: Sequence[str]) -> str | None:
    """What is wrong with the words of a verb, found without doing anything; None: nothing."""

    def parsed(words: Sequence[str]) -> argparse.Namespace | str:
        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
                return build()[0].parse_args(list(words))
        except SystemExit:
            return told.getvalue().strip()

    given = parsed(words)
    if isinstance(given, str):
        text = given.rpartition("error: ")[2]
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", text)
        options = re.findall(r"--[\w-]+", str(parsed([words[0], "--help"]))) if unknown else []
        close = difflib.get_close_matches(unknown[1], options, 1) if unknown else []
        return f"{text}; did you mean {close[0]}?" if close else text
    if given.verb == "train":
        from torchmem.training.config import ConfigError, compose

        try:
            compose(given.words)
        except ConfigError as error:
            return str(error)
    return None


def build() -> tuple[argparse.ArgumentParser, dict[str, Action]]:
    """The parser of all verbs, and what each does."""
    parser = argparse.ArgumentParser(
        prog="torchmem",
        description="Train agents that remember, and take their memory apart. Training: python train.py --help",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    actions = {}
    for name, fill in VERBS.items():
        text = (fill.__doc__ or "").strip()
        actions[name] = fill(verbs.add_parser(name, help=text.split(":")[0].rstrip("."), description=text))
    return parser, actions


def main(words: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 the verb found something wrong, 2 wrong arguments, 128 + signal: stopped."""
    words = list(sys.argv[1:] if words is None else words)
    parser, actions = build()
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return actions[given.verb](given)
    except (TorchmemError, ValueError, KeyError, OSError) as error:  # wrong input, told in one line
        if given.traceback:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) adds quotes
        sys.stderr.write(f"torchmem {given.verb}: {text}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
