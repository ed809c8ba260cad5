"""The scan against the plain complex loop: any flags, any length, gradients of everything, memory linear in T."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models.r2i.arrays import reference
from torchmem.models.r2i import scan
from torchmem.models.r2i.block import Stack
from torchmem.models.r2i.config import SSMConfig
from torchmem.models.r2i.ssm import S5


def case(rows: int, steps: int, states: int, seed: int = 0, flags: float = 0.2, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    b, start, init = (
        torch.randn(*shape, states, 2, generator=g, dtype=dtype) for shape in ((rows, steps), (rows,), (rows,))
    )
    angle, size = torch.rand(states, generator=g, dtype=dtype), torch.rand(states, generator=g, dtype=dtype)
    a = torch.view_as_real(torch.polar(0.9 + 0.1 * size, 6 * angle))
    return b, a, start, init, torch.rand(rows, steps, generator=g) < flags


def loop(b, a, start, init, first):
    """The recurrence as one would write it, complex and step by step."""
    b, a, x, init = (torch.view_as_complex(value) for value in (b, a, start, init))
    out = []
    for t in range(b.shape[1]):
        x = a * torch.where(first[:, t, None], init, x) + b[:, t]
        out.append(x)
    return torch.view_as_real(torch.stack(out, 1))


def gradients(function, given):
    leaves = [value.clone().requires_grad_() for value in given[:4]]
    out = function(*leaves, given[4])
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    (weight * out).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("flags", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 16, 61])
def test_equals_the_loop_with_gradients(steps: int, flags: float):
    given = case(3, steps, 4, seed=steps, flags=flags)
    ours, theirs = gradients(scan.diagonal_scan, given), gradients(loop, given)
    for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 16, 61, 257])
def test_chunks_equal_steps_both_ways(steps: int):
    """What runs elsewhere than on a CPU."""
    b, a, start, init, first = case(3, steps, 4, seed=steps)
    x, drive, factor, x0, fresh = (torch.view_as_complex(v) for v in (torch.empty_like(b), b, a, start, init))
    scan._steps(x, drive, factor, x0, fresh, first)
    folded = torch.where(first.unsqueeze(-1), drive + factor * fresh.unsqueeze(1), drive)
    torch.testing.assert_close(scan._chunks(folded, factor, x0, ~first), x, rtol=1e-9, atol=1e-9)
    total = torch.empty_like(x)
    scan._steps_back(total, drive, factor, first)
    kept = torch.cat([~first[:, 1:], torch.zeros_like(first[:, :1])], 1)
    flipped = scan._chunks(drive.flip(1), factor, torch.zeros_like(x0), kept.flip(1)).flip(1)
    torch.testing.assert_close(flipped, total, rtol=1e-9, atol=1e-9)


def test_gradcheck_and_operator_contract():
    given = case(2, 5, 3)
    leaves = [value.requires_grad_() for value in given[:4]]
    assert torch.autograd.gradcheck(scan.diagonal_scan, (*leaves, given[4]))
    torch.library.opcheck(scan._operator, (*leaves, given[4]), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("discretisation", ["bilinear", "zoh"])
def test_layer_equals_the_complex_reference_in_float64(discretisation: str):
    torch.manual_seed(0)
    s5 = S5(6, SSMConfig(states=16, blocks=2, discretisation=discretisation)).double()
    u, start, init = torch.randn(3, 257, 6).double(), *torch.randn(2, 3, 32).double()
    first = torch.rand(3, 257) < 0.05
    abar, gain = s5.discretised()
    pairs = (-1, 2)
    drive = s5.drive(u, gain).unflatten(-1, pairs)
    x = scan.diagonal_scan(drive, abar, start.unflatten(-1, pairs), init.unflatten(-1, pairs), first).flatten(-2)
    expected_y, expected_x = reference(s5, u, start, init, first)
    torch.testing.assert_close(x, expected_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(s5.read_out(x, u), expected_y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("conj_sym", [False, True])
def test_stack_in_parallel_equals_stack_step_by_step(conj_sym: bool):
    """On random flags, with an init that is not zero, gradients of every parameter and of the init included."""
    torch.manual_seed(1)
    stack = Stack(6, SSMConfig(layers=2, states=16, blocks=2, conj_sym=conj_sym)).double()
    width = 16 if conj_sym else 32
    u, start, init = torch.randn(4, 40, 6).double(), *torch.randn(2, 4, 2, width).double()
    first = torch.rand(4, 40) < 0.2
    found = []
    for stepwise in (False, True):
        fresh = init.clone().requires_grad_()
        y, x = stack.sequence(u, start, fresh, first, stepwise)
        grads = torch.autograd.grad(y.sin().sum() + x.cos().sum(), [*stack.parameters(), fresh])
        found.append([y, x, *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_reset_inside_equals_two_sequences():
    b, a, start, init, _ = case(2, 9, 3)
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[:, 4] = True
    whole = scan.diagonal_scan(b, a, start, init, first)
    parts = [scan.diagonal_scan(b[:, s], a, x, init, torch.zeros_like(first[:, s])) for s, x in
             ((slice(0, 4), start), (slice(4, 9), init))]  # fmt: skip
    assert torch.equal(whole, torch.cat(parts, 1))


def test_one_graph_for_all_lengths():
    """torch.compile sees one operator: a new length costs no unrolled graph."""
    counts = []

    def backend(graph, _):
        counts.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(scan.diagonal_scan, backend=backend, dynamic=True)
    for steps in (5, 40, 333):
        given = case(2, steps, 3, dtype=torch.float32)
        ours, theirs = gradients(compiled, given), gradients(loop, given)
        for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert len(counts) == 1 and counts[0] < 20
    torch._dynamo.reset()


def test_memory_is_linear_in_time():
    """Bytes that autograd keeps for a pass: proportional to T, a small multiple of the states."""
    kept = {}
    for steps in (64, 1024):
        given = [v.float() for v in case(2, steps, 4)[:4]]
        leaves = [value.requires_grad_() for value in given]
        sizes: list[int] = []

        def note(value: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(value.numel() * value.element_size())
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            scan.diagonal_scan(*leaves, torch.zeros(2, steps, dtype=torch.bool))
        kept[steps] = sum(sizes)
    assert math.isclose(kept[1024] / kept[64], 16, rel_tol=0.1)
    assert kept[1024] < 1.2 * 2 * 1024 * 4 * 2 * 4  # the states alone, with the flags
