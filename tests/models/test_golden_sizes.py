"""Parameter counts of all presets, the initialisers' statistics, and bfloat16 computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from tests.models import golden
from torchmem.models import dists
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.dreamer.rssm import feature
from torchmem.models.importers.dreamerv3 import config_from_official, translate
from torchmem.models.layers import BlockLinear, Conv, Linear

SIZES = Path(__file__).parents[2] / "torchmem" / "conf" / "size"
COUNTS = {  # spec, section 13: 64x64x3 image, 5 discrete actions; without the slow critic
    "1m": 686_327,
    "12m": 10_492_103,
    "25m": 23_486_247,
    "50m": 41_645_959,
    "100m": 93_462_087,
    "200m": 165_940_487,
    "400m": 372_884_103,
}


def test_every_size_of_dreamer_has_a_count():
    sizes = {path.stem: YAML(typ="safe", pure=True).load(path.read_text()) for path in SIZES.glob("*.yaml")}
    assert {name for name, agents in sizes.items() if "dreamer" in agents} == set(COUNTS)


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_count(size: str):
    given = YAML(typ="safe", pure=True).load((SIZES / f"{size}.yaml").read_text())["dreamer"]
    with torch.device("meta"):  # nothing is allocated
        agent = DreamerAgent(golden.SPECS["img_disc"], DreamerConfig(**given))
    assert sum(p.numel() for _, p in agent.trained()) == COUNTS[size]
    slow = sum(p.numel() for p in agent.behaviour.slow_value.parameters())
    assert slow == sum(p.numel() for p in agent.behaviour.value.parameters())
    assert sum(p.numel() for p in agent.parameters()) == COUNTS[size] + slow


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("linear_512_256", lambda: Linear(512, 256)),
        ("block_8_104_64", lambda: BlockLinear(8 * 104, 8 * 64, 8)),
        ("conv_5_5_16_32", lambda: Conv(16, 32, 5)),
    ],
)
def test_initial_statistics(key: str, layer):
    std, largest = golden.arrays("functions")[f"init/{key}/std_absmax"]
    weight = layer().weight.detach()
    assert float(weight.std()) == pytest.approx(float(std), rel=0.02)
    assert float(weight.abs().max()) == pytest.approx(float(largest), rel=0.02)  # cut at two deviations


def test_initial_parameters_of_the_whole_agent():
    """Each tensor's spread and reach are those of the official initialisation, zeros where it has zeros."""
    agent = DreamerAgent(golden.SPECS["img_disc"], config_from_official(golden.config("img_disc")))
    state = agent.state_dict()
    shapes = golden.arrays("img_disc/params")
    seen = set()
    for key, (std, largest) in _stats():
        name = translate(key, shapes[key])[0]
        ours = state[name].double()
        seen.add(name)
        if std == 0 or ours.numel() == 1:
            # constants: biases 0, scales 1, zero-initialised outputs, an empty return range
            assert torch.equal(ours, torch.full_like(ours, float(largest))), name
            continue
        # the error of an estimated deviation is about 1 / sqrt(2 n)
        assert float(ours.std(correction=0)) == pytest.approx(float(std), rel=6 / ours.numel() ** 0.5), name
        bound = float(largest) * (1 + 3 / ours.numel() ** 0.5)
        assert float(ours.abs().max()) <= bound, name
    assert seen == set(state)


def _stats():
    found = golden.arrays("img_disc/init").items()
    skipped = ("stat/slowval_count", "stat/opt/")
    return [(k.removeprefix("stat/"), v) for k, v in found if k.startswith("stat/") and not k.startswith(skipped)]


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_the_original_is():
    agent, batch = golden.agent("img_disc"), golden.batch("img_disc")
    agent.dtype = torch.bfloat16
    recorded = {k: torch.as_tensor(v) for k, v in golden.arrays("img_disc/bf16").items()}
    forward = {k: torch.as_tensor(v) for k, v in golden.arrays("img_disc/forward").items()}
    obs = {key: batch[key][:, 1:] for key in agent.spec.obs}
    actions = agent.action_vector({key: batch[key][:, :-1] for key in agent.spec.action})
    carry = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    tokens = agent.encode(obs)
    noise = golden.forcing(forward["post/stoch"])
    states, logits = agent.dynamics.observe(carry, actions, tokens, batch["is_first"][:, 1:], noise)
    feat = feature(states)
    assert {x.dtype for x in (tokens, states.deter, states.stoch, logits, feat)} == {torch.bfloat16}
    behaviour = agent.behaviour
    logits_of = {"rew": agent.reward(feat), "val": behaviour.value(feat)}
    ours = {
        "tokens": tokens,
        "deter": states.deter,
        "post": logits,
        "prior": agent.dynamics.prior(states.deter),
        "con": agent.cont(feat),
        "pol": behaviour.policy(feat)["action"][0],
        **{key: dists.twohot_mean(value, agent.reward.bins) for key, value in logits_of.items()},
    }
    assert {logits_of["rew"].dtype, ours["con"].dtype, ours["pol"].dtype} == {torch.float32}  # islands
    exact = {"tokens": "tokens", "deter": "post/deter", "post": "post/logit", "prior": "prior_logit"}
    exact |= {"con": "con/logit", "pol": "pol/action/logits"}
    for key, value in ours.items():
        scale = float(recorded[key].abs().max())
        assert float((value.float() - recorded[key]).abs().max()) <= 0.03 * scale, key
        if key in exact:  # our distance to float32 is of the size of theirs, and bfloat16 is really on
            theirs = float((recorded[key] - forward[exact[key]]).abs().max())
            distance = float((value.float() - forward[exact[key]]).abs().max())
            assert 0.1 * theirs <= distance <= 3 * theirs, key
    image = agent.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))["image"].unflatten(0, (2, 8))
    stored = next(k for k in recorded if k.startswith("image"))
    axes = dict(part.split(":") for part in stored.partition("@")[2].split(",") if part)
    # recorded every fourth step, then thinned like all maps
    image = image[:, ::4]
    for axis, step in axes.items():
        image = image.index_select(int(axis), torch.arange(0, image.shape[int(axis)], int(step)))
    assert float((image - recorded[stored]).abs().max()) <= 0.02


def test_bfloat16_loss_is_finite_and_near(name: str):
    agent, batch, noise = golden.agent(name), golden.batch(name), golden.argmax_noise(name)
    exact = float(agent.loss(batch, noise).total.detach())
    agent.dtype = torch.bfloat16
    out = agent.loss(batch, noise)
    out.total.backward()
    assert float(out.total.detach()) == pytest.approx(exact, rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for _, p in agent.trained())
