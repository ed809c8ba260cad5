"""Saliency of 18 scalars at step 4 over 400 samples, against the procedure of interpreting-rl-behavior.

    python benchmarks/saliency.py [--passes 20] [--samples 64] [--batch 32]

Theirs, as its spec tells (simulator.md 5.6): for each sample and each scalar one pass of nine nearly equal copies
(noise 1.25e-4), ten steps simulated, gradients of all weights of the simulator computed beside those that are kept.
Ours: one rollout for all scalars up to the step asked, frozen weights, many samples at once; with one exact copy per
sample, and with the same nine copies. Both on the preset's 28.7 M weights (the 14.8 M unused ones of the original are
in neither), the hard-rec agent, 64 x 64 frames, the same gradients: of frames, agent's memory and world state, float32.

CPU seconds, one thread, theirs and ours in turns. Theirs is timed on PASSES passes and scaled to 7200; ours on SAMPLES
samples and scaled to 400.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.model import SimulatorModel
from torchmem.models.simulator.rollout import rollout
from torchmem.studies.scalars import Scalar, read_scalars
from torchmem.studies.slopes import Setting, slopes
from torchmem.training.config import compose
from torchmem.types import EnvSpec, Space

AT, HORIZON, COPIES, NOISE, SAMPLES = 4, 10, 9, 1.25e-4, 400
SPEC = EnvSpec(
    "procgen", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int64", classes=15)}, control_hz=15.0
)


def made() -> tuple[Any, Any, list[Scalar]]:
    """The simulator, its loop and 18 scalars: value, log-probability of the action taken, 16 random directions."""
    torch.manual_seed(0)
    loop = AgentLoop(PPOAgent(SPEC, compose(["preset=hard_rec"]).agent))
    config = dataclasses.replace(compose(["preset=irl_rssm"]).agent, guessed=loop.packing.guessed)
    world = SimulatorModel(SPEC, config)
    world.attach(loop)
    named = read_scalars(["value", "chosen"], loop)
    turn = torch.linalg.qr(torch.randn(64, 64))[0][:16]
    directions: list[Scalar] = [
        lambda play, t, k=k: play.turns[t].acted.memory @ turn[k] for k in range(16)  # type: ignore[misc]
    ]
    return world, loop, [*named.values(), *directions]


def copies_of(world: Any, latent: torch.Tensor) -> torch.Tensor:
    noisy = latent.repeat_interleave(COPIES, 0)
    noise = NOISE * torch.randn_like(noisy)
    noise[::COPIES] = 0
    return world.project(noisy + noise)


def theirs(world: Any, loop: Any, scalar: Scalar, latent: torch.Tensor) -> torch.Tensor:
    """One pass: one sample, one scalar. Gradients of frames, memory and world state, and of every weight."""
    world.requires_grad_(True)
    start = world.from_latent(copies_of(world, latent))
    play = rollout(world, loop, start, HORIZON)
    nodes = [n for t in play.turns for n in (t.seen.obs["image"], t.acted.memory, t.seen.carry.deter)]
    for node in nodes:
        node.retain_grad()
    scalar(play, AT).mean().backward()
    grads: list[Any] = [play.turns[t].acted.memory.grad for t in range(AT + 1)]
    found = torch.stack([grad.mean(0) * COPIES for grad in grads])
    world.requires_grad_(False)
    return found


def ours(world: Any, loop: Any, scalars: list[Scalar], latent: torch.Tensor, batched: bool = False) -> torch.Tensor:
    start = world.from_latent(latent)
    return slopes(
        world, loop, start, scalars, AT, ["obs.image", "memory", "world"], how=Setting(batched=batched)
    ).by["total"]["memory"]


def spent(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    out = function()
    return time.process_time() - begin, out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    world, loop, scalars = made()
    generator = torch.Generator().manual_seed(0)
    world.requires_grad_(False)
    latents = world.random_latent(given.samples, generator)
    theirs(world, loop, scalars[0], latents[:1])  # what is made once: caches, gradients of the weights
    chunks = [latents[i : i + given.batch] for i in range(0, given.samples, given.batch)]
    base, one, nine, likeness = [], 0.0, 0.0, []
    turns = max(given.passes, len(chunks))
    for i in range(turns):
        if i < given.passes:
            seconds, found = spent(lambda: theirs(world, loop, scalars[i % 18], latents[i : i + 1]))  # noqa: B023
            base.append(seconds)
            world.zero_grad(set_to_none=False)
            mine = ours(world, loop, [scalars[i % 18]], latents[i : i + 1])[0, 0]
            likeness.append(float(torch.cosine_similarity(found.flatten(), mine.flatten(), 0)))
        if i < len(chunks):
            one += spent(lambda: ours(world, loop, scalars, chunks[i]))[0]  # noqa: B023
        if i == 0:  # nine copies of a ninth of the samples of one batch
            few = latents[: max(1, given.batch // COPIES)]
            nine = spent(lambda: ours(world, loop, scalars, copies_of(world, few)))[0] / len(few)  # noqa: B023
    loop_s, vmap_s = (
        spent(lambda: ours(world, loop, scalars, latents[:4], batched))[0] for batched in (False, True)  # noqa: B023
    )
    whole = statistics.mean(base) * SAMPLES * len(scalars)
    lines = [
        f"theirs: {statistics.mean(base):.2f} s a pass (median {statistics.median(base):.2f}, {len(base)} passes), "
        f"scaled to {SAMPLES * len(scalars)} passes: {whole:.0f} s",
        f"ours, one exact copy: {one * SAMPLES / given.samples:.0f} s (timed on {given.samples} samples): "
        f"{whole / (one * SAMPLES / given.samples):.1f} x (bar 50)",
        f"ours, nine copies: {nine * SAMPLES:.0f} s: {whole / (nine * SAMPLES):.1f} x (bar 5)",
        f"cosine of their gradient by memory with ours of one exact copy: median {np.median(likeness):.6f}, "
        f"least {min(likeness):.6f}",
        f"18 backward passes over one graph {loop_s:.2f} s, one vectorised by vmap {vmap_s:.2f} s (4 samples)",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
