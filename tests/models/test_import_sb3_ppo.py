"""SB3 zips: same logits and values as a plain network of the zip's arrays; nothing is unpickled; misfits are named."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.fixtures import UPDATES, needs_updates
from torchmem.cli import main
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import load
from torchmem.models.importers.sb3_ppo import SB3ZipError, from_state_dict, import_zip, read
from torchmem.models.noise import Noise
from torchmem.types import EnvSpec, Space

PHASES = ("init", "pre_update", "post_update", "sub_update")
LANDER = env_spec("lunar_lander")
ARM = EnvSpec(
    name="arm", obs={"joints": Space((5,), "float32")}, control_hz=10.0,
    action={"push": Space((2,), "float32", low=-1.0, high=1.0)},
)  # fmt: skip
POLICY = {
    ":type:": "<class 'abc.ABCMeta'>",
    ":serialized:": "bm90IGEgcGlja2xl",  # not a pickle: reading it would fail
    "__module__": "stable_baselines3.common.policies",
    "__init__": "<function ActorCriticPolicy.__init__ at 0x7fc972b530d0>",
}


def arrays(seen=8, actions=4, units=(16, 16), continuous=False, seed=0):
    """A policy.pth of random arrays."""
    generator = torch.Generator().manual_seed(seed)
    out = {"log_std": torch.randn(actions, generator=generator)} if continuous else {}
    for tower in ("policy_net", "value_net"):
        for i, (a, b) in enumerate(zip((seen, *units), units)):
            out[f"mlp_extractor.{tower}.{2 * i}.weight"] = torch.randn(b, a, generator=generator)
            out[f"mlp_extractor.{tower}.{2 * i}.bias"] = torch.randn(b, generator=generator)
    for head, size in (("action_net", actions), ("value_net", 1)):
        out[f"{head}.weight"] = torch.randn(size, units[-1] if units else seen, generator=generator)
        out[f"{head}.bias"] = torch.randn(size, generator=generator)
    return out


def write(path, weights=None, raw=None, data=None, leave_out=()):
    buffer = io.BytesIO()
    torch.save(arrays() if weights is None else weights, buffer)
    data = {"policy_class": POLICY, "num_timesteps": 5000, "policy_kwargs": {}, "gamma": 0.99, **(data or {})}
    members = {"policy.pth": raw or buffer.getvalue(), "data": json.dumps(data), "_stable_baselines3_version": "2.3.0"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name not in leave_out:
                archive.writestr(name, content)
    return path


def plain(weights, activation=nn.Tanh):
    """The networks of a zip, built from its arrays alone: (policy, value)."""
    nets = []
    for tower, head in (("policy_net", "action_net"), ("value_net", "value_net")):
        keys = [k.removesuffix(".weight") for k in weights if k.startswith(f"mlp_extractor.{tower}.")
                and k.endswith("weight")]
        layers: list[nn.Module] = []
        for key in [*keys, head]:
            weight = weights[f"{key}.weight"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": weights[f"{key}.bias"]})
            layers += [linear, activation()]
        nets.append(nn.Sequential(*layers[:-1]))
    return nets


def outputs(agent, seen):
    """Parameters of the policy and value, step by step and as the sequence that learning sees."""
    ((key, space),) = agent.spec.obs.items()
    ((action, _),) = agent.spec.action.items()
    first = torch.zeros(len(seen), dtype=torch.bool)
    carry = agent.initial(len(seen))
    acted, _, told = agent.policy({key: seen.view(-1, *space.shape), "is_first": first}, carry, Noise.mode())
    out = agent.unroll({key: seen.unsqueeze(1)}, {action: acted[action].unsqueeze(1)}, first.unsqueeze(1), carry)
    torch.testing.assert_close(told["value"], out.value[:, 0], rtol=0, atol=1e-6)
    return [p[:, 0] for p in out.policy[action]], out.value[:, 0], acted[action]


@needs_updates
@pytest.mark.parametrize("phase", PHASES)
def test_the_agents_of_the_isolated_update_study_are_the_same(phase):
    """Bar: equal logits to 1e-6, here on shown and on far observations."""
    file = UPDATES[0].parent / f"{phase}_weights_model.zip"
    with zipfile.ZipFile(file) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    agent = from_state_dict(*read(file)[:2], LANDER)
    seen = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0]).repeat(4)
    policy, value = plain(weights)
    with torch.no_grad():
        (logits,), values, chosen = outputs(agent, seen)
        assert (logits - policy(seen)).abs().max() <= 1e-6
        assert (values - value(seen)[:, 0]).abs().max() <= 1e-5  # of values up to 60
        assert torch.equal(chosen, policy(seen).argmax(1))
    assert (agent.config.lr, agent.config.gamma, agent.config.entropy, agent.config.value_scale) == (3e-4, 0.99, 0, 1)


@pytest.mark.parametrize(("units", "activation"), [((16, 16), "Tanh"), ((8,), "ReLU"), ((), "Tanh")])
@pytest.mark.parametrize("continuous", [False, True])
def test_any_depth_activation_and_kind_of_action(units, activation, continuous):
    weights = arrays(5 if continuous else 8, 2 if continuous else 4, units, continuous)
    text = f"<class 'torch.nn.modules.activation.{activation}'>"
    agent = from_state_dict(weights, {"policy_kwargs": {"activation_fn": text}}, ARM if continuous else LANDER)
    policy, value = plain(weights, getattr(nn, activation))
    seen = torch.randn(40, 5 if continuous else 8)
    with torch.no_grad():
        params, values, _ = outputs(agent, seen)
        torch.testing.assert_close(params[0], policy(seen), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, value(seen)[:, 0], rtol=1e-5, atol=1e-5)
        if continuous:
            torch.testing.assert_close(params[1][0], weights["log_std"].exp())


def test_the_command_writes_a_run_that_loads(tmp_path, capsys):
    file, out = write(tmp_path / "model.zip"), tmp_path / "run"
    words = ["import", "sb3-ppo", str(file), "--env", "lunar_lander", "--env-kwargs", '{"reward_fuel": 0}']
    assert main([*words, "--out", str(out)]) == 0
    agent = load(out)
    assert agent.spec == env_spec("lunar_lander", reward_fuel=0)
    assert torch.equal(agent.state_dict()["actor.out.action.weight"], arrays()["action_net.weight"])
    source = json.loads((out / "imported.json").read_text())
    assert source["agent_steps"] == 5000 and source["version"] == "2.3.0"
    assert main([*words, "--out", str(out)]) == 2 and "already exists" in capsys.readouterr().err
    assert main([*words[:3], "--out", str(tmp_path / "other")]) == 2 and "--env NAME" in capsys.readouterr().err


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["TMP_PAYLOAD"])),)


def test_a_hostile_zip_runs_nothing(tmp_path, monkeypatch):
    trap = tmp_path / "ran"
    monkeypatch.setenv("TMP_PAYLOAD", str(trap))
    evil = pickle.dumps(Payload())
    buffer = io.BytesIO()
    torch.save({"action_net.weight": Payload()}, buffer)
    import base64

    blob = {":type:": "<class 'function'>", ":serialized:": base64.b64encode(evil).decode()}
    with pytest.raises(SB3ZipError, match=r"refused unread|not a complete"):
        read(write(tmp_path / "a.zip", raw=evil))
    with pytest.raises(SB3ZipError, match="refused unread"):
        read(write(tmp_path / "b.zip", raw=buffer.getvalue()))
    # Settings that are pickles are not read: the default takes their place.
    file = write(tmp_path / "c.zip", data={"clip_range": blob, "learning_rate": blob, "last_obs": blob})
    import_zip(file, tmp_path / "run", LANDER)
    assert load(tmp_path / "run").config.clip == 0.2
    assert not trap.exists()
    pickle.loads(evil)
    assert trap.exists()  # it would have shown


def changed(**kwargs):
    return {**arrays(), **kwargs}


@pytest.mark.parametrize(
    ("weights", "data", "message"),
    [
        (changed(**{"features_extractor.cnn.0.weight": torch.zeros(2)}), {}, "unknown key 'features_extractor.cnn.0"),
        (changed(**{"mlp_extractor.shared_net.0.weight": torch.zeros(2)}), {}, "unknown key 'mlp_extractor.shared_net"),
        ({k: v for k, v in arrays().items() if k != "action_net.bias"}, {}, "missing 'action_net.bias'"),
        (changed(log_std=torch.zeros(4)), {}, "unknown key 'log_std'"),
        (arrays(seen=6), {}, r"'mlp_extractor.policy_net.0.weight' is \(16, 6\), .* needs \(16, 8\)"),
        (arrays(actions=5), {}, r"'action_net.weight' is \(5, 16\)"),
        (arrays(units=(16, 8)), {}, r"towers of equal layers; this one has pi \[16, 8\]"),
        (None, {"use_sde": True}, "use_sde"),
        (None, {"policy_kwargs": {"features_extractor_class": "x"}}, r"policy_kwargs \['features_extractor_class'\]"),
        (None, {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}}, "ELU'>: agent=ppo"),
        (None, {"policy_class": {**POLICY, "__module__": "sb3_contrib.common.recurrent.policies"}}, "sb3_contrib"),
        (None, {"observation_space": {":type:": "<class 'gym.spaces.box.Box'>", "_shape": "[6]"}}, r"shape \[6\]"),
        (None, {"action_space": {":type:": "<class 'gym.spaces.box.Box'>", "_shape": "[4]"}}, "action_space is"),
        (None, {"action_space": {":type:": "<class 'gym.spaces.discrete.Discrete'>", "start": "1"}}, "counts from 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(weights, data, message, tmp_path):
    file = write(tmp_path / "model.zip", weights, data=data)
    with pytest.raises(SB3ZipError, match=message) as caught:
        import_zip(file, tmp_path / "run", LANDER)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bounds_of_a_continuous_action_must_be_ours():
    weights = arrays(5, 2, continuous=True)
    space = {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": "[2]"}
    from_state_dict(weights, {"action_space": {**space, "low": "[-1. -1.]", "high": "[1. 1.]"}}, ARM)
    with pytest.raises(SB3ZipError, match="only -1 to 1"):
        from_state_dict(weights, {"action_space": {**space, "low": "[-2. -1.]", "high": "[2. 1.]"}}, ARM)


@pytest.mark.parametrize("kind", ["truncated", "no policy", "nothing", "numbers"])
def test_a_damaged_or_foreign_file_is_named(kind, tmp_path):
    file = tmp_path / "model.zip"
    if kind == "truncated":
        file.write_bytes(write(tmp_path / "whole.zip").read_bytes()[:3000])
    elif kind == "no policy":
        write(file, leave_out=("policy.pth",))
    elif kind == "numbers":
        write(file, weights={"action_net.weight": 3})
    with pytest.raises(SB3ZipError, match=r"model\.zip"):
        read(file)
