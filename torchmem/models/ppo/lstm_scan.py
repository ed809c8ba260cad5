"""An LSTM along (B, T) with resets inside, forward and backward written out, as gru_scan.py does for the GRU.

On a CPU torch's own LSTM takes packed sequences through its slow path, one graph node per operation and step. Equations
are those of torch.nn.LSTM, with its order of gates: input, forget, candidate, output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LSTMScan(torch.autograd.Function):
    """All hidden states (T, B, D) and the last cell (B, D), from gates (T, B, 4 D) of inputs and biases.

    h, c (B, D): before the first step. weight (4 D, D) of the recurrence. keep (T, B, 1) is 0 where the states are
    replaced by start_h, start_c (D,) before the step, else 1.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, c: Tensor, weight: Tensor, keep: Tensor, start_h: Tensor, start_c: Tensor
    ) -> tuple[Tensor, Tensor]:
        steps, rows, width = gates.shape
        units = width // 4
        hidden, cell, shown, before_h, before_c = (gates.new_empty(steps, rows, units) for _ in range(5))
        act = torch.empty_like(gates)
        weight_t = weight.t()
        # All views are made beforehand: one by one they would take as long as the arithmetic.
        each = zip(
            gates.unbind(), act.unbind(), keep.unbind(), hidden.unbind(), cell.unbind(), shown.unbind(),
            before_h.unbind(), before_c.unbind(), act[..., : 2 * units].unbind(),
            *(part.unbind() for part in act.split(units, -1)),
            strict=True,
        )  # fmt: skip
        for given, all_, kept, new_h, new_c, show, prev_h, prev_c, two, write, forget, candidate, out in each:
            torch.lerp(start_h, h, kept, out=prev_h)
            torch.lerp(start_c, c, kept, out=prev_c)
            torch.addmm(given, prev_h, weight_t, out=all_)
            two.sigmoid_()
            candidate.tanh_()
            out.sigmoid_()
            c = torch.mul(forget, prev_c, out=new_c).addcmul_(write, candidate)
            torch.tanh(c, out=show)
            h = torch.mul(out, show, out=new_h)
        ctx.save_for_backward(before_h, before_c, shown, act, weight, keep)
        return hidden, cell[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        before_h, before_c, shown, act, weight, keep = ctx.saved_tensors
        units = before_h.shape[-1]
        write, forget, candidate, out = act.split(units, -1)
        # Gradients of the gates are that of the cell, or of the output, times a factor: all factors at once.
        to_cell = out * (1 - shown * shown)
        to_out = shown * out * (1 - out)
        factor = torch.stack(
            [
                candidate * write * (1 - write),
                before_c * forget * (1 - forget),
                write * (1 - candidate * candidate),
            ],
            2,
        )
        d_gates = act.new_empty(*act.shape[:2], 4, units)
        d_before_h, d_before_c = torch.empty_like(before_h), torch.empty_like(before_c)
        flow_h, flow_c = torch.zeros_like(before_h[0]), grads[1]
        each = zip(
            grads[0].unbind(), to_cell.unbind(), to_out.unbind(), factor.unbind(), forget.unbind(), keep.unbind(),
            d_gates[:, :, :3].unbind(), d_gates[:, :, 3].unbind(), d_gates.flatten(2).unbind(),
            d_before_h.unbind(), d_before_c.unbind(),
            strict=True,
        )  # fmt: skip
        for grad, cell_by, out_by, by, forgot, kept, d_three, d_out, flat, d_prev_h, d_prev_c in reversed(list(each)):
            d_h = flow_h + grad
            d_c = torch.addcmul(flow_c, d_h, cell_by)
            torch.mul(d_c.unsqueeze(1), by, out=d_three)
            torch.mul(d_h, out_by, out=d_out)
            flow_h = torch.mm(flat, weight, out=d_prev_h) * kept
            flow_c = torch.mul(d_c, forgot, out=d_prev_c) * kept
        flat = d_gates.flatten(2)
        d_weight = flat.flatten(0, 1).t() @ before_h.flatten(0, 1)
        replaced = 1 - keep
        d_start = ((d_before * replaced).sum((0, 1)) for d_before in (d_before_h, d_before_c))
        return flat, flow_h, flow_c, d_weight, None, *d_start
