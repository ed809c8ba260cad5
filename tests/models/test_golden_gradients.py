"""Gradients of the total and of every loss, and three updates of optimiser, slow critic and return range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models import golden
from torchmem.models.importers.dreamerv3 import translate
from torchmem.models.laprop import LaProp

pytestmark = pytest.mark.usefixtures("product")
GRADIENT = 2e-5  # of each tensor's maximum; the bar is 1e-4
UPDATE = 1e-4  # absolute, after three updates of which the largest is 1e-3: the bar
TINY = 1e-17  # XLA-CPU flushes the squares of such gradients to 0, and their update with them (spec, section 12)


def worst(ours: dict[str, Tensor], recorded: dict[str, Tensor]) -> tuple[float, str]:
    """Largest difference, each tensor relative to its own maximum, and where."""
    assert ours.keys() == recorded.keys()
    pairs = ((n, ours[n], recorded[n]) for n in recorded)
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-20)), n) for n, a, b in pairs)


def test_gradients_of_the_total(name: str):
    agent = golden.agent(name)
    agent.loss(golden.batch(name), golden.argmax_noise(name)).total.backward()
    error, where = worst({n: p.grad for n, p in agent.trained()}, golden.grads(name))
    assert error <= GRADIENT, where


def test_each_loss_reaches_what_it_should(name: str):
    """Norm and sum of each loss's gradient for each parameter, where a zero is exactly zero: no path at all."""
    agent = golden.agent(name)
    out = agent.loss(golden.batch(name), golden.argmax_noise(name))
    table = golden.arrays(f"{name}/grads_per_loss")
    shapes = golden.arrays(f"{name}/params")
    names = [translate(str(path), shapes[str(path)])[0] for path in table["param_names"]]
    params = dict(agent.trained())
    assert set(names) == set(params)
    for row, loss_name in enumerate(table["loss_names"]):
        keys = list(agent.spec.obs) if loss_name == "rec" else [str(loss_name)]
        loss = sum(agent.scale(key) * out.losses[key].mean() for key in keys)
        assert float(loss.detach()) == pytest.approx(float(table["scaled_loss"][row]), rel=1e-5)
        found = torch.autograd.grad(loss, [params[n] for n in names], retain_graph=True, allow_unused=True)
        for column, grad in enumerate(found):
            norm, total = float(table["norm"][row, column]), float(table["sum"][row, column])
            where = f"{loss_name} -> {names[column]}"
            if norm == 0:
                assert grad is None or not grad.any(), where
                continue
            assert grad is not None, where
            assert float(grad.norm()) == pytest.approx(norm, rel=2e-5), where
            # a sum cancels: its scale is the norm times the root of the count
            assert abs(float(grad.sum()) - total) <= 2e-5 * norm * grad.numel() ** 0.5, where


def final(name: str) -> dict[str, Tensor]:
    """State after three updates by our name, optimiser entries left out."""
    found = golden.arrays(f"{name}/train3").items()
    kept = {k.removeprefix("final/"): v for k, v in found if k.startswith("final/")}
    return dict(translate(k, v) for k, v in kept.items() if not k.startswith(("opt/", "slowval_count")))


def recorded_gradients(name: str) -> list[dict[str, Tensor]]:
    later = [golden.grads(name, f"step{i}/grad/", "train3") for i in (1, 2)]
    return [golden.grads(name), *later]


def comparable(name: str) -> dict[str, Tensor]:
    """Where no step's gradient is so small that XLA-CPU flushed it; exact zeros are comparable."""
    steps = recorded_gradients(name)
    return {n: torch.stack([(g[n].abs() >= TINY) | (g[n] == 0) for g in steps]).all(0) for n in steps[0]}


def from_recorded_gradients(name: str) -> dict[str, Tensor]:
    """Differences of all parameters after LaProp was given the three recorded gradients."""
    params = dict(golden.agent(name).trained())
    optimizer = LaProp(params.items(), golden.agent(name).config)
    for step in recorded_gradients(name):
        for key, grad in step.items():
            params[key].grad = grad
        optimizer.step()
    expected = final(name)
    return {n: (p.detach() - expected[n]).abs() for n, p in params.items()}


def test_three_updates_from_recorded_gradients(name: str):
    mask = comparable(name)
    assert sum(int(m.sum()) for m in mask.values()) > 0.85 * sum(m.numel() for m in mask.values())
    errors = {n: float((e * mask[n]).max()) for n, e in from_recorded_gradients(name).items()}
    # not 2e-7: the flushed elements of a tensor change its norm, and so by how much AGC clips the others
    assert max(errors.values()) <= 2e-5, max(errors, key=errors.get)


def test_three_updates_where_denormals_are_flushed_as_xla_does(name: str):
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        differences = from_recorded_gradients(name)
    finally:
        torch.set_flush_denormal(False)
    mask = comparable(name)
    errors = {n: float((e * mask[n]).max()) for n, e in differences.items()}
    assert max(errors.values()) <= 5e-7, max(errors, key=errors.get)
    assert max(float(e.max()) for e in differences.values()) <= UPDATE  # every element, none masked


def test_three_updates_end_to_end(name: str):
    """Losses, gradients, LaProp, slow critic and return range, three times over, each from our own numbers."""
    agent, batch, noise = golden.agent(name), golden.batch(name), golden.argmax_noise(name)
    optimizer = LaProp(agent.trained(), agent.config)
    recorded = golden.arrays(f"{name}/train3")
    for i in range(3):
        out = agent.loss(batch, noise)
        for key, loss in out.losses.items():
            assert float(loss.detach().mean()) == pytest.approx(float(recorded[f"step{i}/met/loss/{key}"]), rel=2e-5)
        optimizer.zero_grad(set_to_none=True)
        out.total.backward()
        optimizer.step()
        agent.commit(out)
    expected, state = final(name), agent.state_dict()
    assert state.keys() == expected.keys()
    for buffer in ("behaviour.return_low", "behaviour.return_high"):
        torch.testing.assert_close(state[buffer], expected[buffer], rtol=1e-5, atol=1e-6)
    steps, mask = recorded_gradients(name), comparable(name)
    for key, value in state.items():
        difference = (value - expected[key]).abs()
        fast = key.replace("slow_value", "value")  # the slow critic follows, elements that differ included
        if fast in mask:
            difference = difference * mask[fast]
            # tails of softmaxes apart, whose gradients of 1e-17 still end in XLA's flushed range
            firm = torch.stack([g[fast].abs() >= 1e-8 * g[fast].abs().max() for g in steps]).all(0)
            assert float((difference * firm).max()) <= 2e-5, key
        assert float(difference.max()) <= UPDATE, key
