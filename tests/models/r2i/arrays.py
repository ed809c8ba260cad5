"""The recorded arrays of the official R2I program (shared/golden/r2i), and a complex eager reference of one layer."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchmem.models.importers.r2i import layer_arrays
from torchmem.models.r2i.config import SSMConfig
from torchmem.models.r2i.ssm import S5

ROOT = Path(__file__).parents[2] / "golden" / "r2i"


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(ROOT / f"r2i_s5_{name}.npz"))


def tensor(name: str, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """One array; complex ones as pairs side by side, (..., 2 P)."""
    value = torch.as_tensor(arrays(name)[key])
    if value.is_complex():
        value = torch.view_as_real(value).flatten(-2)
    return value.to(dtype)


def under(name: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays(name).items() if key.startswith(prefix)}


def ssm_config(states: int, blocks: int = 2, **changes) -> SSMConfig:
    conj = changes.get("conj_sym", False)
    return SSMConfig(states=2 * states if conj else states, blocks=blocks, **changes)


def load(module: torch.nn.Module, values: dict[str, Tensor]) -> None:
    assert values.keys() == module.state_dict().keys()
    module.load_state_dict(values)


def layer(name: str) -> S5:
    """The recorded layer."""
    changes = {
        "layer_zoh": {"discretisation": "zoh"},
        "layer_bilinear_conj": {"conj_sym": True},
        "layer_zoh_conj_clip": {"discretisation": "zoh", "conj_sym": True, "clip_eigs": True},
    }.get(name, {})
    raw = under(name, "param.")
    states, width = raw["B"].shape[:2]
    s5 = S5(width, ssm_config(states, **changes))
    load(s5, layer_arrays(raw))
    return s5


def reference(s5: S5, u: Tensor, start: Tensor, init: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's equations with complex tensors, step by step. States as pairs side by side, like the layer's."""
    c = s5.config
    re = s5.lambda_re.clamp(max=-1e-4) if c.clip_eigs else s5.lambda_re
    eigs, step = torch.complex(re, s5.lambda_im), s5.log_step.exp()
    b = torch.view_as_complex(s5.b.unflatten(0, (-1, 2)).movedim(1, -1).contiguous())
    out = torch.view_as_complex(s5.c.unflatten(-1, (-1, 2)).contiguous()).conj()
    if c.discretisation == "bilinear":
        abar = (1 + step / 2 * eigs) / (1 - step / 2 * eigs)
        bbar = (step / (1 - step / 2 * eigs)).unsqueeze(-1) * b
    else:
        abar = torch.exp(eigs * step)
        bbar = ((abar - 1) / eigs).unsqueeze(-1) * b
    x, fresh = (torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous()) for value in (start, init))
    states, ys = [], []
    for t in range(u.shape[1]):
        x = torch.where(first[:, t, None], fresh, x)
        x = abar * x + u[:, t].to(bbar.dtype) @ bbar.T
        states.append(torch.view_as_real(x).flatten(-2))
        ys.append((2 if c.conj_sym else 1) * (x @ out.T).real + s5.d * u[:, t])
    return torch.stack(ys, 1), torch.stack(states, 1)
