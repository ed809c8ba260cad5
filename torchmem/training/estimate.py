"""What a run will take, said before it takes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from torchmem.training.replay_size import bytes_per_step, free_bytes, readable

if TYPE_CHECKING:
    from torchmem.training.experiment import Experiment


def activation_bytes(agent, batch: int, length: int) -> int:
    """Rough bytes that one update keeps alive at its peak: convolution maps and imagined features, forward and back."""
    c, steps = agent.config, batch * length
    width = torch.finfo(agent.dtype).bits // 8
    floats = 0
    for space in agent.spec.obs.values():
        if space.image:
            pixels = space.shape[0] * space.shape[1]
            for stage, mult in enumerate(c.mults):
                floats += steps * pixels // 4**stage * c.depth * mult * 5 // 2
    feat = c.deter + c.stoch * c.classes
    layers = c.policy_layers + 2 * c.value_layers + c.reward_layers + c.cont_layers
    floats += steps * (c.imag_length + 1) * (2 * feat + 4 * layers * c.units + 6 * c.bins)
    floats += steps * (8 * c.deter + 12 * c.hidden + 6 * c.stoch * c.classes)
    return floats * width


def banner(x: Experiment) -> list[str]:
    """Device, precision, sizes, memory and disk: the lines shown before the first step."""
    c, t, device = x.config, x.config.trainer, x.device
    count = sum(p.numel() for _, p in x.agent.trained())
    state = sum(p.numel() for p in x.agent.parameters()) * 4 * 4  # weights, gradients, two moments
    work = activation_bytes(x.agent, x.batch, c.length)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {t.threads} threads"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        have = f" of {readable(total)}"
    else:
        have = ""
    per_step = bytes_per_step(x.schema)
    rows = x.replay.rows * x.replay.n
    updates = "no" if not c.ratio else f"1 update per {c.batch * c.length / c.ratio:g}"
    return [
        f"agent {c.groups.get('agent')} size {c.groups.get('size')}: {count:,} trained parameters; env {c.env_name}",
        f"device {name}; compute {t.precision}; {x.processes.size} process(es); compile {c.compile}",
        *([f"acting on {t.policy_device}, with a copy of the weights of every {t.policy_every} updates"]
          if x.actor.split else []),
        f"memory about {readable(state + work)}{have} (weights and optimiser {readable(state)}, "
        f"one update {readable(work)})",
        f"replay {rows:,} steps x {per_step:,} B = {readable(rows * per_step)} in {x.replay_folder} "
        f"({readable(free_bytes(x.replay_folder))} still free)",
        *([f"  and a copy in {x.long_term_folder}, as of every snapshot"] if x.long_term_folder else []),
        f"{c.steps:,} agent steps = {c.steps * x.spec.action_repeat:,} env steps over {c.envs} envs; "
        f"{updates} agent steps, each on {c.batch} x {c.length} replayed steps; first update after "
        f"{math.ceil(c.warmup_items / c.envs + c.length) * c.envs:,} agent steps",
        f"run folder {x.logdir}",
    ]
