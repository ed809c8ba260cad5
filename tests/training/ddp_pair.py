"""Two processes that train on the halves of a batch, and one that trains on the whole: run by test_ddp.py."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from tests.training import tiny
from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.noise import Noise
from torchmem.models.synthetic import random_batch
from torchmem.training.config import compose
from torchmem.training.learner import Learner, NaNLoss
from torchmem.training.processes import Processes

ROWS, STEPS, UPDATES = 4, 6, 3
FAULTS = ("no gather", "no average", "clip first")
# Clipping that acts on every tensor, and a return range that follows the new percentiles at once.
MORE = ["agent.agc=0.01", "agent.return_rate=0.5", "agent.imag_length=5"]


def make() -> DreamerAgent:
    """An agent whose rewards and values differ from state to state by several units, with a return range above 2."""
    config = compose([*tiny.words(Path("unused"), world=tiny.DUMMY), *MORE])
    torch.manual_seed(1)
    agent = DreamerAgent(env_spec("dummy", **config.env_kwargs), config.agent)
    with torch.no_grad():
        for head in (agent.reward, agent.behaviour.value, agent.behaviour.slow_value):
            middle = len(head.bins) // 2
            head.out.bias.fill_(-30.0)  # all but the bins of about +-2
            for bin_ in (middle - 2, middle + 2):
                head.out.bias[bin_] = 0.0
                head.out.weight[bin_] = 4 * torch.randn(head.out.weight.shape[1])
        for layer in agent.behaviour.policy.out.values():
            layer.weight.normal_()
        agent.behaviour.return_low.fill_(-2.0)
        agent.behaviour.return_high.fill_(2.0)
    return agent


def part(noise: Noise, rank: int, size: int) -> Noise:
    """The rows of one process; imagination starts are batch-major, so theirs are one block too."""

    def cut(values: Tensor) -> Tensor:
        return values.chunk(size)[rank]

    return Noise(cut(noise.posterior), cut(noise.prior), {k: cut(v) for k, v in noise.action.items()})


def train(processes: Processes, fault: str = "") -> dict[str, Tensor]:
    """The first gradients, the weights after three updates, and the return ranges. fault: what to break on purpose."""
    agent = make()
    learner = Learner(agent, ROWS // processes.size, STEPS, 0, broken(processes, fault, agent))
    told: dict[str, Tensor] = {}
    step = learner.optimiser.step

    def watched() -> None:
        told.update({f"grad.{n}": p.grad.clone() for n, p in agent.trained() if f"grad.{n}" not in told})
        step()

    learner.optimiser.step = watched
    generator = torch.Generator().manual_seed(2)
    rank, size = processes.rank, processes.size
    for update in range(UPDATES):
        batch = random_batch(agent, ROWS, STEPS, seed=update)
        noise = agent.training_noise(ROWS, STEPS, generator)
        learner.update({k: v.chunk(size)[rank] for k, v in batch.items()}, part(noise, rank, size))
        told[f"range.{update}"] = agent.behaviour.return_high - agent.behaviour.return_low
    return told | {f"weight.{n}": p.detach().clone() for n, p in agent.named_parameters()}


def broken(processes: Processes, fault: str, agent: DreamerAgent) -> Processes:
    """The processes with one mistake that a careless change could make."""
    processes = copy.copy(processes)
    average = processes.average
    if fault == "no gather":
        processes.gather = lambda values: values
    if fault == "no average":
        processes.average = lambda tensors: None
    if fault == "clip first":

        def clip_then_average(tensors: list[Tensor]) -> None:
            for (_, p), grad in zip(agent.trained(), tensors, strict=False):
                limit = agent.config.agc * p.norm().clamp(min=agent.config.agc_min)
                grad.div_((grad.norm() / limit).clamp(min=1))
            average(tensors)

        processes.average = clip_then_average
    return processes


def main(folder: Path, rank: int) -> None:
    """One of the two: files <fault>.<rank>.safetensors for the right way and each wrong one."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(minutes=5)
    )
    processes = Processes(SimpleNamespace(global_rank=rank, world_size=2))
    for fault in ("", *FAULTS):
        save_file(train(processes, fault), folder / f"{fault or 'right'}.{rank}.safetensors")
    (folder / f"nan.{rank}.txt").write_text(poisoned(processes))
    dist.destroy_process_group()


def poisoned(processes: Processes) -> str:
    """What each process says when only the second one's batch holds a NaN."""
    agent = make()
    learner = Learner(agent, ROWS // 2, STEPS, 0, processes)
    batch = random_batch(agent, ROWS // 2, STEPS)
    if processes.rank == 1:
        batch["reward"][0, 2] = torch.nan
    try:
        learner.update(batch)
    except NaNLoss as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
