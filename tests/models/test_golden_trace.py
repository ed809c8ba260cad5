"""Every layer's output of one step: the error shows where a port went wrong, not only that it did."""

from __future__ import annotations

import pytest
import torch

from tests.models import golden
from torchmem.models.dreamer.agent import DreamerCarry
from torchmem.models.dreamer.rssm import State, feature
from torchmem.models.noise import Noise

pytestmark = pytest.mark.usefixtures("product")
TOLERANCE = 5e-6


def one_step(name: str):
    """The recorded step: observation 3, action and latents of step 2, the second row reset."""
    agent, batch = golden.agent(name), golden.batch(name)
    obs = {key: batch[key][:, 3] for key in agent.spec.obs} | {"is_first": torch.tensor([False, True])}
    action = agent.action_vector({key: batch[key][:, 2] for key in agent.spec.action})
    return agent, obs, DreamerCarry(batch["deter"][:, 2], batch["stoch"][:, 2], action)


@torch.no_grad()
def test_every_layer(name: str):
    agent, obs, carry = one_step(name)
    check = golden.Close(f"{name}/trace", TOLERANCE)
    paths = {key.partition("@")[0] for key in check.recorded if key.startswith("layer/")}
    outputs = {}
    for path in paths:
        module = agent.get_submodule(golden.official_name(path.removeprefix("layer/")))
        module.register_forward_hook(lambda _, __, out, path=path: outputs.setdefault(path, out))
    _, after, _ = agent.policy(obs, carry, Noise.mode())
    state = State(after.deter, after.stoch)
    feat = feature(state)
    agent.dynamics.prior(state.deter)
    agent.decoder(state.deter, state.stoch)
    for head in (agent.reward, agent.cont, agent.behaviour.policy, agent.behaviour.value, agent.behaviour.slow_value):
        head(feat)
    assert outputs.keys() == paths
    for path, out in outputs.items():
        recorded = next(v for k, v in check.recorded.items() if k.partition("@")[0] == path)
        # heads with an output shape: ours come flat, and so does the decoder's projection
        check(path, out if out.dim() == recorded.ndim else out.reshape(2, *recorded.shape[1:]))
    check("tokens", agent.encoder(obs, torch.float32))
    check("feat/deter", state.deter)
    check("feat/stoch", state.stoch)
    check("feat/logit", outputs["layer/dyn/obslogit"].unflatten(-1, (4, 8)))
    check.done()


@torch.no_grad()
def test_gate_taps_hold_the_gates(name: str):
    """The taps are what the recorded gate layer implies: sigmoid, tanh(r c), sigmoid(u - 1); thirds of each block."""
    agent, obs, carry = one_step(name)
    core = agent.dynamics.core
    taps = {}
    for gate in ("reset", "candidate", "update"):
        getattr(core, gate).register_forward_hook(lambda _, __, out, gate=gate: taps.setdefault(gate, out))
    agent.policy(obs, carry, Noise.mode())
    recorded = golden.arrays(f"{name}/trace")
    raw = torch.as_tensor(recorded["layer/dyn/dyngru"]).reshape(2, 8, 3, -1)
    reset, candidate, update = (raw[:, :, i].reshape(2, -1) for i in range(3))
    expected = {"reset": torch.sigmoid(reset), "update": torch.sigmoid(update - 1)}
    expected["candidate"] = torch.tanh(expected["reset"] * candidate)
    for gate, value in expected.items():
        torch.testing.assert_close(taps[gate], value, rtol=0, atol=TOLERANCE)
    kept = carry.deter * torch.tensor([[1.0], [0.0]])
    blended = expected["update"] * expected["candidate"] + (1 - expected["update"]) * kept
    torch.testing.assert_close(blended, torch.as_tensor(recorded["feat/deter"]), rtol=0, atol=TOLERANCE)
