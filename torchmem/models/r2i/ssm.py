"""One S5 layer: a diagonal, complex, linear state-space model with many inputs and outputs (Smith et al. 2023).

    x_t = Abar x_{t-1} + Bbar u_t,    y_t = s Re(C x_t) + D u_t,    s = 2 with conj_sym, else 1

A state of P complex numbers is kept as 2 P real ones, (re, im) side by side: `x.unflatten(-1, (P, 2))`. So B and C are
ordinary real matrices, and the recurrence alone knows of complex numbers (scan.py). All of it is float32 or wider,
whatever the rest computes in: a memory of a thousand steps needs decay rates that bfloat16 cannot tell from 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.layers import TRUNCATION_FIX
from torchmem.models.r2i.config import SSMConfig
from torchmem.models.r2i.hippo import block_hippo

SMALLEST_DECAY = 1e-4  # clip_eigs: real parts of the eigenvalues stay below minus this


class S5(nn.Module):
    """u (..., H) in, y (..., H) out, with a state (..., 2 P) between. `states` is P, already halved by conj_sym."""

    def __init__(self, width: int, config: SSMConfig) -> None:
        super().__init__()
        c = self.config = config
        self.states = config.own_states
        values, basis = block_hippo(self.states, c.blocks, c.conj_sym)
        device = torch.empty(0).device  # as `with torch.device(...)` says
        self.lambda_re = nn.Parameter(values.real.to(device, torch.float32))
        self.lambda_im = nn.Parameter(values.imag.to(device, torch.float32))
        full = basis.shape[0]
        basis = basis.to(device)
        self.b = nn.Parameter(interleaved_rows(basis.mH @ lecun(full, width, fan=full).to(basis.dtype)))
        if c.c_init == "complex_normal":
            c_matrix = torch.view_as_complex(torch.randn(width, self.states, 2) * math.sqrt(0.5))
        else:
            # The original's fan is that of the whole tensor, so that a layer begins close to y = D u.
            parts = lecun(width, full, 2, fan=full if c.c_init == "row_normal" else width * full)
            c_matrix = torch.view_as_complex(parts).to(basis.dtype) @ basis
        self.c = nn.Parameter(interleaved_rows(c_matrix.conj().mT).mT.contiguous())
        self.d = nn.Parameter(torch.randn(width))
        low, high = math.log(c.dt_min), math.log(c.dt_max)
        self.log_step = nn.Parameter(torch.rand(self.states) * (high - low) + low)

    def discretised(self) -> tuple[Tensor, Tensor]:
        """Abar (P, 2), and g (P, 2) with Bbar = g B."""
        re, im, step = self.lambda_re, self.lambda_im, self.log_step.exp()
        if self.config.clip_eigs:
            re = re.clamp(max=-SMALLEST_DECAY)
        if self.config.discretisation == "bilinear":  # (1 + z) / (1 - z) and dt / (1 - z), z = dt lambda / 2
            z_re, z_im = 0.5 * step * re, 0.5 * step * im
            norm = (1 - z_re).square() + z_im.square()
            abar = torch.stack([1 - z_re.square() - z_im.square(), 2 * z_im], -1) / norm.unsqueeze(-1)
            gain = torch.stack([1 - z_re, z_im], -1) * (step / norm).unsqueeze(-1)
            return abar, gain
        # zoh: exp(dt lambda), and (exp(dt lambda) - 1) / lambda without the cancellation of subtracting 1
        grow, turn = step * re, step * im
        size = grow.exp()
        abar = torch.stack([size * turn.cos(), size * turn.sin()], -1)
        less_re = torch.expm1(grow) * turn.cos() - 2 * (turn / 2).sin().square()
        norm = re.square() + im.square()
        gain_re = (less_re * re + abar[:, 1] * im) / norm
        gain_im = (abar[:, 1] * re - less_re * im) / norm
        return abar, torch.stack([gain_re, gain_im], -1)

    def drive(self, u: Tensor, gain: Tensor) -> Tensor:
        """Bbar u: (..., H) -> (..., 2 P)."""
        u = u.to(self.b.dtype)
        if u.numel() // u.shape[-1] < u.shape[-1]:  # few rows, as when acting: scale the product, not the matrix
            return times(F.linear(u, self.b).unflatten(-1, (-1, 2)), gain).flatten(-2)
        bbar = times(self.b.unflatten(0, (-1, 2)).mT, gain.unsqueeze(1)).mT.flatten(0, 1)
        return F.linear(u, bbar)

    def one(self, x: Tensor, drive: Tensor, abar: Tensor) -> Tensor:
        """The next state: x (B, 2 P), drive (B, 2 P) -> (B, 2 P)."""
        return (times(x.unflatten(-1, (-1, 2)), abar)).flatten(-2) + drive

    def read_out(self, x: Tensor, u: Tensor) -> Tensor:
        """y (..., H) in the dtype of u."""
        y = F.linear(x, self.c)
        if self.config.conj_sym:
            y = 2 * y
        return torch.addcmul(y, self.d, u.to(y.dtype)).to(u.dtype)


def times(x: Tensor, y: Tensor) -> Tensor:
    """Product of complex numbers as pairs (..., 2); broadcasts."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], -1)


def lecun(*shape: int, fan: int) -> Tensor:
    """Cut normal of variance 1 / fan."""
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, 1.0, -2.0, 2.0) * (TRUNCATION_FIX / math.sqrt(fan))


def interleaved_rows(matrix: Tensor) -> Tensor:
    """Complex (P, H) -> float32 (2 P, H), rows re and im in turn."""
    return torch.view_as_real(matrix.resolve_conj()).movedim(-1, 1).flatten(0, 1).float().contiguous()
