"""Where numbers are computed: processes, device, precision, threads, and the CPU's fast float32 products."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os

import torch

from torchmem.training.processes import Processes
from torchmem.training.run_config import TrainerConfig
from torchmem.training.typed import ConfigError

log = logging.getLogger("torchmem")


def launch(config: TrainerConfig) -> tuple[Processes, torch.device]:
    """Start the processes of this run through Lightning Fabric and settle what `auto` means, in `config` itself.

    Raises ConfigError where a device is asked for that is not there.
    """
    from lightning.fabric import Fabric  # here: it takes a second to import

    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        text = "trainer.accelerator=cuda, but torch finds no CUDA device; see `torchmem doctor`, or use trainer=cpu"
        raise ConfigError(text)
    if config.accelerator == "auto":
        config.accelerator = "cuda" if cuda else "cpu"
    if config.precision == "auto":
        config.precision = "bfloat16" if config.accelerator == "cuda" else "float32"
    count, chosen = training_devices(config)
    config.devices = count
    several = count * config.nodes > 1
    # Fabric's own precision stays float32: the agent casts by itself, where DreamerV3 does and nowhere else.
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=chosen,
        num_nodes=config.nodes,
        strategy="ddp" if several else "auto",
        precision="32-true",
    )
    fabric.launch()
    device = fabric.device
    if config.threads == "auto":
        config.threads = max(len(os.sched_getaffinity(0)) // (count if device.type == "cpu" else 1), 1)
    torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    elif config.matmul == "fast":
        fast_matmul()
    else:
        default_matmul()  # an earlier run of this process may have left the switch on
    return Processes(fabric), device


def training_devices(config: TrainerConfig) -> tuple[int, int | list[int]]:
    """How many devices of a node train, and what Fabric is told of them: all that are asked for, never `policy_device`.

    Raises ConfigError where there is no such policy device, or too few are left beside it.
    """
    acts, wanted = config.policy_device, config.devices
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if acts is not None and acts != "cpu" and int(acts[5:]) >= there:
        names = ", ".join(["cpu", *(f"cuda:{i}" for i in range(there))])
        raise ConfigError(f"trainer.policy_device={acts} is not there; this machine has: {names}")
    if config.accelerator != "cuda" or acts in (None, "cpu"):
        count = wanted if wanted != "auto" else there if config.accelerator == "cuda" else 1
        return count, count
    others = [i for i in range(there) if f"cuda:{i}" != acts]
    count = len(others) if wanted == "auto" else wanted
    if not others or count > len(others):
        raise ConfigError(
            f"trainer.policy_device={acts} leaves {len(others)} CUDA devices to train on, trainer.devices={wanted}: "
            f"take fewer, or trainer.policy_device=cpu"
        )
    return count, others[:count]


@dataclasses.dataclass
class MatmulCheck:
    """Relative errors of one float32 product against float64, with MKL and with oneDNN."""

    mkl: float
    onednn: float
    taken: bool


def default_matmul() -> None:
    """Send float32 products on the CPU where torch sends them by itself."""
    if torch.backends.mkldnn.is_available():
        getattr(torch.backends.mkldnn, "matmul").fp32_precision = "none"  # noqa: B009 - made at run time


def fast_matmul() -> MatmulCheck:
    """Send float32 products on the CPU to oneDNN where that keeps full float32 accuracy; say so where it does not.

    MKL's float32 product runs at half speed on AMD CPUs. oneDNN's takes over under this setting, whose name allows
    bfloat16; on CPUs with AMX it may really round, so one product is compared with float64 before it is trusted.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 1024, generator=generator) for _ in range(2))
    exact = a.double() @ b.double().t()

    def error() -> float:
        return float(((a @ b.t()).double() - exact).abs().mean() / exact.abs().mean())

    mkl = error()
    if not torch.backends.mkldnn.is_available():
        return MatmulCheck(mkl, float("nan"), False)
    with contextlib.ExitStack() as undo:
        switch = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - made at run time, unknown to type checkers
        undo.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
        switch.fp32_precision = "bf16"
        onednn = error()
        if onednn < 10 * mkl:  # real bfloat16 is off by a factor of thousands
            undo.pop_all()
            return MatmulCheck(mkl, onednn, True)
    log.warning("trainer.matmul=fast is not exact on this CPU (error %.1e, MKL %.1e): using MKL", onednn, mkl)
    return MatmulCheck(mkl, onednn, False)
