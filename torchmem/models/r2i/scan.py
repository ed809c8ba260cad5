"""The diagonal recurrence x_t = a x_{t-1} + b_t along (B, T), complex, with resets: forward and backward written out.

Where `first` is set, the state before the step is replaced by `init`: that is the element (A, b) = (0, b_t + a init) of
an exactly associative scan, so any order of evaluation gives the same states.

Complex numbers travel as real pairs (..., 2), so that no compiler and no file ever meets a complex tensor. Inside the
two operators below the same memory is viewed as complex: on a CPU one complex multiply-add over a row costs a third of
the four real ones. Both operators are opaque to torch.compile: one graph node for any length.

On a CPU the steps run one after the other, each a single operation on (B, P). Elsewhere launches are what costs:
chunks of about sqrt(T) steps run side by side, then their last states are chained, then every chunk is corrected.
The backward pass is the same recurrence with conj(a), run from the end. Memory is linear in T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def diagonal_scan(b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> Tensor:
    """All states x (B, T, P, 2), differentiable in everything but `first`.

    b (B, T, P, 2) inputs; a (P, 2); start (B, P, 2) before step 0; init (B, P, 2), the state that replaces the one
    before each step where first (B, T) bool is set. float32 or float64.
    """
    given = b.contiguous(), a.contiguous(), start.contiguous(), init.contiguous(), first
    return _operator(*given) if torch.compiler.is_compiling() else _Scan.apply(*given)


def _scan(b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> Tensor:
    out = torch.empty_like(b)
    x, drive, factor = (torch.view_as_complex(value) for value in (out, b, a))
    x0, fresh = torch.view_as_complex(start), torch.view_as_complex(init)
    if b.is_cpu:
        _steps(x, drive, factor, x0, fresh, first)
    else:
        drive = torch.where(first.unsqueeze(-1), drive + factor * fresh.unsqueeze(1), drive)
        x.copy_(_chunks(drive, factor, x0, ~first))
    return out


def _scan_backward(
    grad: Tensor, x: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of b, a, start and init."""
    flow = torch.empty_like(grad)  # the gradient of each state through everything later: that of its b too
    total, given = torch.view_as_complex(flow), torch.view_as_complex(grad.contiguous())
    states, x0, fresh = (torch.view_as_complex(value) for value in (x, start, init))
    factor = torch.view_as_complex(a).conj().resolve_conj()
    if flow.is_cpu:
        _steps_back(total, given, factor, first)
    else:
        kept = torch.cat([~first[:, 1:], torch.zeros_like(first[:, :1])], 1)  # what step t + 1 hands back to t
        total.copy_(_chunks(given.flip(1), factor, torch.zeros_like(x0), kept.flip(1)).flip(1))
    before = torch.cat([x0.unsqueeze(1), states[:, :-1]], 1)
    before = torch.where(first.unsqueeze(-1), fresh.unsqueeze(1), before)
    grad_a = torch.view_as_real(before.conj_physical_().mul_(total).sum((0, 1)))
    back = factor * total
    reset = first.unsqueeze(-1)
    grad_start = torch.where(reset[:, 0], 0, back[:, 0])
    grad_init = torch.where(reset, back, 0).sum(1)
    return flow, grad_a, torch.view_as_real(grad_start).clone(), torch.view_as_real(grad_init).clone()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        out = _scan(*given)
        ctx.save_for_backward(out, *given[1:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scan_backward(grads[0].contiguous(), *ctx.saved_tensors), None)


# The same as operators that torch.compile does not look into. Eager code does without: the first call of such an
# operator imports the compiler.
_operator = torch.library.custom_op("torchmem::diagonal_scan", _scan, mutates_args=())
_operator_backward = torch.library.custom_op("torchmem::diagonal_scan_backward", _scan_backward, mutates_args=())


@_operator.register_fake
def _(b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> Tensor:
    return torch.empty_like(b)


@_operator_backward.register_fake
def _(grad: Tensor, x: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor):
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(start), torch.empty_like(init)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_operator_backward(grad.contiguous(), *ctx.saved_tensors), None)


_operator.register_autograd(_backward, setup_context=_save)


# One step after the other ----------------------------------------------------------------------------------------


def _steps(x: Tensor, b: Tensor, a: Tensor, start: Tensor, init: Tensor, first: Tensor) -> None:
    """Fill x (B, T, P), complex."""
    factor = a.expand_as(start).contiguous()
    resets = first.any(0).tolist()
    before = start
    # All views are made beforehand: one by one they would take as long as the arithmetic.
    for t, (given, out) in enumerate(zip(b.unbind(1), x.unbind(1), strict=True)):
        if resets[t]:
            before = torch.where(first[:, t, None], init, before)
        before = torch.addcmul(given, factor, before, out=out)


def _steps_back(total: Tensor, grad: Tensor, a: Tensor, first: Tensor) -> None:
    """Fill total (B, T, P): total_t = grad_t + a total_{t+1}, nothing coming back through a reset at t + 1."""
    last = grad.shape[1] - 1
    factor = a.expand_as(grad[:, 0]).contiguous()
    resets = first.any(0).tolist()
    rows = list(zip(grad.unbind(1), total.unbind(1), strict=True))
    later = rows[last][1].copy_(rows[last][0])
    for t in range(last - 1, -1, -1):
        given, out = rows[t]
        if resets[t + 1]:
            later = torch.where(first[:, t + 1, None], 0, later)
        later = torch.addcmul(given, factor, later, out=out)


# Chunks side by side -----------------------------------------------------------------------------------------------


def _chunks(b: Tensor, a: Tensor, start: Tensor, keep: Tensor) -> Tensor:
    """x_t = keep_t a x_{t-1} + b_t; b (B, T, P) complex, start (B, P), keep (B, T) bool."""
    rows, steps, width = b.shape
    size = max(1, math.isqrt(steps))
    count = -(-steps // size)
    pad = count * size - steps
    kept = torch.nn.functional.pad(keep, (0, pad)).to(b.real.dtype).view(rows, count, size, 1)
    x = torch.nn.functional.pad(b, (0, 0, 0, pad)).view(rows, count, size, width)
    if not pad:
        x = x.clone()
    reach = kept.cumprod(2) * a ** torch.arange(1, size + 1, device=b.device).unsqueeze(-1)  # of a chunk's start
    for j in range(1, size):
        x[:, :, j].addcmul_(kept[:, :, j] * a, x[:, :, j - 1])
    carries, carry = [], start
    for c in range(count):
        carries.append(carry)
        carry = torch.addcmul(x[:, c, -1], reach[:, c, -1], carry)
    x.addcmul_(reach, torch.stack(carries, 1).unsqueeze(2))
    return x.flatten(1, 2)[:, :steps]
