"""R2I's pass over long sequences beside our DreamerV3 RSSM of equal width, forward and backward, timed in turns.

    python benchmarks/s5_scan.py [--rows 4] [--steps 1024] [--rounds 5] [--lengths 64,256,1024,4096,8192] [--device cpu]

Three tables: the scan alone against the plain complex loop under autograd; the dynamics (posterior, recurrence, prior)
against the RSSM, and against R2I's own recurrent mode; the dynamics over lengths, per step. Seconds are CPU seconds of
this process on a CPU (its threads: OMP_NUM_THREADS), so that neighbours count little, and wall seconds on a GPU.
Ratios are taken within a round; shown are median and range. Memory is what autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmem.models.dists import gumbel
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.dreamer.rssm import RSSM
from torchmem.models.r2i.config import R2IConfig
from torchmem.models.r2i.dynamics import Dynamics
from torchmem.models.r2i.scan import diagonal_scan

TOKENS, ACTIONS = 512, 4


def plain_loop(b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> Tensor:
    """The recurrence as autograd would take it without further thought."""
    drive, factor, x, fresh = (torch.view_as_complex(value) for value in (b, a, start, init))
    out = []
    for given, reset in zip(drive.unbind(1), first.unbind(1), strict=True):
        x = factor * torch.where(reset[:, None], fresh, x) + given
        out.append(x)
    return torch.view_as_real(torch.stack(out, 1))


def seconds(job: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        job()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    job()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def kept_bytes(job: Callable[[], None]) -> int:
    """Bytes of distinct storages that autograd saves while the job runs, parameters included."""
    sizes: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        job()
    return sum(sizes.values())


def scan_job(scan: Callable[..., Tensor], rows: int, steps: int, states: int, device: torch.device):
    g = torch.Generator().manual_seed(0)
    shapes = ((rows, steps, states, 2), (states, 2), (rows, states, 2), (rows, states, 2))
    given = [torch.randn(shape, generator=g).to(device) for shape in shapes]
    given[1] = (given[1] / given[1].norm(dim=-1, keepdim=True)) * 0.99
    leaves = [value.requires_grad_() for value in given]
    first = (torch.rand(rows, steps, generator=g) < 0.005).to(device)
    return lambda: scan(*leaves, first).sum().backward()


def dynamics_job(model: nn.Module, rows: int, steps: int, device: torch.device, **how):
    """One pass with its backward: every output takes part."""
    tokens, actions = torch.randn(rows, steps, TOKENS, device=device), torch.zeros(rows, steps, ACTIONS, device=device)
    first = torch.zeros(rows, steps, dtype=torch.bool, device=device)
    first[:, 0] = first[:, steps // 2] = True
    noise = gumbel((rows, steps, 32, 32), None, device)

    def run() -> None:
        if isinstance(model, RSSM):
            states, logit = model.observe(model.initial(rows, device, torch.float32), actions, tokens, first, noise)
        else:
            states, logit = model.observe(model.initial(rows, torch.float32), actions, tokens, first, noise, **how)
        (states.deter.sum() + model.prior(states.deter).sum() + logit.sum()).backward()
        model.zero_grad(set_to_none=True)

    return run


def compare(title: str, jobs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> None:
    """One line per job: seconds, and how many times as long as the first job of the same round."""
    for job in jobs.values():
        job()
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            taken[name].append(seconds(job, device))
    base = taken[next(iter(jobs))]
    print(f"\n{title}")
    for name, values in taken.items():
        ratios = [value / one for value, one in zip(values, base, strict=True)]
        spread = f"{statistics.median(ratios):7.2f} x [{min(ratios):.2f}, {max(ratios):.2f}]"
        kept = kept_bytes(jobs[name]) / 2**20
        print(f"  {name:40s} {statistics.median(values):9.4f} s {spread}  keeps {kept:9.1f} MiB", flush=True)


def lengths_table(model: nn.Module, rows: int, lengths: list[int], rounds: int, device: torch.device) -> None:
    jobs = {steps: dynamics_job(model, rows, steps, device) for steps in lengths}
    for job in jobs.values():
        job()
    taken: dict[int, list[float]] = {steps: [] for steps in lengths}
    for _ in range(rounds):
        for steps, job in jobs.items():
            taken[steps].append(seconds(job, device) / steps)
    print("\nR2I dynamics over lengths (cost of a step against that of the shortest in the same round)")
    for steps, values in taken.items():
        ratios = [value / one for value, one in zip(values, taken[lengths[0]], strict=True)]
        told = f"{statistics.median(values) * 1e3:8.4f} ms a step {statistics.median(ratios):6.2f} x"
        print(f"  T = {steps:5d} {told}  keeps {kept_bytes(jobs[steps]) / 2**20:9.1f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", default="64,256,1024,4096,8192")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device, rows, steps = torch.device(given.device), given.rows, given.steps
    torch.manual_seed(0)
    config = R2IConfig()  # popgym: width 512, h of 1024, 3 layers of 128 complex states
    ours = Dynamics(TOKENS, ACTIONS, config).to(device)
    rssm = RSSM(TOKENS, ACTIONS, DreamerConfig(deter=1024, hidden=512, stoch=32, classes=32)).to(device)
    for name, model in (("R2I", ours), ("RSSM", rssm)):
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    scans = {
        "scan": scan_job(diagonal_scan, rows, steps, config.ssm.states, device),
        "complex loop, autograd": scan_job(plain_loop, rows, steps, config.ssm.states, device),
    }
    compare(f"One scan of {config.ssm.states} states, B = {rows}, T = {steps}", scans, given.rounds, device)
    passes = {
        "R2I, parallel": dynamics_job(ours, rows, steps, device),
        "our DreamerV3 RSSM, equal width": dynamics_job(rssm, rows, steps, device),
        "R2I, step by step": dynamics_job(ours, rows, steps, device, stepwise=True),
    }
    compare(f"Dynamics, forward and backward, B = {rows}, T = {steps}", passes, given.rounds, device)
    lengths_table(ours, rows, [int(length) for length in given.lengths.split(",")], given.rounds, device)


if __name__ == "__main__":
    main()
