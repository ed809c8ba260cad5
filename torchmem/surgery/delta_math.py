"""Arithmetic under WeightDelta: differences without a rounding error, and spectra of weight tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def difference(after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) with before + high + low == after in real numbers; both in the dtype of `after`.

    The rounding error of a difference is itself a float (Knuth's TwoSum), so two floats hold it exactly. Entries
    that do not change get high -0.0, the one number whose addition changes nothing; low is -0.0 where `after` became
    -0.0, which no sum can express.
    """
    high = after - before
    virtual = high - after
    low = (after - (high - virtual)) + (-before - virtual)
    unchanged = (after == before) & (torch.signbit(after) == torch.signbit(before))
    negative_zero = (after == 0) & torch.signbit(after) & ~unchanged
    minus = after.new_full((), -0.0)
    return torch.where(unchanged, minus, high), torch.where(negative_zero, minus, low)


class Shift(torch.autograd.Function):
    """w + high + low, rounded once: bitwise `after` where w is `before`. The gradient with respect to w is one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, high: Tensor, low: Tensor, marked: bool) -> Tensor:
        # Why the result is exact: with s = fl(w + high), t its error and after = s + t + low, both t + low (the
        # error of a sum whose larger part is `after`) and the last sum are representable, so neither rounds.
        total = w + high
        virtual = total - w
        error = (w - (total - virtual)) + (high - virtual)
        rest = error + low
        out = torch.where(rest == 0, total, total + rest)
        if marked:
            out = torch.where((out == 0) & (low == 0) & torch.signbit(low), out.new_full((), -0.0), out)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad, None, None, None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bits: -0.0 is not 0.0, and a NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    raw = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*raw)


def matrices(weight: Tensor) -> Tensor | None:
    """A weight as (groups, out, in); None where it is no matrix (biases, scales).

    (out, in) is one group, (g, out, in) are g blocks, a convolution (out, in, k, k) is one (out, in k k) matrix.
    """
    if weight.dim() < 2 or not weight.numel():
        return None
    if weight.dim() == 2:
        return weight.unsqueeze(0)
    return weight if weight.dim() == 3 else weight.flatten(1).unsqueeze(0)


def singular_values(weight: Tensor) -> Tensor | None:
    """(k,), or (g, k) for a block weight (g, out, in); float64, descending. None where it is no matrix."""
    found = matrices(weight)
    if found is None:
        return None
    values = torch.linalg.svdvals(found.double())
    return values if weight.dim() == 3 else values[0]


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """The nearest weight whose matrices have at most `rank`; vectors come back as they are."""
    found = matrices(weight)
    if found is None or rank >= min(found.shape[1:]):
        return weight
    left, values, right = torch.linalg.svd(found.double(), full_matrices=False)
    kept = (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
    return kept.reshape(weight.shape).to(weight.dtype)


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007). (..., k) -> (...), 0 if all 0."""
    total = values.sum(-1, keepdim=True)
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), torch.zeros_like(entropy))


def stable_rank(values: Tensor) -> Tensor:
    """Squared Frobenius norm over squared largest singular value. values (..., k) -> (...), 0 if all 0."""
    largest = values.amax(-1).square()
    return torch.where(largest > 0, values.square().sum(-1) / largest.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
