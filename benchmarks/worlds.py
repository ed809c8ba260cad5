"""Steps per second of the MiniGrid memory worlds, batched beside one by one, in one process and thread.

    python benchmarks/worlds.py [--copies 256 4096] [--device cpu]

A step is an observation, reward, flags and the whole truth, with auto-reset, under random actions. "package" is
`minigrid.envs.memory.MemoryEnv` itself, "gymnasium" our world on it. The two kinds take turns; the median of the rounds
is printed, and the ratio to the package of the same round. On a CPU seconds are of this process alone (one thread), so
that other work on the machine counts less; with --device cuda they are of the wall.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import torch
from minigrid.envs.memory import MemoryEnv

from torchmem.envs import make_env
from torchmem.envs.tensor_world import TensorWorld

WORLDS = (
    ("minigrid_memory", {"size": 13, "view": 3, "obs": "symbolic"}),
    ("minigrid_memory", {"size": 13, "view": 7, "obs": "symbolic"}),
    ("minigrid_memory", {"size": 13, "view": 3}),
    ("minigrid_memory", {"size": 17, "view": 7, "random_length": True}),
    ("minigrid_switching", {"size": 13, "view": 3}),
    ("minigrid_four_room", {"size": 13, "view": 7}),
)


def rate(count: int, call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return count / (clock() - start)


def alone(env, steps: int) -> Callable[[], object]:
    """Step one gymnasium environment, resetting where an episode ends."""
    actions = torch.randint(3, (steps,)).tolist()

    def run() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
    return run


def together(world: TensorWorld, steps: int) -> Callable[[], object]:
    actions = torch.randint(3, (steps, world.n), device=world.device)

    def run() -> None:
        for row in actions:
            world.step({"action": row})
        if world.device.type == "cuda":
            torch.cuda.synchronize()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    logging.disable()  # that some of these can be solved without memory is not news here
    for name, kwargs in WORLDS:
        stock = MemoryEnv(size=kwargs["size"], agent_view_size=kwargs["view"],
                          random_length=kwargs.get("random_length", False))
        rows: dict[str, tuple[int, Callable[[], object]]] = {
            "package": (2000, alone(stock, 2000)), "gymnasium": (2000, alone(make_env(name, **kwargs), 2000))}
        for n in options.copies:
            world = TensorWorld(name, kwargs, n, device=options.device)
            world.step(None)
            rows[f"batched {n}"] = (50 * n, together(world, 50))
        for _, call in rows.values():
            call()
        rounds = [{row: rate(*work, clock) for row, work in rows.items()} for _ in range(options.rounds)]
        print(name, kwargs)
        for row in rows:
            speed = statistics.median(found[row] for found in rounds)
            ratio = statistics.median(found[row] / found["package"] for found in rounds)
            print(f"  {row:14} {speed:12,.0f} steps/s   {ratio:7.1f} x package (of MiniGrid-Memory)")


if __name__ == "__main__":
    main()
