"""LaProp against the original's chain: every schedule, every clip, six updates, and the state it leaves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.models import golden
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.laprop import LaProp, learning_rate

CASES = {
    "default": {},
    "warm2": {"lr": 1e-3, "warmup": 2},
    "nowarm": {"lr": 1e-3, "warmup": 0},
    "linear": {"lr": 1e-3, "warmup": 2, "schedule": "linear", "anneal": 6},
    "cosine": {"lr": 1e-3, "warmup": 2, "schedule": "cosine", "anneal": 6},
}
TINY = 1e-17


def recorded(prefix: str) -> dict[str, Tensor]:
    found = golden.arrays("optimizer").items()
    return {k.removeprefix(f"{prefix}/"): torch.tensor(v) for k, v in found if k.startswith(f"{prefix}/")}


def ours(name: str) -> str:
    return name.replace("kernel", "weight")


def start(case: dict) -> tuple[dict[str, Tensor], LaProp]:
    params = {ours(n): torch.nn.Parameter(v) for n, v in recorded("params0").items()}
    return params, LaProp(params.items(), dataclasses.replace(DreamerConfig(), **case))


@pytest.mark.parametrize("case", CASES)
def test_six_updates(case: str):
    params, optimizer = start(CASES[case])
    mask = {n: torch.ones_like(p, dtype=torch.bool) for n, p in params.items()}
    for step in range(6):
        before = {n: p.detach().clone() for n, p in params.items()}
        for name, grad in recorded(f"grad{step}").items():
            params[ours(name)].grad = grad.clone()
            mask[ours(name)] &= (grad.abs() >= TINY) | (grad == 0)
        optimizer.step()
        for name, after in recorded(f"{case}/params{step + 1}").items():
            difference = (params[ours(name)].detach() - after).abs() * mask[ours(name)]
            assert float(difference.max()) <= 2e-7, (step, name)
        for name, update in recorded(f"{case}/update{step}").items():
            difference = (params[ours(name)].detach() - before[ours(name)] - update).abs() * mask[ours(name)]
            assert float(difference.max()) <= 2e-7, (step, name)
        if step == 0 and CASES[case].get("warmup", 1000):  # the first update changes nothing
            assert all(torch.equal(p.detach(), before[n]) for n, p in params.items())


def test_state_after_six_updates():
    params, optimizer = start(CASES["nowarm"])
    for step in range(6):
        for name, grad in recorded(f"grad{step}").items():
            params[ours(name)].grad = grad.clone()
        optimizer.step()
    state = recorded("nowarm/state")
    assert optimizer.updates == int(state["1/0"]) == int(state["2/0"])
    for name, param in params.items():
        official = name.replace("weight", "kernel")
        for key, slot in (("nu", "1/1"), ("mu", "2/1")):
            expected = state[f"{slot}/{official}"]
            # mu of a gradient whose square was flushed is huge there: leave it out
            fine = expected.abs() < 1e3
            assert fine.float().mean() > 0.9
            error = (optimizer.state[param][key] - expected)[fine].abs().max()
            assert float(error) <= 1e-5 * max(float(expected[fine].abs().max()), 1e-3), (key, name)


def test_clipping_alone():
    """AGC of the whole tensor, seen in the first update's second moment: nu = 0.001 clipped^2."""
    for step in range(6):
        params, optimizer = start({"warmup": 0})
        for name, grad in recorded(f"grad{step}").items():
            params[ours(name)].grad = grad.clone()
        optimizer.step()
        for name, clipped in recorded(f"agc{step}").items():
            nu = optimizer.state[params[ours(name)]]["nu"]
            expected = 0.001 * clipped.square()
            torch.testing.assert_close(nu, expected, rtol=1e-5, atol=1e-12 * max(1.0, float(expected.max())))


def test_weight_decay_touches_weights_only_and_scales_with_the_rate():
    case = {"lr": 1e-3, "warmup": 0, "weight_decay": 0.1}
    (decayed, first), (plain, second) = start(case), start({"lr": 1e-3, "warmup": 0})
    before = {n: p.detach().clone() for n, p in decayed.items()}
    for params, optimizer in ((decayed, first), (plain, second)):
        for name, grad in recorded("grad0").items():
            params[ours(name)].grad = grad.clone()
        optimizer.step()
    for name, param in decayed.items():
        extra = -1e-3 * 0.1 * before[name] if name.endswith("weight") else torch.zeros_like(param)
        torch.testing.assert_close(param.detach() - plain[name].detach(), extra, rtol=0, atol=2e-7)


def test_a_parameter_without_gradient_is_an_error():
    params, optimizer = start({})
    for param in list(params.values())[1:]:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.step()


def test_an_unknown_schedule_is_refused_by_name():
    assert learning_rate(0, 1.0, 10) == 0.0 and learning_rate(5, 1.0, 10) == 0.5 and learning_rate(10, 1.0, 10) == 1.0
    with pytest.raises(ValueError, match="schedule='step'"):
        learning_rate(20, 1.0, 10, "step")


def test_a_schedule_is_held_and_then_falls_to_a_tenth():
    rate = lambda update, kind: learning_rate(update, 1.0, 10, kind, anneal=40, hold=20)  # noqa: E731
    assert rate(20, "linear") == 1.0 and rate(10, "cosine") == 1.0 and rate(5, "linear") == 0.5
    assert rate(30, "linear") == pytest.approx(0.55) and rate(40, "linear") == rate(99, "linear") == pytest.approx(0.1)
    assert learning_rate(25, 1.0, 10, "linear", anneal=40) == pytest.approx(0.55)  # no hold: from the warm-up on
