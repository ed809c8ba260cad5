"""Going on from the middle of an episode, for agents with a larger carry than a single tensor."""

from __future__ import annotations

import pytest
import torch

from tests.surgery.conftest import TINY
from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.studies.cue_runs import Cues, play_runs
from torchmem.studies.moments import Moment
from torchmem.surgery.model import Model

STEPS = 9


@pytest.fixture(params=["dreamer", "lstm"])
def model(request) -> Model:
    torch.manual_seed(0)
    spec = env_spec("minigrid_memory", size=7, view=3)
    if request.param == "dreamer":
        agent = DreamerAgent(spec, DreamerConfig(**TINY))
    else:
        agent = PPOAgent(spec, PPOConfig(core="lstm", units=8, encoder_units=8))
    with torch.no_grad():  # heads start at zero: give them something to say
        for parameter in agent.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
    return Model(agent)


def test_an_episode_goes_on_as_it_did(model):
    cues = Cues(model.spec)
    base = play_runs(model, cues, [0, 1, 0, 1], steps=STEPS, seed=0)
    forced = play_runs(model, cues, [0, 1, 0, 1], steps=STEPS, seed=0, forced=base.actions)
    whole = model.unroll(base.sequence(model.agent), noise="mode").policy["action"][0]
    start = torch.tensor([0, 3, 5, 3])  # each row at a step of its own
    for carries in (None, forced):  # the carries of the play, and those of the forced pass, hold the same
        moment = Moment(base, torch.arange(4), start, carries)
        logits = moment.force(model, [{}], steps=3)[0]
        torch.testing.assert_close(logits, torch.stack([whole[i, t : t + 3] for i, t in enumerate(start.tolist())]))
    for t in (0, 4):
        moment = Moment(base, torch.arange(4), torch.full((4,), t))
        same, other = moment.play(model, [{}, {"memory": lambda there, step: there + 1}], steps=STEPS - t)
        assert torch.equal(same.state, base.worlds[-1]["state"]) and same.steps.shape == other.steps.shape
