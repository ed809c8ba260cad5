"""The dynamics against the recorded `rssm`: parallel, recurrent, resets, imagination, KLs; samples are forced."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.models.golden import forcing
from tests.models.r2i.arrays import arrays, tensor, under
from torchmem.models import dists
from torchmem.models.importers.r2i import translate
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.models.r2i.dynamics import Dynamics, State

TOLERANCE = 1e-4


@functools.cache
def dynamics() -> Dynamics:
    """The recorded model: deter 10, units 12, hidden 8, 2 layers, 3 x 4 stoch, 7 tokens, 4 actions."""
    made = Dynamics(
        7, 4, R2IConfig(deter=10, units=12, stoch=3, classes=4, ssm=SSMConfig(layers=2, states=8, blocks=2))
    )
    values = dict(translate(f"wm.{path}", value) for path, value in under("rssm", "param.").items())
    made.load_state_dict({name.removeprefix("dynamics."): value for name, value in values.items()})
    return made


def state(prefix: str, at=slice(None)) -> State:
    deter, stoch, hidden = (tensor("rssm", f"{prefix}.{key}") for key in ("deter", "stoch", "hidden"))
    return State(deter[at], stoch[at], hidden[at])


def close(ours: torch.Tensor, key: str) -> None:
    error = float((ours.detach() - tensor("rssm", key)).abs().max())
    assert error <= TOLERANCE, f"{key}: off by {error:.1e}"


def mixed(logit: torch.Tensor) -> torch.Tensor:
    return dists.unimix(logit, 0.01)


def test_initial_state():
    ours = dynamics().initial(3, torch.float32)
    for key, value in ours._asdict().items():
        close(value, f"initial.{key}")


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("name", ["par_clean", "rec_clean", "rec_mid"])
def test_observe(name: str, stepwise: bool):
    mid = name == "rec_mid"
    first = tensor("rssm", "is_first_mid" if mid else "is_first_clean").bool()
    begin = state("carry" if mid else "initial")
    noise = forcing(arrays("rssm")[f"{name}.post.stoch"])
    states, logit = dynamics().observe(
        begin, tensor("rssm", "action"), tensor("rssm", "embed"), first, noise, stepwise
    )
    prior = dynamics().prior(states.deter)
    for key, value in states._asdict().items():
        close(value, f"{name}.post.{key}")
    close(mixed(logit), f"{name}.post.logit")
    close(mixed(prior), f"{name}.prior.logit")
    kl = dists.categorical_kl(mixed(logit), mixed(prior))
    if name != "rec_clean":
        for which in ("dyn", "rep"):
            close(kl, f"{name}.{which}_free0")
            close(kl.clamp(min=1), f"{name}.{which}_free1")


def test_acting_steps_are_the_sequence():
    now, first = state("carry"), tensor("rssm", "is_first_mid").bool()
    noise = forcing(arrays("rssm")["rec_mid.post.stoch"])
    for t in range(first.shape[1]):
        given = (tensor("rssm", key)[:, t] for key in ("action", "embed"))
        now, _ = dynamics().observe_step(now, *given, first[:, t], noise[:, t])
        for key, value in now._asdict().items():
            assert torch.allclose(value, tensor("rssm", f"rec_mid.post.{key}")[:, t], atol=TOLERANCE), (t, key)


def test_imagination():
    now = state("rec_mid.post", (slice(None), -1))
    noise = forcing(arrays("rssm")["imag.stoch"])
    for t in range(6):
        now, logit = dynamics().imagine_step(now, tensor("rssm", "imag.action")[t], noise[t])
        for key, value in {**now._asdict(), "logit": mixed(logit)}.items():
            assert torch.allclose(value, tensor("rssm", f"imag.{key}")[t], atol=TOLERANCE), (t, key)


def test_resets_as_upstream_makes_them():
    """All three defects: with them, the parallel pass shows what the original's shows."""
    made = dynamics()
    made.config.ssm.legacy_reset = True
    try:
        name = "par_mid_UPSTREAM_QUIRK"
        noise = forcing(arrays("rssm")[f"{name}.post.stoch"])
        first = tensor("rssm", "is_first_mid").bool()
        states, _ = made.observe(state("carry"), tensor("rssm", "action"), tensor("rssm", "embed"), first, noise)
        for key, value in states._asdict().items():
            close(value, f"{name}.post.{key}")
    finally:
        made.config.ssm.legacy_reset = False
