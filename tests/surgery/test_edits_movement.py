"""Swap and Collapse: the algebra of movement, and the four faults of the code that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchmem.surgery.edits import At
from torchmem.surgery.movement import Collapse, Swap

N, B, T = 6, 3, 5


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def frame(count: int) -> Tensor:
    """Orthonormal directions (count, N)."""
    return torch.linalg.qr(double(N, N))[0].T[:count]


def one(edit, now: Tensor, before: Tensor | None, is_first: Tensor | None = None) -> Tensor:
    """The edit of a single step. now, before: (B, N)."""
    previous = None if before is None else before[:, None]
    return edit.apply(now[:, None], At([4], "act", is_first, previous))[:, 0]


def test_movement_along_the_source_goes_along_the_target():
    """Faults a and b: the amount must arrive at the target, and a state must come back, not a difference."""
    u, v, w = frame(3)
    before = double(B, N)
    new = one(Swap("h", u[None], v[None]), before + 2 * u + 0.5 * w, before)
    assert torch.allclose(new, before + 2 * v + 0.5 * w)


def test_directions_that_are_not_orthogonal_are_not_counted_twice():
    """Fault c: separate projections of the same movement would take the shared part twice."""
    u, v, w, z = frame(4)
    oblique = (u + v) / 2**0.5
    before = double(B, N)
    new = one(Swap("h", torch.stack([u, oblique]), torch.stack([w, z])), before + 3 * u - oblique, before)
    assert torch.allclose(new, before + 3 * w - z)


def test_gradients_reach_the_previous_state():
    """Fault d."""
    before = double(B, N).requires_grad_()
    now = double(B, N).requires_grad_()
    u, v = frame(2)
    edit = Swap("h", u[None], v[None])
    assert torch.autograd.gradcheck(lambda a, b: one(edit, a, b), (now, before))
    one(edit, now, before).sum().backward()
    shift = (v - u).sum()
    assert torch.allclose(before.grad, (-u * shift).expand(B, N))


def test_algebra():
    before, now = double(B, N), double(B, N)
    some = double(2, N)
    assert torch.equal(one(Swap("h", some, some), now, before), now)  # bitwise
    u, v = frame(2)
    exchange = Swap.exchange("h", u[None], v[None])
    once = one(exchange, now, before)
    assert torch.allclose((once - before).norm(dim=-1), (now - before).norm(dim=-1))
    assert not torch.allclose(once, now)
    assert torch.allclose(one(exchange, once, before), now)
    matrix = torch.eye(N, dtype=torch.float64) - torch.outer(u, u) - torch.outer(v, v) + torch.outer(u, v)
    matrix += torch.outer(v, u)
    assert torch.allclose(once, before + (now - before) @ matrix)


def test_collapse_stops_all_movement_along_its_directions_and_no_other():
    directions = double(2, N)
    before, now = double(B, N), double(B, N)
    new = one(Collapse("h", directions), now, before)
    assert ((new - before) @ directions.T).abs().max() < 1e-12
    across = double(B, N)
    across -= across @ torch.linalg.pinv(directions) @ directions
    assert torch.allclose((new * across).sum(-1), (now * across).sum(-1))
    assert torch.allclose(new, one(Swap("h", directions, torch.zeros_like(directions)), now, before))


def test_a_step_without_a_past_stays_bitwise():
    edit = Collapse("h", double(1, N))
    now, before = double(B, N), double(B, N)
    assert torch.equal(one(edit, now, None), now)
    first = torch.tensor([[True], [False], [True]])
    new = one(edit, now, before, first)
    assert torch.equal(new[[0, 2]], now[[0, 2]]) and not torch.equal(new[1], now[1])


def test_in_a_sequence_each_step_moves_away_from_the_edited_step_before():
    """A step-by-step cell and a view of the whole sequence must agree, with a reset in the middle and rows, units."""
    for where in ({}, {"time": (1, 2, 4)}, {"rows": (0, 2)}, {"units": (0, 2, 3, 5)}):
        edit = Swap("h", double(2, N), double(2, N), **where)
        x, start = double(B, T, N), double(B, 1, N)
        first = torch.zeros(B, T, dtype=torch.bool)
        first[1, 2] = first[0, 0] = True
        whole = edit.apply(x, At(range(T), "unroll", first, start))
        previous, steps = start, []
        for t in range(T):
            previous = edit.apply(x[:, t : t + 1], At([t], "act", first[:, t : t + 1], previous))
            steps.append(previous)
        assert torch.allclose(whole, torch.cat(steps, 1))
        if "rows" in where:
            assert torch.equal(whole[1], x[1])
        if "units" in where:
            assert torch.equal(whole[..., [1, 4]], x[..., [1, 4]])


def test_collapse_over_a_sequence_holds_the_component_of_its_start():
    u = frame(1)
    x, start = double(B, T, N), double(B, 1, N)
    held = Collapse("h", u).apply(x, At(range(T), previous=start)) @ u.T
    assert torch.allclose(held, (start @ u.T).expand_as(held))


def test_wrong_directions_fail_at_once():
    u = double(1, N)
    with pytest.raises(ValueError, match="span only 1"):
        Swap("h", torch.cat([u, 2 * u]), double(2, N))
    with pytest.raises(ValueError, match="one target for each source"):
        Swap("h", u, double(2, N))
    with pytest.raises(ValueError, match="one direction is direction"):
        Collapse("h", u[0])
    with pytest.raises(ValueError, match="direction 0 is zero"):
        Collapse("h", torch.zeros(1, N))
