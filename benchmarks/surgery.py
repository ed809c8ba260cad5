"""What looking costs, paired: tracing against the plain pass, recording against acting, compiled taps against none.

    python benchmarks/surgery.py --size 12m --rounds 7                 # trace and record
    python benchmarks/surgery.py --only taps --size 1m --rounds 7      # compiles two losses first (minutes on a CPU)

Each round runs both members of a pair, in changing order; the ratio is taken within the round, and the table shows the
median and range of the ratios. Limits of issue 3: trace 1.15, record 1.3, compiled taps 1.05. Torch's threads are
--threads; run it on a quiet machine, and look at the range to see whether it was one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

import torchmem
from torchmem.envs.collector import Collector
from torchmem.envs.make import env_spec
from torchmem.envs.vector import VectorEnv
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.synthetic import random_batch
from torchmem.models.taps import Tapped
from torchmem.surgery.model import Model
from torchmem.training.config import compose
from torchmem.training.device import fast_matmul

ROWS, STEPS, WORLDS, EPISODE = 16, 64, 16, 200
COMPILED_STEPS = 16  # compiling takes as long as the sequence
LIMITS = {"trace": 1.15, "record": 1.3, "record-bf16": 1.3, "taps": 1.05}


def agent_of(size: str, world: str, **kwargs: int) -> DreamerAgent:
    config = compose(["agent=dreamer", f"env={world}", f"size={size}"]).agent
    torch.manual_seed(0)
    return DreamerAgent(env_spec(world, **kwargs), config)


def trace_pair(size: str) -> tuple[Callable, Callable]:
    """One site traced through nnsight, against the agent's own unroll without gradient."""
    agent = agent_of(size, "memory_maze")
    model, batch = Model(agent), random_batch(agent, ROWS, STEPS - 1)
    sequence = {key: batch[key] for key in (*agent.spec.obs, *agent.spec.action, "is_first")}
    noise = agent.sequence_noise(ROWS, STEPS, torch.Generator().manual_seed(0))
    obs, actions = ({key: batch[key] for key in keys} for keys in (agent.spec.obs, agent.spec.action))

    def plain() -> None:
        with torch.no_grad():
            agent.unroll(obs, actions, batch["is_first"], agent.initial(ROWS), noise)

    def traced() -> None:
        with model.trace(sequence, noise=noise):
            model.site("dynamics.deter").save()

    return plain, traced


def record_pair(size: str, episodes: int = 8 * WORLDS, dtype: str = "float32") -> tuple[Callable, Callable]:
    """All dynamics.* sites to a zarr recording, against the same episodes acted without a record."""
    model = Model(agent_of(size, "dummy", length=EPISODE))
    agent = model.agent

    def acting() -> None:
        generator, done = torch.Generator().manual_seed(0), 0
        with VectorEnv("dummy", {"length": EPISODE}, WORLDS, split="record", seed=0) as worlds:
            collector = Collector(worlds, agent.initial(WORLDS), agent.device)
            while done < episodes:
                collector.step(lambda obs, carry: agent.policy(obs, carry, agent.acting_noise(WORLDS, generator)))
                done += len(collector.finished)

    def recording() -> None:
        with tempfile.TemporaryDirectory() as folder:
            torchmem.record(model, sites=["dynamics.*"], episodes=episodes, envs=WORLDS, dtype=dtype, out=f"{folder}/r")

    return acting, recording


def taps_pair(size: str) -> tuple[Callable, Callable]:
    """The compiled loss with dynamics.deter and the critic's logits handed out, against the compiled loss alone."""
    agent = agent_of(size, "memory_maze")
    batch = random_batch(agent, ROWS, COMPILED_STEPS)
    noise = agent.training_noise(ROWS, COMPILED_STEPS, torch.Generator().manual_seed(0))
    losses = [
        torch.compile(source.loss_parts, dynamic=False)
        for source in (agent, Tapped(agent, ["dynamics.deter", "dynamics.stoch", "dynamics.posterior"]))
    ]

    def run(loss: Callable) -> Callable:
        def call() -> None:
            loss(batch, noise)[0].backward()
            agent.zero_grad(set_to_none=True)

        return call

    return run(losses[0]), run(losses[1])


def record_half_pair(size: str) -> tuple[Callable, Callable]:
    """The same, kept as bfloat16."""
    return record_pair(size, dtype="bfloat16")


PAIRS = {"trace": trace_pair, "record": record_pair, "record-bf16": record_half_pair, "taps": taps_pair}


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=["trace", "record"])
    parser.add_argument("--size", default="12m", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    fast_matmul()
    print(f"{'pair':12} {'plain s':>9} {'with s':>9} {'ratio':>7}  range of ratios     limit")
    for name in given.only:
        plain, watched = PAIRS[name](given.size)
        for _ in range(given.warmup):
            plain(), watched()
        times = []
        for number in range(given.rounds):
            order = (plain, watched) if number % 2 else (watched, plain)
            taken = {call: seconds(call) for call in order}
            times.append((taken[plain], taken[watched]))
        ratios = [b / a for a, b in times]
        a, b, ratio = (statistics.median(column) for column in ([t[0] for t in times], [t[1] for t in times], ratios))
        print(f"{name:12} {a:9.3f} {b:9.3f} {ratio:7.3f}  {min(ratios):.3f} to {max(ratios):.3f}      {LIMITS[name]}")


if __name__ == "__main__":
    main()
