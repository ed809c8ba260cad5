"""Circuits spec section 12 in direction, on a small copy of its toy; benchmarks/toy_circuits.py has it in full."""

from __future__ import annotations

import pytest
import torch

from tests.studies.toy import Toy, accuracy, answers, train, trials
from torchmem.studies.masked_training import imitate, train_masked
from torchmem.surgery.mask import fit_mask
from torchmem.surgery.mask_controls import controls
from torchmem.surgery.policy_distance import Bed, substituted
from torchmem.surgery.weight_edit import weights_hash

UNITS, LENGTH = 24, 8


@pytest.fixture(scope="module")
def toy() -> Toy:
    agent = Toy(UNITS)
    train(agent, 150, LENGTH)
    assert accuracy(agent, trials(400, LENGTH, seed=5)) >= 0.99
    return agent


def searched(toy, **settings):
    data, test = trials(256, LENGTH, seed=7), trials(400, LENGTH, seed=5)
    return fit_mask(
        toy, data.batch, weights=data.weights, rows=48, steps=250, rate=0.08, singles=0, patience=0, chance=0.5,
        evaluate=lambda m: accuracy(m, test), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def circuit(toy):
    return searched(toy, alpha=1.5e-3)


def test_a_sparse_mask_answers_and_random_ones_do_not(circuit):
    assert circuit.fractions()["maskable"] < 0.25
    assert circuit.measure("circuit") >= 0.95
    assert circuit.measure("random") < 0.7 and circuit.measure("empty") < 0.7


def test_the_unbounded_penalty_collapses_where_the_bounded_one_does_not(toy, circuit):
    collapsed = searched(toy, penalty="sum_logit", alpha=1.5e-3)
    assert collapsed.kept == 0 and collapsed.measure("circuit") < 0.7
    assert collapsed.measure("complement") == 1.0  # the rest is the whole agent
    least = {name: min(float(x.min()) for x in r.logits.values()) for name, r in (("a", circuit), ("b", collapsed))}
    assert least["b"] == -10 < least["a"]  # pushed for ever, up to the clamp


def flips(toy, data, weights) -> float:
    with substituted(toy, dict(weights)):
        return float((answers(toy, data) != data.batch["action"][:, -1]).float().mean())


def test_a_random_set_can_be_edited_as_well(toy, circuit):
    """Why the baseline is mandatory: learning the opposite answer works in a circuit and in as many random weights."""
    data, test = trials(256, LENGTH, seed=9), trials(400, LENGTH, seed=5)
    opposite = Bed.of(toy, {**data.batch, "action": 1 - data.batch["action"]}, data.weights)
    own = {name: p.detach() for name, p in toy.named_parameters()}
    masks = {name: torch.from_numpy(m.copy()) for name, m in circuit.masks.items()}
    before = weights_hash(toy)
    for kind in (masks, controls(opposite, masks, seed=0)["random 0"]):
        trained = train_masked(
            own, kind, imitate(opposite), rate=3e-2, steps=150, stop=lambda w: flips(toy, test, w) >= 0.99, check=10
        )
        after = trained.delta.apply(own)
        assert trained.stopped and flips(toy, test, after) >= 0.99
        assert all(torch.equal(after[n][~m], own[n][~m]) for n, m in kind.items())  # the rest: bit by bit
        back = (-trained.delta).apply(after)
        assert all(torch.equal(back[n], own[n]) for n in own)
    assert weights_hash(toy) == before


def test_training_needs_weights_that_exist(toy):
    own = {name: p.detach() for name, p in toy.named_parameters()}
    nothing = {"gates.weight": torch.zeros_like(own["gates.weight"], dtype=torch.bool)}
    with pytest.raises(ValueError, match="no weight may move"):
        train_masked(own, nothing, lambda w: torch.zeros(()))
    with pytest.raises(ValueError, match="no parameter nothing"):
        train_masked(own, {"nothing": torch.ones(2, dtype=torch.bool)}, lambda w: torch.zeros(()))


def test_a_teacher_is_imitated(toy):
    """The control search: masks of weights that never learned, judged by the trained policy."""
    data = trials(64, LENGTH, seed=7)
    other = Toy(UNITS, seed=3)
    result = fit_mask(other, data.batch, weights=data.weights, teacher=toy, steps=2, check=1, singles=0, cleanup=False)
    assert result.scores["full"]["kl"] > 0.1  # from the teacher, not from itself
    own = Bed.of(toy, data.batch, data.weights)
    with torch.no_grad():
        theirs = Bed.of(other, data.batch, data.weights).policy({})
    assert result.scores["full"]["kl"] == pytest.approx(own.kl(theirs).item(), rel=1e-5)


def test_cropping_a_sample_changes_no_divergence(toy):
    """Rows whose late steps count for nothing are cut short; the weighted mean must stay what it was."""
    data = trials(8, LENGTH, seed=1)
    weights = torch.zeros(8, LENGTH)
    weights[:, :3] = 1.0
    bed = Bed.of(toy, data.batch, weights)
    part = bed.some(4, torch.Generator().manual_seed(0))
    assert part.is_first.shape == (4, 3)
    other = {name: p.detach() + 0.1 for name, p in toy.named_parameters()}
    rows = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:4]
    whole = Bed.of(toy, {k: v[rows] for k, v in data.batch.items()}, weights[rows])
    with torch.no_grad():
        assert part.kl(part.policy(other)).item() == pytest.approx(whole.kl(whole.policy(other)).item(), rel=1e-5)
