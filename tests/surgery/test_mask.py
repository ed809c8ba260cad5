"""fit_mask recovers the planted circuit, finds nothing in the shuffled copy, and touches nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.surgery.planted import accuracy, planted, trials
from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.synthetic import random_batch
from torchmem.result import load_result
from torchmem.surgery.mask import MaskFit, fit_mask
from torchmem.surgery.mask_cleanup import cleaned, constants
from torchmem.surgery.mask_controls import as_weights, controls
from torchmem.surgery.mask_result import mask_stability
from torchmem.surgery.model import Model
from torchmem.surgery.policy_distance import Bed, acting_path
from torchmem.surgery.weight_mask import WeightMask

QUICK = {"steps": 250, "rate": 0.04, "rows": 12, "alpha": 1e-3}
TINY = {"deter": 64, "hidden": 16, "classes": 4, "depth": 4, "units": 16, "stoch": 4, "imag_length": 3}


def overlap(masks, truth) -> float:
    """Share of the true places that are kept."""
    hit = sum(int((torch.as_tensor(masks[name]) & mask).sum()) for name, mask in truth.items())
    return hit / sum(int(mask.sum()) for mask in truth.values())


def fitted(agent, seed: int = 0, **settings):
    data, held_out = trials(24, seed), trials(64, seed + 100)
    return fit_mask(
        Model(agent), data.batch, weights=data.weights, evaluate=lambda m: accuracy(m, held_out), chance=0.5, seed=seed,
        **{**QUICK, **settings},
    )  # fmt: skip


def bed_of(agent, seed: int = 0) -> Bed:
    data = trials(16, seed)
    return Bed.of(agent, data.batch, data.weights)


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    return fitted(planted(0))


# The planted circuit --------------------------------------------------------------------------------------------------


def check_recovered(agent, result) -> None:
    assert overlap(result.masks, agent.known.essential) >= 0.95
    assert overlap(result.masks, agent.known.junk) <= 0.01
    assert result.found and result.verdict().startswith("circuit")
    assert result.scores["circuit"]["score"] == 1.0 and result.scores["complement"]["score"] < 0.5


def test_planted_circuit_is_recovered(result):
    check_recovered(planted(0), result)
    assert result.sizes == {"maskable": 1312, "acting path": 1315, "agent": 1348}  # biases; and the critic
    assert result.fractions()["maskable"] == result.kept / 1312
    assert result.faithfulness("full") == 1 and result.faithfulness("random") <= 0
    assert (result.minimality["kl"] > 1e-3).all()  # each of its weights is needed
    assert set(result.roles()) == {"input", "cell.recurrent", "actor"}
    assert result.units()["input.weight"] == (4, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"gate": "hard_concrete", "penalty": "l0"},
        {"gate": "ste_sigmoid", "alpha": 2e-4},  # at 1e-3 it cuts two latches and cannot go back (see gates.py)
        {"gate": "topk", "target": 12 / 1312},
        {"penalty": "sum_logit", "alpha": 1e-4},
        {"penalty": "constrained"},
        {"penalty": "lagrangian", "target": 0.02},
    ],
    ids=lambda s: "-".join(str(v) for v in s.values()),
)
def test_every_gate_and_penalty_recovers_it(settings):
    agent = planted(1)
    check_recovered(agent, fitted(agent, 1, **settings))


def test_shuffled_copy_is_null():
    agent = planted(0, shuffled=True)
    result = fitted(agent)
    assert result.pointless and not result.found and result.verdict().startswith("null")


def test_one_lucky_random_mask_hides_no_circuit():
    """Draws spread around their own mean; chance, which is higher here, has no spread."""
    scores = {"full": 1.0, "circuit": 1.0, **{f"random {i}": 0.0 for i in range(4)}, "random 4": 0.5}
    told = {name: {"score": score, "kl": 1.0 - score, "agreement": score} for name, score in scores.items()}
    result = dataclasses.replace(fitted(planted(0), steps=2, singles=0), scores=told)
    assert not result.pointless and result.faithfulness() == 1.0
    told["full"] = {**told["full"], "score": 0.6}
    assert result.pointless  # 0.6 is within three spreads of 0.1


def test_cutting_all_weights_is_not_called_a_circuit():
    """A penalty far too high leaves an empty mask; the report must say so."""
    result = fitted(planted(0), alpha=10.0, steps=120, rate=0.1)
    assert result.kept == 0 and not result.found and "circuit" not in result.verdict()[:10]
    assert result.minimality["kl"].size == 0 and result.summary()


def test_two_seeds_agree_far_above_chance(result):
    other = fitted(planted(0), seed=5).mask
    stability = mask_stability([result.mask, other])
    assert stability["iou"] > 0.8 and stability["chance"] < 0.05
    with pytest.raises(ValueError, match="two seeds"):
        mask_stability([other])


# The report -----------------------------------------------------------------------------------------------------------


def test_mask_in_a_model_acts_as_the_report_says(result):
    agent, data = planted(0), trials(64, 100)
    model = Model(agent)
    with model.edited([result.mask]):
        assert accuracy(model, data) == result.scores["circuit"]["score"]
    with model.edited([~result.mask]):
        assert accuracy(model, data) == result.scores["complement"]["score"]
    assert accuracy(model, data) == 1.0


def test_result_is_saved_and_drawn(result, tmp_path):
    assert load_result(result.save(tmp_path / "mask")) == result
    assert isinstance(result.mask, WeightMask) and result.mask.total() == (result.kept, 1312)
    text = result.summary()
    for name in ("circuit", "complement", "random 4", "magnitude", "attribution", "no memory", "acting path"):
        assert name in text


def test_controls_are_as_dense_as_the_circuit():
    agent = planted(0)
    bed = bed_of(agent)
    kinds = controls(bed, agent.known.essential, seed=0)
    for i in range(5):
        random = kinds[f"random {i}"]
        assert {n: int(m.sum()) for n, m in random.items()} == {n: int(m.sum()) for n, m in kinds["circuit"].items()}
        assert not any(torch.equal(random[n], kinds["circuit"][n]) for n in random)
    assert all(sum(int(m.sum()) for m in kinds[k].values()) == 11 for k in ("magnitude", "attribution"))
    recurrent = kinds["magnitude"]["actor.weight"]
    assert recurrent[2, 26]  # -8, the largest of all
    with torch.no_grad():
        assert bed.kl(bed.policy(as_weights(bed, kinds["full"]))).item() == 0  # all-ones: bitwise the full model


# Dead ends ------------------------------------------------------------------------------------------------------------


def test_dead_ends_are_dropped_and_nothing_else():
    agent = planted(0)
    masks = {name: mask.clone() for name, mask in agent.known.essential.items()}
    weight = agent.cell.recurrent.weight
    masks["input.weight"][5, 2] = masks["input.weight"][0, 3] = True  # heard by nobody on the way to an action
    masks["cell.recurrent.weight"] |= weight.detach() != 0  # distractors talk among themselves
    masks["actor.weight"][0, 7] = True  # a weight of 0
    after, dropped = cleaned(bed_of(agent), masks)
    assert all(torch.equal(after[name], mask) for name, mask in agent.known.essential.items())
    assert dropped == sum(int(m.sum()) for m in masks.values()) - 11


def test_a_saturated_unit_is_no_dead_end():
    """tanh at exactly 1 has no gradient, and matters all the same."""
    agent = planted(0)
    with torch.no_grad():
        agent.input.weight[26, 1] = 40.0
    masks = {name: mask.clone() for name, mask in agent.known.essential.items()}
    masks["input.weight"][5, 2] = True
    after, dropped = cleaned(bed_of(agent), masks)
    assert dropped == 1 and all(torch.equal(after[name], mask) for name, mask in agent.known.essential.items())


def test_constants_are_counted():
    agent = planted(0)
    masks = {name: mask.clone() for name, mask in agent.known.essential.items()}
    masks["actor.weight"][0, :2] = True  # units without any kept input
    assert constants(bed_of(agent), masks) == {"input.weight": 0, "cell.recurrent.weight": 0, "actor.weight": 2}


# Settings, errors, purity ---------------------------------------------------------------------------------------------


def test_fit_leaves_the_agent_as_it_was():
    agent = planted(0)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    identities = {name: id(p) for name, p in agent.named_parameters()}
    with torch.no_grad():  # also inside a block without gradients
        fitted(agent, steps=5, singles=2)
    assert {name: id(p) for name, p in agent.named_parameters()} == identities
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in agent.named_parameters())
    with pytest.raises(ZeroDivisionError):
        data = trials(4)
        fit_mask(agent, data.batch, steps=1, singles=1, evaluate=lambda m: 1 / 0)
    assert {name: id(p) for name, p in agent.named_parameters()} == identities


def test_same_seed_same_mask():
    a, b = (fitted(planted(0), steps=60, singles=0) for _ in range(2))
    assert all((a.logits[name] == b.logits[name]).all() for name in a.logits)
    assert any((a.logits[n] != fitted(planted(0), seed=1, steps=60, singles=0).logits[n]).any() for n in a.logits)


def test_rows_are_kept_or_dropped_whole():
    result = fitted(planted(0), granularity="row", steps=60, names="cell.*", singles=0)
    mask = torch.as_tensor(result.masks["cell.recurrent.weight"])
    assert result.logits["cell.recurrent.weight"].shape == (32, 1) and list(result.masks) == ["cell.recurrent.weight"]
    assert result.sizes["maskable"] == 1024 and mask.shape == (32, 32)


def test_count_is_exact():
    assert fitted(planted(0), count=40, steps=60, cleanup=False, singles=0).kept == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "soft"}, "no gate 'soft': choose from gumbel_st"),
        ({"penalty": "l1"}, "no penalty 'l1'"),
        ({"penalty": "l0"}, "hard_concrete"),
        ({"gate": "topk", "penalty": "sum_prob"}, "no effect"),
        ({"names": "critic.*"}, "critic.weight does not reach the policy"),
        ({"names": "actor.bias"}, "one axis"),
        ({"names": "nothing"}, "no parameter matches 'nothing'"),
        ({"alhpa": 1.0}, "no setting 'alhpa'"),
        ({"target": 0.0}, "0 < target"),
    ],
)
def test_wrong_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        fitted(planted(0), **settings)


def test_wrong_data_say_what_is_wrong():
    agent, data = planted(0), trials(4)
    with pytest.raises(ValueError, match="batch has no 'action'"):
        fit_mask(agent, {k: v for k, v in data.batch.items() if k != "action"})
    with pytest.raises(ValueError, match=r"weights must be \(B, T\)"):
        fit_mask(agent, data.batch, weights=torch.ones(4))
    model = Model(agent)
    with model.edited([WeightMask(agent.known.essential)]), pytest.raises(ValueError, match="leave"):
        fit_mask(model, data.batch)
    with pytest.raises(ValueError, match="0 < target"):
        MaskFit(target=2.0)


# Another agent --------------------------------------------------------------------------------------------------------


def test_dreamer_acting_path_and_its_gradients():
    """Decoder, reward, value and prior are not on the path to an action; the mask's gradient equals autograd's own."""
    agent = DreamerAgent(env_spec("dummy"), DreamerConfig(**TINY))
    batch = random_batch(agent, 2, 3)
    bed = Bed.of(agent, {k: batch[k] for k in (*agent.spec.obs, *agent.spec.action, "is_first")})
    path = acting_path(bed)
    idle = ("decoder", "reward", "cont", "dynamics.prior", "behaviour.value", "behaviour.slow_value")
    assert all(on != name.startswith(idle) for name, on in path.items())
    names = [name for name, on in path.items() if on and bed.own[name].dim() >= 2]
    leaves = {name: bed.own[name].clone().requires_grad_() for name in names}
    masked = torch.autograd.grad(bed.surprise(bed.policy(leaves)), list(leaves.values()))
    obs, actions = ({k: batch[k] for k in group} for group in (agent.spec.obs, agent.spec.action))
    policy = agent.unroll(obs, actions, batch["is_first"], agent.initial(2)).policy
    own = torch.autograd.grad(bed.surprise(policy), [agent.get_parameter(name) for name in names])
    for name, a, b in zip(names, masked, own, strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert a.abs().sum() > 0, name
    result = fit_mask(Model(agent), batch, steps=3, check=1, rows=2, cleanup=False, singles=2)
    assert result.minimality["kl"].shape == (2,)
    assert result.kept == result.sizes["maskable"] == sum(bed.own[n].numel() for n in names)
    assert any(role.startswith("dynamics.core") for role in result.roles())
