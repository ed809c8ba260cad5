"""Weight gradients of a recurrent cell, computed once after the scan instead of once per time step.

Inside `with deferred_weight_gradients():` every `linear` and `bmm` keeps its input and output gradient; the weight's
gradient is then one large matrix product over all steps. On a CPU that replaces T small products and T additions into
megabytes of gradient by one product at full speed; in bfloat16 it also accumulates over time in float32.
Outside the block both are the plain operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


class _Ledger:
    """The (input, output gradient) pairs of one weight."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.grads: list[Tensor] = []


class _Gate(torch.autograd.Function):
    """Identity on a weight; its backward runs after every use and adds up what the ledger holds."""

    @staticmethod
    def forward(ctx, weight: Tensor, ledger: _Ledger, contract) -> Tensor:
        ctx.ledger, ctx.contract = ledger, contract
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, direct: Tensor | None):
        ledger = ctx.ledger
        grad = direct
        if ledger.grads:
            late = ctx.contract(ledger.inputs, ledger.grads)
            grad = late if grad is None else grad + late
            ledger.inputs, ledger.grads = [], []
        return grad, None, None


def _contract_linear(inputs: list[Tensor], grads: list[Tensor]) -> Tensor:
    return torch.cat(grads).t() @ torch.cat(inputs)  # (out, in)


def _contract_bmm(inputs: list[Tensor], grads: list[Tensor]) -> Tensor:
    return torch.bmm(torch.cat(grads, 1).transpose(1, 2), torch.cat(inputs, 1))  # (blocks, out, in)


class _Linear(torch.autograd.Function):
    """x (B, in) @ weight.T with the weight's gradient left to its gate."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ledger: _Ledger) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ledger = ledger
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        ctx.ledger.inputs.append(x)
        ctx.ledger.grads.append(grad)
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None


class _Bmm(torch.autograd.Function):
    """x (blocks, B, in) @ weight.T (blocks, out, in) with the weight's gradient left to its gate."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ledger: _Ledger) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ledger = ledger
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        ctx.ledger.inputs.append(x)
        ctx.ledger.grads.append(grad)
        return (torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None), None, None


_active: dict[tuple, tuple[Tensor, _Ledger]] | None = None


@contextmanager
def deferred_weight_gradients() -> Iterator[None]:
    """Collect weight gradients of all `linear` and `bmm` calls inside until the backward pass has left the block."""
    global _active
    outer = _active
    _active = {} if torch.is_grad_enabled() else None
    try:
        yield
    finally:
        _active = outer


def _gated(uses: dict[tuple, tuple[Tensor, _Ledger]], weight: Tensor, contract) -> tuple[Tensor, _Ledger]:
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
    if key not in uses:
        ledger = _Ledger()
        uses[key] = (_Gate.apply(weight, ledger, contract), ledger)
    return uses[key]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear, or its deferred form inside the block (2-D inputs only)."""
    if _active is None or x.dim() != 2 or not weight.requires_grad:
        return F.linear(x, weight, bias)
    gated, ledger = _gated(_active, weight, _contract_linear)
    return _Linear.apply(x, gated, ledger) + bias


def bmm(x: Tensor, weight: Tensor) -> Tensor:
    """x (blocks, B, in), weight (blocks, out, in) -> (blocks, B, out); deferred inside the block."""
    if _active is None or not weight.requires_grad:
        return torch.bmm(x, weight.transpose(1, 2))
    gated, ledger = _gated(_active, weight, _contract_bmm)
    return _Bmm.apply(x, gated, ledger)
