"""Every way through a core is the same core: step by step, whole, packed, in pieces, and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchmem.models.ppo.cores as cores
from torchmem.models.ppo.cores import Core, GRUCore, LSTMCore, Memory, kernels, make_core
from torchmem.models.ppo.gru_scan import GRUScan
from torchmem.models.ppo.lstm_scan import LSTMScan
from torchmem.models.ppo.segments import cut

ROWS, STEPS, IN, UNITS = 5, 7, 3, 4
RESETS = {
    "none": [],
    "first": [(0, 0), (3, 0)],
    "middle": [(0, 3), (1, 3), (2, 5)],
    "last": [(1, 6), (4, 6)],
    "all kinds": [(0, 0), (0, 1), (0, 2), (1, 6), (2, 3), (2, 4), (4, 0), (4, 6)],
    "every step": [(i, t) for i in range(ROWS) for t in range(STEPS)],
}


def make(kind: str, dtype: torch.dtype = torch.float64) -> Core:
    torch.manual_seed(0)
    core = make_core(kind, IN, UNITS, 0.5).to(dtype)
    assert isinstance(core, Core)
    return core


def inputs(core: Core, resets: str) -> tuple[torch.Tensor, torch.Tensor, Memory]:
    generator = torch.Generator().manual_seed(1)
    dtype = core.start.dtype
    x = torch.randn(ROWS, STEPS, IN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    first = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    for place in RESETS[resets]:
        first[place] = True
    cells = UNITS if core.cell_units else 0
    hidden, cell = (torch.randn(ROWS, n, generator=generator, dtype=torch.float64) for n in (UNITS, cells))
    return x, first, Memory(hidden.to(dtype).requires_grad_(), cell.to(dtype).requires_grad_())


def results(core: Core, way, resets: str) -> list[torch.Tensor]:
    """Outputs, last memory, and all gradients of a function of both."""
    x, first, memory = inputs(core, resets)
    out, last = way(x, first, memory)
    mix = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    sources = [x, *memory, *core.parameters()]
    grads = torch.autograd.grad((out * mix).sum() + last.cell.square().sum(), sources, allow_unused=True)
    return [out, *last, *(torch.zeros_like(s) if g is None else g for s, g in zip(sources, grads, strict=True))]


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_whole_and_packed_are_the_steps(kind, resets):
    core = make(kind)
    expected = results(core, core.stepwise, resets)
    kernel = kernels.gru if kind == "gru" else kernels.lstm
    ways = [core.whole, lambda *a: core.packed(kernel, *a)]
    if isinstance(core, LSTMCore):
        cuts = sorted({t for _, t in RESETS[resets] if t})
        ways.append(lambda x, first, memory: core.in_runs(x, first, memory, cuts))
    for way in ways:
        for a, b in zip(results(core, way, resets), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_in_float32_they_agree_to_a_millionth(kind):
    core = make(kind, torch.float32)
    for a, b in zip(results(core, core.whole, "all kinds"), results(core, core.stepwise, "all kinds"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("resets", ["none", "first", "middle"])
def test_few_resets_are_left_to_the_library(resets, monkeypatch):
    """Counted for all rows together: "middle" has two steps with a reset."""
    core, seen = make("lstm", torch.float32), []
    monkeypatch.setattr(cores, "RUN", 3)  # of 7 steps: two runs at most
    monkeypatch.setattr(core, "in_runs", lambda *a: seen.append(a[-1]) or LSTMCore.in_runs(core, *a))
    for a, b in zip(results(core, core.whole, resets), results(core, core.stepwise, resets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    assert seen == ([] if resets == "middle" else [[]])


@pytest.mark.parametrize("kind", [GRUCore, LSTMCore])
def test_it_is_the_recurrence_of_torch(kind):
    core = kind(IN, UNITS, 0.5).double()
    own = (nn.GRU if kind is GRUCore else nn.LSTM)(IN, UNITS, batch_first=True).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(own, f"{name}_l0").data.copy_(getattr(core, name))
    x, first, memory = inputs(core, "none")
    state = memory.hidden[None] if kind is GRUCore else (memory.hidden[None], memory.cell[None])
    torch.testing.assert_close(core(x, first, memory)[0], own(x, state)[0])


def test_gradients_of_the_scan_are_those_of_its_values():
    core = make("gru")
    _, first, memory = inputs(core, "all kinds")
    gates = torch.randn(STEPS, ROWS, 3 * UNITS, dtype=torch.float64, requires_grad=True)
    keep = (~first).double().t().unsqueeze(-1)
    free = (gates, memory.hidden, core.weight_hh, core.bias_hh)
    assert torch.autograd.gradcheck(lambda g, h, w, b, s: GRUScan.apply(g, h, w, b, keep, s), (*free, core.start))
    core = make("lstm")
    _, first, memory = inputs(core, "all kinds")
    gates = torch.randn(STEPS, ROWS, 4 * UNITS, dtype=torch.float64, requires_grad=True)
    free = (gates, *memory, core.weight_hh)
    assert torch.autograd.gradcheck(lambda g, h, c, w, *s: LSTMScan.apply(g, h, c, w, keep, *s), (*free, *core.begin()))


@pytest.mark.parametrize("kind", ["gru", "lstm", "mlp"])
def test_one_step_at_a_time_and_two_halves_are_one_sequence(kind):
    torch.manual_seed(0)
    core = make_core(kind, IN, UNITS, 0.5).double()
    x, first, _ = inputs(make("lstm" if kind == "lstm" else "gru"), "all kinds")
    start = core.initial(ROWS)
    expected, last = core(x, first, start)
    memory, out = start, []
    for t in range(STEPS):
        memory = core.one(x[:, t], first[:, t], memory)
        out.append(memory.hidden)
    half, between = core(x[:, :3], first[:, :3], start)
    rest, end = core(x[:, 3:], first[:, 3:], between)
    for got in (torch.stack(out, 1), torch.cat([half, rest], 1)):
        torch.testing.assert_close(got, expected)
    for got in (memory, end):
        torch.testing.assert_close(tuple(got), tuple(last))


def test_a_reset_forgets_all_that_was_before():
    core = make("lstm")
    x, first, memory = inputs(core, "middle")
    other = torch.cat([x[:, :3] + 1, x[:, 3:]], 1)
    a, b = core(x, first, memory)[0], core(other, first, memory)[0]
    assert torch.equal(a[:2, 3:], b[:2, 3:]) and not torch.allclose(a[2, 3:5], b[2, 3:5])
    fresh = core(x[:2, 3:], torch.ones(2, 4, dtype=torch.bool) & (torch.arange(4) == 0), core.initial(2))[0]
    torch.testing.assert_close(a[:2, 3:], fresh)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_hook_on_any_part_sees_every_step_and_what_it_returns_holds(kind):
    core = make(kind)
    x, first, memory = inputs(core, "middle")
    plain = core(x, first, memory)[0]
    for name, part in core.named_children():
        seen = []
        handle = part.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        torch.testing.assert_close(core(x, first, memory)[0], plain)
        handle.remove()
        assert len(seen) == STEPS and seen[0].shape == (ROWS, UNITS), name
        handle = part.register_forward_hook(lambda m, i, out: out * 0.5)
        assert not torch.allclose(core(x, first, memory)[0], plain), f"an edit of {name} is lost in training"
        handle.remove()
    assert not core.hooked


def test_taps_of_the_gru_are_its_equation():
    core = make("gru")
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ("update", "candidate", "state")}
    for name, into in seen.items():
        core.get_submodule(name).register_forward_hook(lambda m, i, out, into=into: into.append(out))
    x, first, memory = inputs(core, "none")
    core(x, first, memory)
    update, candidate, state = (torch.stack(v) for v in seen.values())
    torch.testing.assert_close(state[1:], update[1:] * candidate[1:] + (1 - update[1:]) * state[:-1])


def test_segments_cover_every_step_once_in_order():
    first = inputs(make("gru"), "all kinds")[1]
    pieces = cut(first)
    assert sorted(pieces.order.tolist()) == list(range(ROWS * STEPS))
    assert pieces.sizes.sum() == ROWS * STEPS and (pieces.sizes.diff() <= 0).all()
    assert len(pieces.column) == int((first.sum(1) + ~first[:, 0]).sum())
    assert pieces.column[pieces.final].tolist() == list(range(ROWS))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_span_makes_units_hold_what_they_have(kind):
    torch.manual_seed(0)
    core = make_core(kind, 2, 400, None)
    for p in (core.weight_ih, core.weight_hh):
        nn.init.zeros_(p)
    core.remember(50)
    seen = {}
    kept = core.keep if kind == "lstm" else core.update
    kept.register_forward_hook(lambda module, args, out: seen.update(kept=out if kind == "lstm" else 1 - out))
    core.one(torch.zeros(1, 2), torch.zeros(1, dtype=torch.bool), core.initial(1))
    spans = 1 / (1 - seen["kept"])  # of an exponential decay, in steps
    assert 2 <= spans.min() < 3 and 48 < spans.max() <= 50.01 and 23 < spans.mean() < 28
