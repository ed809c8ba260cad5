"""Parameters of the official R2I program (chandar-lab/Recall2Imagine @ 6e317e7), as arrays by path, in our layout."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

LAYER = {"Lambda_re": "lambda_re", "Lambda_im": "lambda_im", "B": "b", "C": "c", "D": "d", "log_step": "log_step"}
STACK = {"seq": "s5", "norm": "norm", "out": "out", "out2": "gate"}  # of one layer of the stack


def layer_arrays(raw: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """One S5 layer: Lambda_re, Lambda_im, B (P, H, 2), C (H, P, 2), D, log_step (P, 1), or gradients of them."""
    return {LAYER[name]: _ssm(name, value) for name, value in raw.items()}


def stack_arrays(raw: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A stack: "layers_0.seq.B", "layers_0.norm.scale", "layers_0.out.kernel", ..."""
    out = {}
    for path, value in raw.items():
        match = re.fullmatch(r"layers_(\d+)\.(\w+)\.(\w+)", path)
        if match is None or match[2] not in STACK:
            raise KeyError(f"{path} is no parameter of a stack of S5 layers")
        home = f"layers.{match[1]}.{STACK[match[2]]}"
        name, ours = (LAYER[match[3]], _ssm(match[3], value)) if match[2] == "seq" else _plain(match[2], match[3], value)
        out[f"{home}.{name}"] = ours
    return out


def _ssm(name: str, value: np.ndarray) -> Tensor:
    tensor = torch.tensor(np.asarray(value), dtype=torch.float32)
    if name == "B":
        return tensor.movedim(-1, 1).flatten(0, 1).contiguous()
    if name == "C":
        return (tensor * torch.tensor([1.0, -1.0])).flatten(1)  # Re(C x) = C_re x_re - C_im x_im
    return tensor.flatten()


def _plain(layer: str, name: str, value: np.ndarray) -> tuple[str, Tensor]:
    """A linear layer's kernel (in, out) or bias, or a norm's scale or bias."""
    tensor = torch.tensor(np.asarray(value), dtype=torch.float32)
    if name == "kernel":
        return "weight", tensor.mT.contiguous()
    return ("shift" if layer == "norm" and name == "bias" else name), tensor
