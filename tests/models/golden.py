"""The recorded arrays of the official program, the agents they belong to, and how near ours must come."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.importers.dreamerv3 import from_arrays, translate
from torchmem.models.noise import Noise
from torchmem.types import EnvSpec, Space

# The committed arrays, or a folder that tests/golden/pack.py --full made.
ROOT = Path(os.environ.get("TORCHMEM_GOLDEN", Path(__file__).parent.parent / "golden"))
SETS = ("img_disc", "vec_mixed")
VECTORS = {
    "vector": Space((7,), "float32"),
    "token": Space((), "int32", 16),
    "count": Space((), "float32", low=0, high=100),
    "float2d": Space((4, 5), "float32"),
    "int2d": Space((2, 3), "int32", 4),
}
ACTIONS = {"act_disc": Space((), "int32", 5), "act_cont": Space((6,), "float32", low=-1, high=1)}
SPECS = {
    "img_disc": EnvSpec("golden", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int32", 5)}, 1.0),
    "vec_mixed": EnvSpec("golden", VECTORS, ACTIONS, 1.0),
}
MATMUL = {"default": "highest", "fast": "medium"}  # the settings of a timed run: see benchmarks/dreamer_update.py


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    """All arrays of ROOT/file.npz."""
    return dict(np.load(ROOT / f"{file}.npz"))


@contextmanager
def matmul(kind: str) -> Iterator[None]:
    """Float32 products as set; skips where the fast ones really round (a CPU with AMX), as a run would refuse them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(MATMUL[kind])
    try:
        a, b = torch.randn(64, 512), torch.randn(512, 64)
        if float(((a @ b).double() - a.double() @ b.double()).abs().max()) > 1e-3:
            pytest.skip("this CPU computes 'medium' float32 products in bfloat16")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def config(name: str) -> dict:
    return json.loads((ROOT / name / "config.json").read_text())


def agent(name: str) -> DreamerAgent:
    """A fresh agent with the recorded parameters."""
    return from_arrays(arrays(f"{name}/params"), config(name), SPECS[name])


def batch(name: str) -> dict[str, Tensor]:
    """The recorded batch, latents under our names."""
    return {key.removeprefix("dyn/"): torch.tensor(value) for key, value in arrays(f"{name}/batch").items()}


def argmax_noise(name: str, starts: int = 16, steps: int = 6) -> Noise:
    """The recorded sampling: argmax of categoricals, mean + 0.5 std of Gaussians."""
    if name == "img_disc":
        return Noise.mode()
    discrete, continuous = torch.zeros(starts, steps, 5), torch.full((starts, steps, 6), 0.5)
    return Noise(action={"act_disc": discrete, "act_cont": continuous})


def forcing(sample: np.ndarray | Tensor) -> Tensor:
    """Gumbel noise under which the recorded one-hot sample (..., K) is drawn."""
    sample = torch.as_tensor(sample)
    return torch.nn.functional.one_hot(sample.argmax(-1), sample.shape[-1]) * 1e4


def grads(name: str, prefix: str = "grad/", file: str = "grads_total") -> dict[str, Tensor]:
    """Recorded gradients by our parameter name."""
    found = arrays(f"{name}/{file}")
    return dict(translate(k.removeprefix(prefix), v) for k, v in found.items() if k.startswith(prefix))


def official_name(path: str) -> str:
    """Our module name of an official layer path."""
    leaf = "scale" if path.split("/")[-1].rstrip("0123456789").endswith("norm") else "bias"
    return translate(f"{path}/{leaf}", np.zeros(1))[0].rpartition(".")[0]


class Close:
    """Compares with recorded arrays, each to its own largest magnitude, and tells all misses at once."""

    def __init__(self, file: str, tolerance: float) -> None:
        self.recorded = arrays(file)
        self.tolerance = tolerance
        self.misses: list[str] = []
        self.seen: set[str] = set()
        self.worst = (0.0, "nothing")

    def __call__(self, key: str, ours: Tensor | float, tolerance: float | None = None) -> None:
        stored = next(k for k in self.recorded if k == key or k.startswith(f"{key}@"))
        self.seen.add(stored)
        recorded = torch.as_tensor(self.recorded[stored]).double()
        ours = torch.as_tensor(ours).detach().double()
        for axis, step in (part.split(":") for part in stored.partition("@")[2].split(",") if part):
            ours = ours.index_select(int(axis), torch.arange(0, ours.shape[int(axis)], int(step)))
        if ours.shape != recorded.shape:
            self.misses.append(f"{key}: shape {tuple(ours.shape)}, recorded {tuple(recorded.shape)}")
            return
        error = float((ours - recorded).abs().max() / recorded.abs().max().clamp(min=1e-6))
        self.worst = max(self.worst, (error, key))
        if not error <= (tolerance or self.tolerance):  # also a NaN
            self.misses.append(f"{key}: off by {error:.2e} of its largest magnitude")

    def done(self, but: tuple[str, ...] = ()) -> None:
        """All recorded arrays were compared, except those that start with a name in `but`, and none missed."""
        left = [k for k in self.recorded if k not in self.seen and not k.startswith(but or ("\0",))]
        assert not left, f"not compared: {left}"
        assert not self.misses, "\n" + "\n".join(self.misses)
