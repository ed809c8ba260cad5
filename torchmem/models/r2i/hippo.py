"""HiPPO-N: the diagonal state matrix and the basis that S5 layers start from (Gu et al. 2022; Smith et al. 2023).

HiPPO-LegS is A[n, k] = -sqrt((2n + 1)(2k + 1)) below the diagonal, -(n + 1) on it, 0 above. Adding p p^T with
p[n] = sqrt(n + 1/2) makes it normal; that rank-one term is then dropped, so that A = V diag(lambda) V^H.
All in float64: float32 eigenvalues of 64 states are off by 2e-4.
"""

from __future__ import annotations

import torch
from torch import Tensor


def legs(size: int) -> Tensor:
    """The HiPPO-LegS matrix (size, size), float64."""
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    root = torch.sqrt(2 * n + 1)
    return -(torch.tril(root[:, None] * root[None, :], -1) + torch.diag(n + 1))


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (size,), imaginary parts ascending, and eigenvectors (size, size) of HiPPO-N; complex128.

    Every real part is -1/2. Each eigenvector is known up to its phase.
    """
    low_rank = torch.sqrt(torch.arange(size, dtype=torch.float64, device="cpu") + 0.5)
    normal = legs(size) + low_rank[:, None] * low_rank[None, :]
    imaginary, vectors = torch.linalg.eigh(-1j * normal.to(torch.complex128))
    real = torch.full_like(imaginary, float(torch.diagonal(normal).mean()))
    return torch.complex(real, imaginary), vectors


def block_hippo(states: int, blocks: int, conj_sym: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues (states,) and basis V (full, states) of `blocks` equal HiPPO-N blocks; complex128.

    full = states, or twice as many with conj_sym: then of each block only the half with negative imaginary parts is
    kept, because a real signal has the conjugates as well. Raises ValueError where the blocks do not divide the states.
    """
    if states % blocks:
        raise ValueError(f"{states} states cannot be cut into {blocks} equal blocks: choose a multiple")
    kept = states // blocks
    values, vectors = hippo_normal(2 * kept if conj_sym else kept)
    return values[:kept].repeat(blocks), torch.block_diag(*[vectors[:, :kept]] * blocks)
