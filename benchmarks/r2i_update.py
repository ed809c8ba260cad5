"""How long one update of R2I takes at the shapes of preset=popgym, beside our DreamerV3 of equal width and a peer.

    python benchmarks/r2i_update.py [--rows world world-loop world-rssm full full-rssm] [--peer "COMMAND"] [--rounds 5]

Every row of the table is a process, asked for one update at a time in turns, as in dreamer_update.py, whose peers'
protocol this one speaks too (a peer that times one kind of update only says so in its name). 4 x 1024 steps, a vector
of 4, 4 discrete actions, float32, random data without replay and environment.

    world        R2I's world model: encoder, dynamics in parallel over time, heads, losses, backward, clipping, Adam
    world-loop   the same weights and losses with the S5 layers run step by step
    world-rssm   our DreamerV3's world model: RSSM with as wide an h, z and layers, the same heads, LaProp
    full         world, imagination of 15 steps from all 4096 states, actor, critic, slow critic
    full-rssm    the same of the DreamerV3

Ratios are paired within a round, against the first row: of wall seconds where the rest of the machine burnt less than
--max-other during both updates, and of the processes' own CPU seconds in all rounds. Memory is the peak of the process,
and beside it what it held before its first update: torch itself and the weights.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from dreamer_update import Row, spread, take_turns, timed  # beside this file

from torchmem.allocator import VARIABLE
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import new_agent
from torchmem.models.dists import gumbel
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.layers import cast_once
from torchmem.models.synthetic import random_batch
from torchmem.training.config import compose
from torchmem.training.device import fast_matmul
from torchmem.training.learner import Learner
from torchmem.training.processes import Processes
from torchmem.types import EnvSpec, Space

EPISODE = 52  # steps of RepeatPreviousEasy
ROWS = ("world", "world-loop", "world-rssm", "full", "full-rssm")


def make_agent(kind: str) -> Any:
    """The agent of a row. The vector and the four actions are what the official program sees of RepeatPrevious."""
    task = env_spec("popgym", task="repeat_previous", difficulty="easy")
    spec = EnvSpec("random", {"observation": Space((4,), "float32")}, dict(task.action), task.control_hz)
    c = compose(["preset=popgym"]).agent
    if kind.endswith("rssm"):
        wide = {name: getattr(c, name) for name in ("deter", "stoch", "classes", "vector_layers")}
        heads = {f"{head}_layers": getattr(c, f"{head}_layers") for head in ("reward", "cont", "policy", "value")}
        return new_agent(spec, DreamerConfig(**wide, **heads, hidden=c.units, units=c.head_units))
    agent = new_agent(spec, c)
    if kind == "world-loop":
        agent.dynamics.observe = functools.partial(agent.dynamics.observe, stepwise=True)
    return agent


def updater(kind: str, agent: Any, batch: int, length: int) -> Callable[[], Any]:
    """A call that makes one update on random data, cut into episodes as long as RepeatPreviousEasy's."""
    data = random_batch(agent, batch, length)
    steps = (torch.arange(1 + length) + 13 * torch.arange(batch).unsqueeze(1)) % EPISODE
    data |= {"is_first": steps == 0, "is_last": steps == EPISODE - 1, "is_terminal": steps == EPISODE - 1}
    if kind.startswith("full"):
        learner = Learner(agent, batch, length, 0, Processes())
        return lambda: learner.update(data)
    named = [(name, p) for name, p in agent.trained() if not name.startswith("behaviour.")]
    optimiser = type(agent.optimiser())(named, agent.config)

    def update() -> None:
        draws = gumbel((batch, length, agent.config.stoch, agent.config.classes), None, agent.device)
        with cast_once(agent):
            losses, _, _ = agent.world_loss(data, draws)
            torch.stack([agent.scale(name) * value.mean() for name, value in losses.items()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return update


def serve(args: argparse.Namespace) -> None:
    """One row of ours behind the protocol."""
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may write into the protocol
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    fast = fast_matmul().taken
    kind = args.rows[0]
    agent = make_agent(kind)
    update = updater(kind, agent, args.batch, args.length)
    trained = sum(p.numel() for n, p in agent.trained() if kind.startswith("full") or not n.startswith("behaviour."))
    held = timed(lambda: None)[1]["peak_rss_mb"]
    ready = {"ready": f"torchmem {kind}", "batch": args.batch, "length": args.length, "threads": args.threads,
             "params": trained, "matmul": "fast" if fast else "default", "held_mb": held}  # fmt: skip
    print(json.dumps(ready), file=wire)
    for request in sys.stdin:
        if request.strip() == "quit":
            return
        answer = timed(update)[1] if request.strip() == "step" else {"error": "only steps are timed here"}
        print(json.dumps(answer), file=wire)


def report(rows: list[Row], rounds: list[list[dict[str, float]]], args: argparse.Namespace) -> None:
    print(f"Batch {args.batch} x {args.length}, {args.threads} threads, float32, torch {torch.__version__}")
    head = ("row", "parameters", "wall s", "wall / first", "CPU s", "CPU / first", "other", "peak MB (before)")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for i, row in enumerate(rows):
        clean = [r for r in rounds if max(r[0]["other"], r[i]["other"]) < args.max_other]
        walls = [r[i]["wall_s"] for r in rounds if r[i]["other"] < args.max_other]
        dirty = "" if walls else f", all {spread([r[i]['wall_s'] for r in rounds])}"
        cells = (
            row.name, f"{row.ready.get('params', 0):,}", spread(walls) + dirty + f" (n={len(walls)})",
            f"{spread([r[i]['wall_s'] / r[0]['wall_s'] for r in clean])} (n={len(clean)})",
            spread([r[i]["cpu_s"] for r in rounds]),
            spread([r[i]["cpu_s"] / r[0]["cpu_s"] for r in rounds]),
            f"{statistics.median(r[i]['other'] for r in rounds):.0%}",
            f"{max(r[i]['peak_rss_mb'] for r in rounds):.0f}"
            + (f" ({row.ready['held_mb']:.0f})" if "held_mb" in row.ready else ""),
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["world", "world-loop", "world-rssm"], choices=ROWS)
    parser.add_argument("--peer", action="append", default=[], metavar="COMMAND", help="one more row; may be repeated")
    for name, default in (("batch", 4), ("length", 1024), ("threads", os.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default, help="of an update")
    parser.add_argument("--rounds", type=int, default=5, help="clean rounds wanted; at most 3 times as many run")
    parser.add_argument("--warmup", type=int, default=1, help="uncounted rounds before")
    parser.add_argument("--max-other", type=float, default=0.05, help="share of the machine others may burn")
    parser.add_argument("--verbose", action="store_true", help="show samples as they come, and the rows' stderr")
    parser.add_argument("--serve", action="store_true", help="be one row: speak the protocol")
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    sizes = f"--batch {args.batch} --length {args.length} --threads {args.threads}"
    huge = os.environ.get(VARIABLE, "1")  # as a run of ours does
    commands = [f"{VARIABLE}={huge} {sys.executable} {__file__} --serve --rows {kind} {sizes}" for kind in args.rows]
    rows = [Row(command, args) for command in commands + args.peer]
    rounds = take_turns(rows, args)
    report(rows, rounds, args)
    for row in rows:
        row.process.communicate("quit\n")


if __name__ == "__main__":
    main()
