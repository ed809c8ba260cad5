"""Two trees, one set of weights: what moves or learns in one is seen in both; hooks and overlays are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.synthetic import random_batch
from torchmem.models.twin import twin

TINY = {"deter": 16, "hidden": 8, "classes": 4, "units": 8, "stoch": 2, "imag_length": 2, "blocks": 2, "bins": 15}


@pytest.fixture
def agent() -> DreamerAgent:
    return DreamerAgent(env_spec("dummy", image=0), DreamerConfig(**TINY))


@pytest.fixture
def data(agent):
    return random_batch(agent, 2, 3), agent.training_noise(2, 3, torch.Generator().manual_seed(0))


def test_modules_are_copies_and_weights_are_the_same_objects(agent):
    copy = twin(agent)
    assert type(copy) is DreamerAgent and copy.config is agent.config and copy.spec is agent.spec
    ours, theirs = dict(agent.named_modules()), dict(copy.named_modules())
    assert ours.keys() == theirs.keys() and not {*map(id, ours.values())} & {*map(id, theirs.values())}
    for kind in ("named_parameters", "named_buffers"):
        first, second = (dict(getattr(tree, kind)()) for tree in (agent, copy))
        assert first.keys() == second.keys() and all(value is second[key] for key, value in first.items())
    assert list(copy.state_dict()) == list(agent.state_dict())


def test_the_copy_computes_the_same(agent, data):
    out, again = agent.loss(*data), twin(agent).loss(*data)
    assert torch.equal(out.total, again.total)
    again.total.backward()
    assert all(p.grad is not None for _, p in agent.trained())


def test_updates_and_running_statistics_are_seen_by_both(agent, data):
    copy = twin(agent)
    nn.init.normal_(agent.reward.out.bias)  # heads start at exactly zero, and so would the range of returns
    before = copy.loss(*data).total
    optimiser = torch.optim.SGD([p for _, p in agent.trained()], 0.1)
    out = agent.loss(*data)
    out.total.backward()
    optimiser.step()
    agent.commit(out)
    assert torch.equal(copy.behaviour.return_high, out.state["return_high"]) and out.state["return_high"].any()
    after = copy.loss(*data).total
    assert not torch.equal(after, before) and torch.equal(after, agent.loss(*data).total)
    copy.load_state_dict({key: torch.zeros_like(value) for key, value in copy.state_dict().items()})
    assert not any(value.any() for value in agent.state_dict().values())


@pytest.mark.parametrize("mover", [0, 1])
def test_a_move_of_either_moves_both(agent, mover: int):
    trees = (agent, twin(agent))
    trees[mover].to(torch.float64)
    for tree in trees:
        assert tree.behaviour.return_low.dtype == tree.encoder.mlp[0].linear.weight.dtype == torch.float64
        assert tree.reward.bins.dtype == torch.float64  # a buffer that no state_dict holds


def test_hooks_and_replaced_weights_stay_in_their_tree(agent, data):
    calls: list[str] = []
    agent.dynamics.core.register_forward_hook(lambda *_: calls.append("original"))
    copy = twin(agent)
    copy.dynamics.core.register_forward_hook(lambda *_: calls.append("copy"))
    plain = agent.loss(*data).total
    assert set(calls) == {"original"}
    calls.clear()
    weight = copy.dynamics.core.gates.weight
    copy.dynamics.core.gates._parameters["weight"] = torch.zeros_like(weight)  # as overlays do
    assert not torch.equal(copy.loss(*data).total, plain) and set(calls) == {"copy"}
    calls.clear()
    assert torch.equal(agent.loss(*data).total, plain) and agent.dynamics.core.gates.weight is weight


def test_settings_belong_to_one_tree(agent):
    copy = twin(agent)
    copy.eval()
    copy.dtype = torch.bfloat16
    assert agent.training and agent.dynamics.training and agent.dtype == torch.float32


def test_shared_modules_containers_and_bound_methods_point_into_the_copy():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(2, 2)
            self.order = [self.first, {"again": self.first}]
            self.call = self.first.forward
            self.foreign = {}.get  # a callable of something else

    net = Net()
    copy = twin(net)
    assert copy.first is copy.second and copy.first is not net.first
    assert copy.order[0] is copy.first and copy.order[1]["again"] is copy.first
    assert copy.call.__self__ is copy.first and copy.foreign is net.foreign
    assert twin(copy).first.weight is net.first.weight
