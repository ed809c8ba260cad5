"""Overlays leave nothing behind, and guarded training moves nothing that is masked out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.laprop import LaProp
from torchmem.models.twin import twin
from torchmem.surgery.delta_math import same_bits
from torchmem.surgery.overlay import Overlay, guard_training
from torchmem.surgery.weights import WeightDelta, WeightMask


class Net(nn.Module):
    """Two layers, a recurrence, and a parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.cell = nn.GRU(6, 6, batch_first=True)
        self.last = nn.Linear(6, 3)
        self.tied = nn.Linear(6, 3)
        self.tied.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.cell(self.first(x).tanh())
        return self.last(h) + self.tied(h)


def data() -> Tensor:
    return torch.randn(4, 5, 3)


def mask_for(net: nn.Module, *names: str) -> WeightMask:
    shapes = {name: p.shape for name, p in net.named_parameters()}
    return WeightMask({name: torch.rand(shapes[name]) > 0.5 for name in names})


def untouched(net: nn.Module, before: dict[str, tuple[nn.Parameter, Tensor]]) -> bool:
    now = dict(net.named_parameters(remove_duplicate=False))
    return now.keys() == before.keys() and all(
        now[n] is p and same_bits(p, value) and p.requires_grad for n, (p, value) in before.items()
    )


def kept(net: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
    return {n: (p, p.detach().clone()) for n, p in net.named_parameters(remove_duplicate=False)}


# Overlay -------------------------------------------------------------------------------------------------------------


def test_inside_the_edited_weights_compute_outside_the_own():
    net, other, x = Net(), Net(), data()
    before, plain = kept(net), net(x)
    delta = WeightDelta.between(net, other)
    with Overlay(net, delta):
        assert torch.equal(net(x), other(x))  # through GRU and tied weights too
    assert torch.equal(net(x), plain) and untouched(net, before)


def test_an_overlay_of_nothing_and_of_an_all_ones_mask_is_the_model_bitwise():
    net, x = Net(), data()
    plain = net(x)
    with Overlay(net, []):
        assert torch.equal(net(x), plain)
    with Overlay(net, WeightMask({n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()})):
        assert torch.equal(net(x), plain)


@pytest.mark.parametrize("grad", [True, False])
def test_an_exception_puts_everything_back(grad: bool):
    net, x = Net(), data()
    before = kept(net)
    with torch.set_grad_enabled(grad), pytest.raises(KeyError), Overlay(net, mask_for(net, "cell.weight_hh_l0")):
        net(x)
        raise KeyError
    assert untouched(net, before)
    assert net.cell._flat_weights[1] is net.cell.weight_hh_l0
    bad = mask_for(net, "first.weight") + WeightMask({"last.weight": torch.ones(3, 6, dtype=torch.bool)})
    object.__setattr__(bad[1], "effective", lambda name, w: 1 / 0)
    with pytest.raises(ZeroDivisionError), Overlay(net, bad):
        pass
    assert untouched(net, before)


def test_edits_hold_in_the_given_order():
    net = nn.Linear(2, 2)
    mask = WeightMask({"weight": torch.zeros(2, 2, dtype=torch.bool)})
    push = WeightDelta({"weight": torch.ones(2, 2)})
    with Overlay(net, mask + push):
        assert torch.equal(net.weight, torch.ones(2, 2))
    with Overlay(net, push + mask):
        assert torch.equal(net.weight, torch.zeros(2, 2))
    start = net.weight.detach().clone()
    with Overlay(net, [push, push]):  # the same edit twice holds twice
        assert torch.equal(net.weight, start + 1 + 1)


def test_overlays_nest():
    net = nn.Linear(2, 2)
    before, start = kept(net), net.weight.detach().clone()
    push, half = WeightDelta({"weight": torch.ones(2, 2)}), WeightDelta({"weight": torch.ones(2, 2)}, 0.5)
    with Overlay(net, push):
        with Overlay(net, push):  # a pass inside a pass under the same edits: once
            assert torch.equal(net.weight, start + 1)
        assert torch.equal(net.weight, start + 1)
        with Overlay(net, half):  # other edits: on top
            assert torch.equal(net.weight, start + 1 + 0.5)
            with Overlay(net, push):
                assert torch.equal(net.weight, start + 1 + 0.5)
        with Overlay(net, []):
            assert torch.equal(net.weight, start + 1)
    assert untouched(net, before)


def test_gradients_reach_the_parameters():
    net, x = Net(), data()
    mask = mask_for(net, "first.weight", "last.weight")
    with Overlay(net, mask):
        net(x).square().sum().backward()
    for name in mask.names:
        grad = net.get_parameter(name).grad
        assert grad is not None and (grad[~mask.masks[name]] == 0).all() and (grad[mask.masks[name]] != 0).all()
    assert net.cell.weight_hh_l0.grad is not None


def test_another_tree_over_the_same_parameters_notices_nothing():
    net, x = Net(), data()
    second = twin(net)
    plain = net(x)
    with Overlay(second, mask_for(net, "first.weight")):
        assert torch.equal(net(x), plain) and not torch.equal(second(x), plain)
    third = twin(second)  # of a tree that has been under an overlay
    with Overlay(third, mask_for(net, "first.weight")):
        assert torch.equal(second(x), plain) and not torch.equal(third(x), plain)


def test_effective_weights_are_computed_once_per_update(monkeypatch):
    net = nn.Linear(3, 3)
    push = WeightDelta({"weight": torch.ones(3, 3)})
    calls = []
    plain = WeightDelta.effective
    monkeypatch.setattr(WeightDelta, "effective", lambda self, n, w: calls.append(n) or plain(self, n, w))

    def look() -> Tensor:
        with torch.no_grad(), Overlay(net, [push]):
            return net.weight.clone()

    first = look()
    assert torch.equal(look(), first) and len(calls) == 1
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(look(), net.weight + 1) and len(calls) == 2
    net.weight.data = net.weight.data.clone().mul_(3)
    assert torch.equal(look(), net.weight + 1) and len(calls) == 3
    for _ in range(2):
        with Overlay(net, [push]):  # with gradient: a graph of its own each time
            net.weight.sum().backward()
    assert len(calls) == 5
    with torch.inference_mode(), Overlay(net, [push]):
        net(torch.ones(1, 3))
    with torch.no_grad(), Overlay(net, [push]):
        held = net.weight
    assert not held.is_inference()


def test_nothing_is_kept_of_a_tree_that_is_gone():
    import gc
    import weakref

    net = nn.Linear(2, 2)
    with torch.no_grad(), Overlay(net, WeightDelta({"weight": torch.ones(2, 2)})):
        pass
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_what_does_not_fit_the_tree_raises_before_anything_is_touched():
    net = Net()
    before = kept(net)
    with pytest.raises(ValueError, match=r"no parameter 'last\.wight'; did you mean last\.weight"):
        Overlay(net, WeightMask({"last.wight": torch.ones(3, 6, dtype=torch.bool)}))
    both = WeightDelta({"last.weight": torch.ones(3, 6), "tied.weight": torch.ones(3, 6)})
    with pytest.raises(ValueError, match="one shared parameter"):
        Overlay(net, both)
    with pytest.raises(TypeError, match="not an edit of weights"):
        Overlay(net, [torch.ones(2)])  # type: ignore[list-item]
    assert untouched(net, before)


# Training ------------------------------------------------------------------------------------------------------------

OPTIMISERS = {
    "laprop": lambda net: LaProp(net.named_parameters(), DreamerConfig(lr=1e-2, warmup=0, weight_decay=0.1)),
    "adam": lambda net: torch.optim.Adam(net.parameters(), 1e-2),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1, amsgrad=True),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9, weight_decay=0.1),
}


def update(net: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> None:
    net(x).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def moments(optimiser: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in optimiser.state[p].items() if isinstance(v, Tensor) and v.shape == p.shape}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("under_overlay", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_masked_out_weights_and_moments_stay_and_the_rest_trains(name: str, under_overlay: bool, fresh: bool):
    net, x = Net(), data()
    tree = twin(net)  # edits lie on one tree, the optimiser was made from another
    optimiser = OPTIMISERS[name](net)
    if not fresh:
        update(net, optimiser, x)
    mask = mask_for(net, "first.weight", "cell.weight_hh_l0", "last.weight")
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    old = {n: moments(optimiser, p) for n, p in net.named_parameters()}
    edits = [mask] if under_overlay else []
    with guard_training(tree, mask):
        for _ in range(3):
            with Overlay(tree, edits):
                update(tree, optimiser, x)
    for n, p in net.named_parameters():
        keep = mask.masks.get(n, torch.ones_like(p, dtype=torch.bool))
        assert same_bits(p[~keep], before[n][~keep]), n
        assert (p[keep] != before[n][keep]).all(), n
        new = moments(optimiser, p)
        assert new, n
        for key, value in new.items():
            start = old[n].get(key, torch.zeros_like(p))
            assert same_bits(value[~keep], start[~keep]), (n, key)
            assert (value[keep] != start[keep]).any(), (n, key)
    update(net, optimiser, x)  # outside the guard everything trains again
    assert all((p != before[n]).all() for n, p in net.named_parameters())


def test_without_the_guard_they_would_move():
    """The reason for the guard: an overlay alone leaves decay and old momentum at work."""
    for name in ("laprop", "adam", "sgd"):
        net, x = Net(), data()
        optimiser = OPTIMISERS[name](net)
        update(net, optimiser, x)
        mask = mask_for(net, "first.weight")
        before = net.first.weight.detach().clone()
        with Overlay(net, mask):
            update(net, optimiser, x)
        assert (net.first.weight != before)[~mask.masks["first.weight"]].all()


def test_kept_entries_train_as_if_the_masked_out_gradients_were_zero():
    """Guarded without overlay: clipping over the whole tensor (LaProp) must not see gradients of frozen entries."""
    net, x = Net(), data()
    other = copy.deepcopy(net)
    mask = mask_for(net, "first.weight")
    optimisers = [OPTIMISERS["laprop"](n) for n in (net, other)]
    with guard_training(net, mask):
        update(net, optimisers[0], x)
    other(x).square().sum().backward()
    other.first.weight.grad.masked_fill_(~mask.masks["first.weight"], 0)
    optimisers[1].step()
    keep = mask.masks["first.weight"]
    assert same_bits(net.first.weight[keep], other.first.weight[keep])


def test_several_masks_freeze_what_any_masks_out():
    net, x = Net(), data()
    one, two = mask_for(net, "first.weight"), mask_for(net, "first.weight")
    before = net.first.weight.detach().clone()
    optimiser = OPTIMISERS["adam"](net)
    with guard_training(net, [one, WeightDelta({"first.weight": torch.ones(6, 3)}), two]):
        update(net, optimiser, x)
    assert torch.equal(net.first.weight != before, (one & two).masks["first.weight"])


def test_the_guard_leaves_after_an_exception_and_undoes_half_a_step():
    class Dies(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            raise RuntimeError("half-way")

    net, x = Net(), data()
    mask = mask_for(net, "first.weight")
    before = net.first.weight.detach().clone()
    optimiser = Dies(net.parameters(), 1e-1, weight_decay=0.1)
    with pytest.raises(RuntimeError, match="half-way"), guard_training(net, mask):
        update(net, optimiser, x)
    assert same_bits(net.first.weight[~mask.masks["first.weight"]], before[~mask.masks["first.weight"]])
    update(net, OPTIMISERS["sgd"](net), x)
    assert (net.first.weight != before).all()  # no hook is left
    from torch.optim import optimizer

    assert not optimizer._global_optimizer_pre_hooks and not optimizer._global_optimizer_post_hooks


def test_a_parameter_that_follows_without_an_optimiser_is_put_back_on_leaving():
    net = nn.Linear(2, 2).requires_grad_(False)
    before = net.weight.clone()
    with guard_training(net, WeightMask({"weight": torch.tensor([[True, False], [True, True]])})), torch.no_grad():
        net.weight.lerp_(torch.zeros(2, 2), 0.5)
    assert (net.weight != before).tolist() == [[True, False], [True, True]]


def test_other_optimisers_are_left_alone():
    net, stranger = Net(), nn.Linear(2, 2)
    before = stranger.weight.detach().clone()
    with guard_training(net, mask_for(net, "first.weight")):
        update(stranger, torch.optim.SGD(stranger.parameters(), 0.1), torch.ones(1, 2))
    assert (stranger.weight != before).all()
