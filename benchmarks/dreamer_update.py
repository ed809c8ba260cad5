"""How long one full DreamerV3 update takes, beside a public peer timed in the same run.

    python benchmarks/dreamer_update.py --matmul default fast --precision float32 bfloat16 --peer "COMMAND"

Every row of the table is a process. One at a time is asked for one update, row by row and in reversed order every other
round, so that drift of the machine hits all alike. A full update is world model, imagination, actor, critic, clipping,
optimiser and slow critic on a random batch (64x64x3 images, 6 discrete actions), without replay and environment.
A sample counts if all other processes together burnt less than --max-other of the machine meanwhile; a paired ratio
counts if both its samples do. Policy steps run through the Collector, image in, action out: best of three medians.

A peer is any command that speaks this protocol, one line per message, on stdin and stdout. It finds BENCH_BATCH,
BENCH_LENGTH and BENCH_THREADS in its environment; leading VAR=value words of the command are added to that.
    it prints  {"ready": name, "params": N, "batch": B, "length": T, "threads": N, "matmul": "default" or "fast"}
    "step"     one update, then {"wall_s": s, "cpu_s": s, "peak_rss_mb": MB, "other": share of the machine}
    "flops"    counts one update, then {"flops": N} or {"error": why not}
    "act B N"  policy steps of B worlds on N threads, then {"median_ms": ms, "other": share}, or {"error": why not}
    "quit"     it ends
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchmem.allocator import use_huge_pages

if "--serve" in sys.argv:  # as a run of ours does, and only there: it sets a variable that peers would inherit
    use_huge_pages()  # THP_MEM_ALLOC_ENABLE=0 shows our rows without
import torch

ACTIONS, SIDE = 6, 64  # discrete actions; pixels of the square image


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result and its cost; `other` is what the rest of the machine burnt meanwhile, as a share of all cores."""

    def machine_s() -> float:  # user nice system irq softirq steal; idle and iowait left out
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")

    busy, cpu, wall = machine_s(), time.process_time(), time.perf_counter()
    out = call()
    wall, cpu, busy = time.perf_counter() - wall, time.process_time() - cpu, machine_s() - busy
    return out, {"wall_s": wall, "cpu_s": cpu, "other": max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1)),
                 "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def matmul_rate(kind: str) -> tuple[float, float]:
    """Median FLOP/s of 2048^3 products, and the share of the machine that others burnt meanwhile."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if kind == "fast" else "none"  # as training/device.py does
    x = torch.randn(2048, 2048).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    walls, cost = timed(lambda: [timed(lambda: x @ x)[1]["wall_s"] for _ in range(20)])
    return 2 * 2048**3 / statistics.median(walls[2:]), cost["other"]


def analytic_flops(agent: Any, frames: int) -> float:
    """FLOPs of an update as published, nothing twice: every weight's forward, input gradient and weight gradient.

    Products and convolutions only, 25 taps a pixel after upsampling too (what runs folds them into 9), and no gradient
    that nothing needs: of the image, of imagined features, of dynamics in imagination.
    """
    c, h, total = agent.config, agent.config.imag_length, 0
    uses = {"dynamics.posterior": 3, "dynamics": 3 + h, "encoder": 3, "decoder": 3, "reward": h + 4, "cont": h + 4,
            "behaviour.policy": 3 * h + 1, "behaviour.value": 3 * h + 4, "behaviour.slow_value": h + 2}
    for name, weight in ((n, p) for n, p in agent.named_parameters() if p.dim() > 1):
        times = next(n for prefix, n in uses.items() if name.startswith(prefix))
        times -= name == "encoder.cnn.0.conv.weight"
        times -= h * name.startswith(("behaviour.policy.mlp.0.", "behaviour.value.mlp.0."))
        stage = int((re.findall(r"\d+", name) or [len(c.mults) - 1])[0])
        shift = stage if name.startswith("encoder") else len(c.mults) - 1 - stage
        total += weight.numel() * times * ((SIDE >> shift) ** 2 if weight.dim() == 4 else 1)
    return 2.0 * frames * total


def serve(args: argparse.Namespace) -> None:
    """One row of ours behind the protocol."""
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may write into the protocol
    torch.set_num_threads(args.threads)
    from torch.utils.flop_counter import FlopCounterMode

    from torchmem.envs.collector import Collector
    from torchmem.models.dreamer.agent import DreamerAgent
    from torchmem.training.compile import compile_agent
    from torchmem.training.config import compose
    from torchmem.training.device import fast_matmul
    from torchmem.training.learner import Learner
    from torchmem.training.processes import Processes
    from torchmem.types import FLAGS, EnvSpec, Space

    torch.manual_seed(0)
    product = fast_matmul() if args.matmul[0] == "fast" else None
    if product and not product.taken:
        raise SystemExit(f"this CPU rounds under --matmul fast: {product}")
    spec = EnvSpec("random", {"image": Space((SIDE, SIDE, 3), "uint8")}, {"action": Space((), "int64", ACTIONS)}, 10.0)
    agent = DreamerAgent(spec, compose([f"size={args.size}"]).agent)
    agent.dtype = getattr(torch, args.precision[0])
    learner = Learner(agent, args.batch, args.length, 0, Processes())
    shape = (args.batch, args.length + 1)  # one step of context
    batch = {"image": torch.randint(256, (*shape, SIDE, SIDE, 3), dtype=torch.uint8), "reward": torch.randn(shape),
             "action": torch.randint(ACTIONS, shape)}
    batch |= {key: torch.zeros(shape, dtype=torch.bool) for key in FLAGS}
    batch |= {k: torch.zeros((*shape, *s), dtype=getattr(torch, d)) for k, (s, d) in agent.latent_schema().items()}

    step = compile_agent(agent)[1] if args.compile_policy else agent.policy

    def act(n: str, threads: str) -> dict[str, float]:
        count, generator = int(n), torch.Generator().manual_seed(1)
        seen = {key: batch[key].flatten(0, 1)[:count].numpy() for key in ("image", "reward", *FLAGS)}
        worlds = SimpleNamespace(n=count, step=lambda actions: ({k: v.copy() for k, v in seen.items()}, {}))
        collector = Collector(worlds, agent.initial(count))

        def policy(obs: dict[str, torch.Tensor], carry: Any) -> Any:
            return step(obs, carry, agent.acting_noise(count, generator))

        torch.set_num_threads(int(threads))
        walls, cost = timed(lambda: [timed(lambda: collector.step(policy))[1]["wall_s"] for _ in range(210)])
        torch.set_num_threads(args.threads)
        return {**cost, "median_ms": 1e3 * statistics.median(walls[10:])}

    def count() -> dict[str, float]:
        with FlopCounterMode(display=False) as counter:
            learner.update(batch)
        return {"flops": counter.get_total_flops(), "analytic": analytic_flops(agent, args.batch * args.length)}

    answers = {"step": lambda: timed(lambda: learner.update(batch))[1], "flops": count, "act": act, "quit": sys.exit}
    ready = {"ready": f"torchmem {args.size} {args.precision[0]} matmul={args.matmul[0]}", "batch": args.batch,
             "params": sum(p.numel() for _, p in agent.trained()), "length": args.length, "threads": args.threads,
             "matmul": args.matmul[0] if agent.dtype == torch.float32 else "bfloat16",
             "error": product and product.onednn}
    print(json.dumps(ready), file=wire)
    for request in sys.stdin:
        verb, *words = request.split()
        print(json.dumps(answers[verb](*words)), file=wire)


class Row:
    """One process that speaks the protocol."""

    def __init__(self, command: str, args: argparse.Namespace) -> None:
        wanted = {key: getattr(args, key) for key in ("batch", "length", "threads")}
        words = ["env", *(f"BENCH_{k.upper()}={v}" for k, v in wanted.items()), *shlex.split(command)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=None if args.verbose else subprocess.DEVNULL)
        self.ready = self.ask()
        self.name = self.ready["ready"]
        if (got := {key: self.ready.get(key) for key in wanted}) != wanted:
            raise SystemExit(f"{self.name} runs with {got}, asked for {wanted}")

    def ask(self, request: str = "") -> dict[str, Any]:
        if request:
            time.sleep(0.3)  # let the threads of the row before go to sleep
            print(request, file=self.process.stdin, flush=True)
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        raise SystemExit(f"{self.process.args} ended with {self.process.wait()}; --verbose shows its messages")

    def policy(self, batch: int, threads: int) -> str:
        replies = [self.ask(f"act {batch} {threads}") for _ in range(3)]
        best = min(replies, key=lambda r: r.get("median_ms", float("inf")))
        return f"{best['median_ms']:.2f} ms (other {best['other']:.0%})" if "median_ms" in best else "-"


def take_turns(rows: list[Row], args: argparse.Namespace) -> list[list[dict[str, float]]]:
    """Samples by round and row: forwards and backwards in turn, until enough rounds are clean or too many have run."""
    rounds: list[list[dict[str, float]]] = []
    for turn in range(args.warmup + 3 * args.rounds):
        samples = {row: row.ask("step") for row in (rows if turn % 2 else rows[::-1])}
        if args.verbose:
            print(turn, *(f"{row.name}: {samples[row]}" for row in rows), sep="\n  ", file=sys.stderr)
        rounds += [[samples[row] for row in rows]] if turn >= args.warmup else []
        if sum(all(s["other"] < args.max_other for s in r) for r in rounds) >= args.rounds:
            break
    return rounds


HEAD = ("row", "parameters", "wall s (clean of all)", "CPU s", "other", "peak MB", "GFLOP counted (analytic)",
        "of matmul rate", "policy B=1", "policy B=16", "oneDNN product against float64")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]" if values else "none clean"


def report(rows: list[Row], rounds: list[list[dict[str, float]]], args: argparse.Namespace) -> None:
    def line(cells: Any) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)

    torch.set_num_threads(args.threads)
    rates = {kind: matmul_rate(kind) for kind in ("default", "fast", "bfloat16")}
    print(f"Batch {args.batch} x {args.length}, {args.threads} threads, torch {torch.__version__}. GFLOP/s of 2048^3 "
          "products: " + ", ".join(f"{k} {rate / 1e9:.0f} (other {o:.0%})" for k, (rate, o) in rates.items()))
    line(HEAD)
    line("---" for _ in HEAD)
    for row, samples in zip(rows, zip(*rounds, strict=True), strict=True):
        walls = [s["wall_s"] for s in samples if s["other"] < args.max_other]
        dirty = "" if walls else f"; all: {spread([s['wall_s'] for s in samples])}"
        policy, work = [row.policy(n, args.act_threads) for n in (1, 16)], row.ask("flops")
        flops, (rate, _) = work.get("flops", float("nan")), rates[row.ready.get("matmul", "default")]
        line([row.name, f"{row.ready.get('params', 0):,}", f"{spread(walls)}{dirty} ({len(walls)} of {len(samples)})",
              f"{statistics.median(s['cpu_s'] for s in samples):.2f}", " ".join(f"{s['other']:.0%}" for s in samples),
              f"{max(s['peak_rss_mb'] for s in samples):.0f}",
              f"{flops / 1e9:.0f}" + (f" ({work['analytic'] / 1e9:.0f})" if "analytic" in work else ""),
              f"{flops / statistics.median(walls) / rate:.0%}" if walls else "-", *policy,
              f"{row.ready['error']:.1e}" if row.ready.get("error") else "-"])
    print("\nPaired wall time, row / column: median [min-max] (rounds clean in both)")
    line(["", *(row.name for row in rows)])
    line("---" for _ in range(len(rows) + 1))
    for i, row in enumerate(rows):
        pairs = [[(r[i], r[j]) for r in rounds] for j in range(len(rows))]
        ratios = [[a["wall_s"] / b["wall_s"] for a, b in p if max(a["other"], b["other"]) < args.max_other]
                  for p in pairs]
        line([row.name, *(f"{spread(r)} ({len(r)})" if i != j else "1" for j, r in enumerate(ratios))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="12m", help="preset of torchmem/conf/size")
    for name, default in (("batch", 16), ("length", 64), ("threads", os.cpu_count())):
        parser.add_argument(f"--{name}", type=int, default=default, help="of an update")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--matmul", nargs="+", default=["fast"], choices=["default", "fast"], help="for float32 rows")
    parser.add_argument("--rounds", type=int, default=5, help="clean rounds wanted; at most 3 times as many run")
    parser.add_argument("--warmup", type=int, default=2, help="uncounted rounds before")
    parser.add_argument("--max-other", type=float, default=0.05, help="share of the machine others may burn")
    parser.add_argument("--peer", action="append", default=[], metavar="COMMAND", help="one more row; may be repeated")
    parser.add_argument("--act-threads", type=int, default=1, help="threads of a policy step (1)")
    parser.add_argument("--compile-policy", action="store_true", help="our policy steps through torch.compile")
    parser.add_argument("--verbose", action="store_true", help="show samples as they come, and the rows' stderr")
    parser.add_argument("--serve", action="store_true", help="be one row: speak the protocol")
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    own = [(p, m) for p in args.precision for m in (args.matmul if p == "float32" else ["fast"])]
    sizes = f"--size {args.size} --batch {args.batch} --length {args.length} --threads {args.threads}"
    sizes += " --compile-policy" * args.compile_policy
    commands = [f"{sys.executable} {__file__} --serve {sizes} --precision {p} --matmul {m}" for p, m in own]
    rows = [Row(command, args) for command in commands + args.peer]
    rounds = take_turns(rows, args)
    report(rows, rounds, args)
    for row in rows:
        row.process.communicate("quit\n")


if __name__ == "__main__":
    main()
