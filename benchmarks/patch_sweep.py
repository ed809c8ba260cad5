"""Patching every site at every step: `patch_sweep` against a loop that traces one patch after the other.

    python benchmarks/patch_sweep.py --rounds 3 --threads 2

A recurrent PPO as in preset ppo_memory (MiniGrid-Memory S13, view 3), --pairs pairs of --steps steps, all sites, exact
patching into the corrupted runs. The loop opens one `model.trace` for each patched run (site x step x pair) and reads
the metric; limit of issue 6: 10 times. Beside it a loop that puts all pairs into each trace. Both are timed on --cells
cells spread over all (the first with one pair) and scaled. Effects of the timed cells must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.make import env_spec
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.synthetic import random_batch
from torchmem.surgery.model import Model
from torchmem.surgery.patch import logit_difference, patch_sweep
from torchmem.training.config import compose

LIMIT = 10.0
METRIC = logit_difference(0, 1, slice(None))


def made(pairs: int, steps: int) -> tuple[Model, dict[str, Tensor], dict[str, Tensor]]:
    """An agent, and pairs that differ in what is seen."""
    torch.manual_seed(0)
    world = {"size": 13, "random_length": False, "view": 3, "obs": "symbolic_onehot"}
    agent = PPOAgent(env_spec("minigrid_memory", **world), compose(["preset=ppo_memory"]).agent)
    drawn, other = (random_batch(agent, pairs, steps - 1, seed) for seed in range(2))
    clean = {key: drawn[key] for key in (*agent.spec.obs, *agent.spec.action, "is_first")}
    return Model(agent), clean, {**clean, **{key: other[key] for key in agent.spec.obs}}


def loop(
    model: Model, clean: dict[str, Tensor], corrupted: dict[str, Tensor], cells: Sequence[tuple[str, int]]
) -> tuple[list[float], float]:
    """(metric of each patched run, mean over pairs; seconds), the donors being known already."""
    donors = {}
    for site in {site for site, _ in cells}:
        with model.trace(clean):
            donors[site] = model.site(site).save()
    found = []
    began = time.perf_counter()
    for site, t in cells:
        with model.trace(corrupted) as tracer:
            model.site(site)[:, t] = donors[site][:, t]
        found.append(float(METRIC(tracer.out).mean()))
    return found, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--cells", type=int, default=21, help="on which the loop is timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, clean, corrupted = made(given.pairs, given.steps)
    sites = list(model.sites)
    cells = [(site, t) for site in sites for t in range(given.steps)]
    some = cells[:: max(1, len(cells) // given.cells)]
    first = [{key: value[:1] for key, value in batch.items()} for batch in (clean, corrupted)]
    loop(model, clean, corrupted, some[:1])
    ratios, alone = [], []
    for _ in range(given.rounds):
        began = time.perf_counter()
        result = patch_sweep(model, clean, corrupted, METRIC, sites=sites, methods=("exact",), directions=("denoise",))
        ours = time.perf_counter() - began
        scores, took = loop(model, clean, corrupted, some)
        ratios.append(took / len(some) * len(cells) / ours)
        alone.append(loop(model, *first, some)[1] / len(some) * len(cells) * given.pairs / ours)
        told = [result.effects[f"denoise/exact/{site}"][t] for site, t in some]
        effects = (np.array(scores) - result.corrupted) / (result.clean - result.corrupted)
        if not np.allclose(told, effects, atol=1e-4):
            raise SystemExit(f"the loop tells other effects: {effects} and {told}")
    print(f"{len(sites)} sites x {given.steps} steps x {given.pairs} pairs, last sweep {ours:.1f} s; loops timed on "
          f"{len(some)} of {len(cells)} cells, scaled")  # fmt: skip
    for name, found in (("one run at a time", alone), ("all pairs at a time", ratios)):
        told = f"{name}: {statistics.median(found):.1f} times as long ({min(found):.1f} to {max(found):.1f})"
        verdict = "holds" if statistics.median(found) >= LIMIT else "FAILS"
        print(told + (f", limit {LIMIT:.0f}: {verdict}" if found is alone else ""))


if __name__ == "__main__":
    main()
