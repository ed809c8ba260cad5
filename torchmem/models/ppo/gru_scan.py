"""A GRU along (B, T) with resets inside, forward and backward written out: few operations, no graph of T nodes.

On a CPU torch's own GRU records every gate of every step for autograd, and knows no resets. Equations are torch.nn.GRU's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class GRUScan(torch.autograd.Function):
    """(gates (T, B, 3 D) of the inputs, h (B, D), weight (3 D, D), bias (3 D,), keep (T, B, 1), start (D,)) -> (T, B, D).

    keep is 0 where the state is replaced by `start` before the step, else 1.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, start: Tensor
    ) -> Tensor:
        steps, rows, width = gates.shape
        units = width // 3
        before, after, hidden = (gates.new_empty(steps, rows, units) for _ in range(3))
        act = torch.empty_like(gates)  # reset, update and candidate after their nonlinearities
        transposed = weight.t()
        for t in range(steps):
            prev = torch.lerp(start.expand_as(h), h, keep[t], out=before[t])
            recurrent = torch.addmm(bias, prev, transposed)
            a, g = act[t], gates[t]
            torch.add(g[:, : 2 * units], recurrent[:, : 2 * units], out=a[:, : 2 * units]).sigmoid_()
            hidden[t] = recurrent[:, 2 * units :]
            torch.addcmul(g[:, 2 * units :], a[:, :units], hidden[t], out=a[:, 2 * units :]).tanh_()
            h = torch.lerp(a[:, 2 * units :], prev, a[:, units : 2 * units], out=after[t])
        ctx.save_for_backward(before, act, hidden, weight, keep)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        before, act, hidden, weight, keep = ctx.saved_tensors
        steps, _, units = before.shape
        reset, update, candidate = act.split(units, -1)
        # What does not depend on the order of steps is done for all of them at once.
        to_candidate = (1 - update) * (1 - candidate * candidate)
        to_update = (before - candidate) * update * (1 - update)
        to_reset = hidden * reset * (1 - reset)
        d_gates, d_recurrent, d_before = torch.empty_like(act), torch.empty_like(act), torch.empty_like(before)
        flow = torch.zeros_like(before[0])
        for t in range(steps - 1, -1, -1):
            flow = flow + grads[0][t]
            g, a = d_gates[t], d_recurrent[t]
            d_candidate = torch.mul(flow, to_candidate[t], out=g[:, 2 * units :])
            torch.mul(flow, to_update[t], out=g[:, units : 2 * units])
            torch.mul(d_candidate, to_reset[t], out=g[:, :units])
            a[:, : 2 * units] = g[:, : 2 * units]
            torch.mul(d_candidate, reset[t], out=a[:, 2 * units :])
            flow = torch.addmm(flow * update[t], a, weight, out=d_before[t]) * keep[t]
        d_weight = d_recurrent.flatten(0, 1).t() @ before.flatten(0, 1)
        d_start = (d_before * (1 - keep)).sum((0, 1))
        return d_gates, flow, d_weight, d_recurrent.sum((0, 1)), None, d_start
