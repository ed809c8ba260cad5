"""No agent is told where it is: of a Crafter step, only what the spec lists as seen reaches an agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from torchmem.cli import main
from torchmem.envs.collector import Collector
from torchmem.envs.crafter import ACHIEVEMENTS
from torchmem.envs.make import env_spec
from torchmem.envs.vector import VectorEnv
from torchmem.models.checkpoint import save_agent
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.importers.dreamerv3f_logs import crafter_score
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.models.synthetic import random_batch
from torchmem.training.crafter_report import crafter_metrics, crafter_text, score_with_interval
from torchmem.training.evaluate import evaluate
from torchmem.types import RESERVED, Space

TINY = {"deter": 16, "hidden": 8, "classes": 4, "depth": 4, "units": 8, "stoch": 4, "imag_length": 3, "blocks": 2}
MUST_BE_APART = ("pos", "facing", "heading", "health", "inventory", "achievements", "world", "materials", "semantic")


def dreamer(spec):
    return DreamerAgent(spec, DreamerConfig(**TINY))


def r2i(spec):
    sizes = {"deter": 12, "units": 16, "stoch": 4, "classes": 4, "depth": 4, "vector_units": 16, "head_units": 16}
    return R2IAgent(spec, R2IConfig(**sizes, ssm=SSMConfig(layers=2, states=8, blocks=2), imag_length=3))


def ppo(spec):
    return PPOAgent(spec, PPOConfig(units=8, encoder_units=8, image_channels=[4], image_units=8))


AGENTS = {"dreamer": dreamer, "r2i": r2i, "ppo": ppo}


class Spy(Mapping):
    """A mapping that notes which of its values were looked at."""

    def __init__(self, content: Mapping) -> None:
        self.content, self.read = dict(content), set()

    def __getitem__(self, key: str):
        self.read.add(key)
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __contains__(self, key: object) -> bool:
        return key in self.content


@pytest.mark.parametrize("kind", AGENTS)
def test_no_truth_reaches_an_agent(kind):
    torch.manual_seed(0)
    spec = env_spec("crafter")
    agent = AGENTS[kind](spec)
    assert set(MUST_BE_APART) <= set(spec.truth) and set(agent.spec.obs) == {"image"}
    named = {part for name, _ in agent.named_parameters() for part in name.split(".")}
    assert not named & set(spec.truth), "no weights for it"
    allowed = {*spec.obs, *spec.action, *RESERVED}
    looked = []

    def policy(obs, carry):
        spy = Spy({**obs, **{k: torch.as_tensor(v) for k, v in collector.truth.items()}})
        actions, carry, extras = agent.policy(spy, carry, agent.acting_noise(2, None))
        looked.append(spy.read)
        return actions, carry, extras

    with VectorEnv("crafter", {}, 2, split="train", seed=0) as worlds:
        collector = Collector(worlds, agent.initial(2))
        for _ in range(3):
            data = collector.step(policy)
            assert not set(data) & set(spec.truth)
    assert all("image" in keys and not keys - allowed for keys in looked)

    batch = random_batch(agent, 2, 4)
    length = batch["is_first"].shape[1]
    truth = {key: torch.full((2, length), float("nan")) for key in spec.truth}
    noise = agent.training_noise(2, length - 1, None)
    spy = Spy({**batch, **truth})
    agent.loss(spy, noise)
    assert "image" in spy.read and not spy.read & set(spec.truth)


def test_a_spec_that_shows_its_truth_is_refused():
    spec = env_spec("crafter")
    with pytest.raises(ValueError, match=r"\['pos'\] of crafter are reserved, truth"):
        dataclasses.replace(spec, obs={**spec.obs, "pos": Space((2,), "float32")})


def test_the_score_is_the_benchmarks():
    unlocked = np.zeros((4, 22), bool)
    assert score_with_interval(unlocked) == (0, 0, 0) and "nothing was achieved" in crafter_text(unlocked)
    assert score_with_interval(~unlocked) == pytest.approx((100, 100, 100))
    unlocked[0, 6] = unlocked[:, 4] = True
    told = crafter_metrics(unlocked, "eval")
    assert told["eval/crafter_score"] == crafter_score([100 * rate for rate in unlocked.mean(0)])
    assert told["eval/crafter_score"] == pytest.approx((26 * 101) ** (1 / 22) - 1)
    assert told["eval/crafter_score_low"] < told["eval/crafter_score"] < told["eval/crafter_score_high"]
    assert told[f"eval/achievement/{ACHIEVEMENTS[6]}"] == 0.25
    assert "collect_sapling 100 %, collect_wood 25 %" in crafter_text(unlocked)


def test_evaluation_tells_the_score(tmp_path, capsys):
    kwargs = {"area": 16, "length": 40, "disable_mobs": True}
    agent = ppo(env_spec("crafter", **kwargs))
    found = evaluate(agent, "crafter", kwargs, episodes=3, envs=2)
    assert found.unlocked is not None and found.unlocked.shape == (3, 22)
    pays = found.unlocked.sum(1)  # each pays 1, unless two come in one step; health costs tenths
    assert (np.abs(found.returns - pays) < 1.5).all()
    save_agent(agent, tmp_path / "agent")
    assert main(["eval", str(tmp_path / "agent"), "--episodes", "2"]) == 0
    assert capsys.readouterr().out.count("crafter score") == 2, "with memory and without"
