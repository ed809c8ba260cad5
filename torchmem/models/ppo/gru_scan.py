"""A GRU along (B, T) with resets inside, forward and backward written out: few operations, no graph of T nodes.

On a CPU torch's own GRU records every gate of every step for autograd, and knows no resets. Equations are those
of torch.nn.GRU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class GRUScan(torch.autograd.Function):
    """All states (T, B, D) from gates (T, B, 3 D) of the inputs and h (B, D) before the first step.

    weight (3 D, D) and bias (3 D,) of the recurrence. keep (T, B, 1) is 0 where the state is
    replaced by `start` before the step, else 1.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, start: Tensor
    ) -> Tensor:
        steps, rows, width = gates.shape
        units = width // 3
        before, after = (gates.new_empty(steps, rows, units) for _ in range(2))
        act, recurrent = torch.empty_like(gates), torch.empty_like(gates)  # act: reset, update, candidate
        weight_t, fresh = weight.t(), start.expand_as(h)
        # All views are made beforehand: one by one they would take as long as the arithmetic.
        each = zip(
            before.unbind(), after.unbind(), keep.unbind(), recurrent.unbind(),
            *(part.unbind() for whole in (gates, recurrent, act) for part in whole.split([2 * units, units], -1)),
            *(part.unbind() for part in act[..., : 2 * units].split(units, -1)),
            strict=True,
        )  # fmt: skip
        for prev, new, kept, product, gates_ru, gates_n, product_ru, product_n, ru, n, r, u in each:
            torch.lerp(fresh, h, kept, out=prev)
            torch.addmm(bias, prev, weight_t, out=product)
            torch.add(gates_ru, product_ru, out=ru).sigmoid_()
            torch.addcmul(gates_n, r, product_n, out=n).tanh_()
            h = torch.lerp(n, prev, u, out=new)
        ctx.save_for_backward(before, act, recurrent, weight, keep)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        before, act, recurrent, weight, keep = ctx.saved_tensors
        units = before.shape[-1]
        reset, update, candidate = act.split(units, -1)
        # d recurrent = (gradient of the new state) * factor: all factors at once, so that a step is few operations.
        to_candidate = (1 - update) * (1 - candidate * candidate)
        factor = torch.stack(
            [
                to_candidate * recurrent[..., 2 * units :] * reset * (1 - reset),
                (before - candidate) * update * (1 - update),
                to_candidate * reset,
            ],
            2,
        )
        d_after, d_before = torch.empty_like(before), torch.empty_like(before)
        d_recurrent = torch.empty_like(factor)
        flow = torch.zeros_like(before[0])
        each = zip(
            grads[0].unbind(), d_after.unbind(), d_after.unsqueeze(2).unbind(), factor.unbind(), d_recurrent.unbind(),
            d_recurrent.flatten(2).unbind(), update.unbind(), d_before.unbind(), keep.unbind(),
            strict=True,
        )  # fmt: skip
        for grad, total, column, by, product, flat, u, d_prev, kept in reversed(list(each)):
            torch.add(flow, grad, out=total)
            torch.mul(column, by, out=product)
            torch.addmm(total * u, flat, weight, out=d_prev)
            flow = d_prev * kept
        d_recurrent = d_recurrent.flatten(2)
        d_gates = torch.cat([d_recurrent[..., : 2 * units], d_after * to_candidate], -1)
        d_weight = d_recurrent.flatten(0, 1).t() @ before.flatten(0, 1)
        d_start = (d_before * (1 - keep)).sum((0, 1))
        return d_gates, flow, d_weight, d_recurrent.sum((0, 1)), None, d_start
