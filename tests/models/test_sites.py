"""Every site resolves, has its declared shape, and the taps show what they are named after."""

from __future__ import annotations

import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.synthetic import random_batch

TINY = {"deter": 64, "hidden": 16, "classes": 4, "depth": 4, "units": 16, "stoch": 4, "imag_length": 3}


@pytest.fixture(scope="module")
def agent() -> DreamerAgent:
    torch.manual_seed(0)
    return DreamerAgent(env_spec("dummy"), DreamerConfig(**TINY))


def run(agent: DreamerAgent, rows: int, steps: int, path: str) -> list[torch.Tensor]:
    """Outputs of the module at `path` while the agent unrolls a sequence."""
    batch = random_batch(agent, rows, steps - 1)
    seen: list[torch.Tensor] = []
    handle = agent.get_submodule(path).register_forward_hook(lambda m, i, out: seen.append(out))
    try:
        with torch.no_grad():
            obs = {k: batch[k] for k in agent.spec.obs}
            actions = {k: batch[k] for k in agent.spec.action}
            agent.unroll(obs, actions, batch["is_first"], agent.initial(rows))
    finally:
        handle.remove()
    return seen


def test_every_site_has_its_declared_shape_at_another_batch_size(agent):
    rows, steps = 4, 5
    sizes = {("B",): (rows,), ("B", "T"): (rows, steps), ("B*T",): (rows * steps,)}
    for site in agent.sites.values():
        seen = run(agent, rows, steps, site.path)
        assert len(seen) == (steps if site.cadence == "step" else 1), site
        lead = site.axes[: len(site.axes) - len(site.shape)]
        assert tuple(seen[0].shape) == sizes[lead] + site.shape, site


def test_all_modules_that_run_have_a_site(agent):
    """Containers, structured outputs and the slow critic are the only modules without one."""
    without = {path for path, _ in agent.named_modules() if path} - set(agent.sites)
    allowed = ("behaviour.slow_value", "dynamics.core.hidden", "dynamics.core.hidden_norm", "decoder.heads")
    rest = {p for p in without if not p.startswith(allowed)}
    assert rest == {"behaviour", "behaviour.policy", "behaviour.policy.out", "decoder", "dynamics"}


def test_taps_show_the_gates_of_the_recurrence(agent):
    """deter' = update * candidate + (1 - update) * deter, from the tapped values alone."""
    deter = run(agent, 2, 3, "dynamics.deter")
    update, candidate = (run(agent, 2, 3, f"dynamics.core.{name}") for name in ("update", "candidate"))
    # random_batch opens episodes at random steps; step 1 of a row that goes on blends with step 0
    first = random_batch(agent, 2, 2)["is_first"]
    before = deter[0] * (~first[:, 1:2])
    torch.testing.assert_close(deter[1], update[1] * candidate[1] + (1 - update[1]) * before)
    assert ((0 <= update[1]) & (update[1] <= 1)).all() and (candidate[1].abs() <= 1).all()


def test_memory_is_the_recurrent_state(agent):
    assert agent.sites["memory"].path == "dynamics.deter" and agent.sites["memory"].cadence == "step"


def test_unroll_is_pure(agent):
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    batch = random_batch(agent, 2, 3)
    run(agent, 2, 3, "dynamics.deter")
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items()) and batch["reward"].shape == (2, 4)
