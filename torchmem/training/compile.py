"""torch.compile of the loss and the acting step, never of the saved module tree, and the proof that it is right.

The compiled functions and every eager trace share one set of Parameters. Compilation is checked before it is trusted:
Inductor has given wrong gradients for recurrent code before (pytorch#153679).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.models.noise import Noise
from torchmem.models.protocol import LossOut
from torchmem.models.taps import Tapped

log = logging.getLogger("torchmem")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}  # of each gradient's largest entry


class CompileError(TorchmemError):
    """The compiled loss is not the eager one."""


@dataclasses.dataclass
class CompileReport:
    """What compilation cost and what came of it."""

    seconds: float
    graph_breaks: int
    graphs: int
    worst_gradient: float  # largest difference to eager, relative to each tensor's largest entry
    worst_tensor: str

    def __str__(self) -> str:
        return (
            f"compiled in {self.seconds:.0f} s: {self.graphs} graphs, {self.graph_breaks} graph breaks; "
            f"gradients within {self.worst_gradient:.1e} of eager ({self.worst_tensor})"
        )


def wanted(setting: str, device: torch.device) -> bool:
    """What `compile=auto` means: on for CUDA, where launches are the bottleneck; off on CPU, where products are."""
    return setting == "full" or (setting == "auto" and device.type == "cuda")


def compile_agent(
    agent, collect: Sequence[str] = (), actor=None
) -> tuple[Callable[[Mapping[str, Tensor], Noise], LossOut], Callable[..., Any]]:
    """(loss, policy) compiled, with CUDA graphs on a GPU. The agent itself stays as it is.

    collect: sites whose activations the loss hands out as `taps` (see models/taps.py). With CUDA graphs they live until
    the next call. actor: the agent that acts, where that is another one.
    """
    policy = torch.compile((actor or agent).policy, dynamic=False)  # no graph: its carry must outlive the next call
    return compile_loss(agent, collect), policy


def compile_loss(agent, collect: Sequence[str] = ()) -> Callable[[Mapping[str, Tensor], Noise], LossOut]:
    """The loss alone, see `compile_agent`."""
    mode = "reduce-overhead" if agent.device.type == "cuda" else "default"
    source = Tapped(agent, collect) if collect else agent
    parts = torch.compile(source.loss_parts, mode=mode, dynamic=False)

    def loss(batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        if agent.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return LossOut(*parts(batch, noise))

    return loss


def check_gradients(agent, loss: Callable, batch: Mapping[str, Tensor], noise: Noise) -> CompileReport:
    """Compile `loss` on one batch and compare its gradients with the eager ones.

    Leaves no gradients behind. Raises CompileError naming the worst tensor where they differ by more than 1e-3 of its
    largest entry (0.1 in bfloat16).
    """
    counters = torch._dynamo.utils.counters
    counters.clear()
    named = agent.trained()

    def gradients(function: Callable) -> dict[str, Tensor]:
        function(batch, noise).total.backward()
        grads = {name: p.grad.clone() for name, p in named}
        for _, p in named:
            p.grad = None
        return grads

    start = time.monotonic()
    compiled = gradients(loss)
    seconds = time.monotonic() - start
    eager = gradients(agent.loss)
    errors = {
        name: float((compiled[name] - g).abs().max() / g.abs().max().clamp(min=1e-12)) for name, g in eager.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    report = CompileReport(
        seconds, sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"], errors[worst], worst
    )
    if not errors[worst] <= TOLERANCE[agent.dtype]:
        raise CompileError(
            f"the compiled loss has other gradients than the eager one: {worst} differs by {errors[worst]:.1e} of its "
            f"largest entry, {TOLERANCE[agent.dtype]:g} are allowed. torch {torch.__version__} miscompiles this agent; "
            f"run with compile=off"
        )
    return report


def recompiles() -> int:
    """Graphs compiled since `check_gradients`, beyond the first: 0 in a healthy run."""
    return sum(torch._dynamo.utils.counters["recompiles"].values())
