"""Training steps per second of recurrent PPO on MiniGrid-MemoryS13, beside a public peer timed in the same run.

    python benchmarks/ppo.py --peer "COMMAND" [--rows 8x128:8 8x128:2 256x32:32] [--rounds 7]

A row ENVSxLENGTH:COLUMNS is one rollout of ENVS x LENGTH steps and 4 passes over it in minibatches of COLUMNS whole
columns; LSTM of --units units on the one-hot 3x3 view, linear actor and critic, no last action: the network the peer is
given. One round is one rollout with its updates, rows and peers taking turns; the ratio is taken within the round.
The bare row is torch.nn.LSTM forward and backward on the minibatches' shapes and nothing else.

A peer is a command that speaks one line per message on stdin and stdout; it finds BENCH_ENVS, BENCH_LENGTH, BENCH_BATCH
(steps of a minibatch), BENCH_UNITS, BENCH_PASSES and BENCH_THREADS in its environment:
    it prints  {"ready": name, "parameters": N}
    "round"    one rollout and its updates, then {"wall_s": s, "env_s": s, "collect_s": s, "update_s": s, "updates": N}
    "quit"     it ends
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
from typing import Any

import torch

from torchmem.envs.tensor_world import TensorWorld
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout, permutations
from torchmem.training.rollout_learner import RolloutLearner

WORLD = {"size": 13, "view": 3, "obs": "symbolic_onehot"}
PASSES = 4


class Timed:
    """The worlds, and the seconds spent in them."""

    def __init__(self, worlds: TensorWorld) -> None:
        self.worlds, self.n, self.spec, self.seconds = worlds, worlds.n, worlds.spec, 0.0

    def step(self, actions: Any) -> Any:
        start = time.perf_counter()
        out = self.worlds.step(actions)
        self.seconds += time.perf_counter() - start
        return out


class Ours:
    """One agent on batched worlds; `round` is what a peer answers to that word."""

    def __init__(self, envs: int, length: int, columns: int, units: int) -> None:
        self.name = f"torchmem {envs}x{length}, minibatch {columns}x{length}"
        torch.manual_seed(0)
        self.worlds = Timed(TensorWorld("minigrid_memory", WORLD, envs, seed=0))
        config = PPOConfig(core="lstm", units=units, encoder_layers=0, see_action=False, learned_start=False)
        agent = PPOAgent(self.worlds.spec, config)
        self.parameters = sum(p.numel() for _, p in agent.trained())
        self.alone, self.columns = Processes(), columns
        self.rollout = Rollout(agent, self.worlds, length, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        self.learner, self.order = RolloutLearner(agent, self.alone), torch.Generator().manual_seed(1)
        self.lstm = torch.nn.LSTM(agent.encoder.size, units, batch_first=True)
        self.x = torch.randn(columns, length, agent.encoder.size)

    def round(self) -> dict[str, float]:
        start, before = time.perf_counter(), self.worlds.seconds
        self.rollout.collect()
        self.rollout.finish(self.alone)
        middle, updates = time.perf_counter(), 0
        for order in permutations(self.worlds.n, self.columns, PASSES, self.order):
            self.learner.update(self.rollout.columns(order))
            updates += 1
        end = time.perf_counter()
        return {"wall_s": end - start, "env_s": self.worlds.seconds - before, "collect_s": middle - start,
                "update_s": end - middle, "updates": updates}

    def bare(self, updates: int) -> float:
        start = time.perf_counter()
        for _ in range(updates):
            out, _ = self.lstm(self.x)
            out.sum().backward()
            self.lstm.zero_grad(set_to_none=True)
        return time.perf_counter() - start


class Peer:
    """A process that answers."""

    def __init__(self, command: str, settings: dict[str, int]) -> None:
        env = os.environ | {f"BENCH_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        told = self._read()
        self.name, self.parameters = told["ready"], told["parameters"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the peer ended with code {self.process.wait()}")

    def round(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait(30)


def middle(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}-{max(values):.3g}]"


def compare(row: str, given: argparse.Namespace) -> None:
    shape, columns = row.split(":")
    envs, length = map(int, shape.split("x"))
    ours, steps = Ours(envs, length, int(columns), given.units), envs * length
    settings = {"envs": envs, "length": length, "batch": given.peer_batch or int(columns) * length,
                "units": given.units, "passes": PASSES, "threads": given.threads}
    peers = [Peer(command, settings) for command in given.peer]
    members: list[Ours | Peer] = [ours, *peers]
    seen: dict[str, list[dict[str, float]]] = {m.name: [] for m in members}
    bare = []
    for number in range(given.warmup + given.rounds):
        for member in members if number % 2 else reversed(members):
            cost = member.round()
            if number >= given.warmup:
                seen[member.name].append(cost)
        if number >= given.warmup:
            last = seen[ours.name][-1]
            bare.append(last["update_s"] / ours.bare(int(last["updates"])))
    for m in members:
        rounds = seen[m.name]
        share = {key: statistics.median(r[key] / r["wall_s"] for r in rounds) for key in
                 ("env_s", "collect_s", "update_s")}
        print(f"| {m.name} | {m.parameters:,} | {middle([steps / r['wall_s'] for r in rounds])} | "
              f"{int(rounds[0]['updates'])} | {share['env_s']:.0%} | {share['collect_s'] - share['env_s']:.0%} | "
              f"{share['update_s']:.0%} | " + (f"{middle(bare)} |" if m is ours else "- |"))
    for peer in peers:
        pairs = zip(seen[peer.name], seen[ours.name], strict=True)
        print(f"    {ours.name} trains {middle([b['wall_s'] / a['wall_s'] for b, a in pairs])} times as fast as "
              f"{peer.name}")
        peer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], help="command of a peer; may be repeated")
    parser.add_argument("--rows", nargs="+", default=["8x128:8", "8x128:2"])
    parser.add_argument("--peer-batch", type=int, help="steps of the peer's minibatch (default: as in the row)")
    parser.add_argument("--units", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| | parameters | training steps/s | updates | worlds | acting | learning | learning / bare nn.LSTM |")
    print("|---|---|---|---|---|---|---|---|")
    for row in given.rows:
        compare(row, given)


if __name__ == "__main__":
    main()
