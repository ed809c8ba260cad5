"""Old CoinRun checkpoints: the same outputs as the network they came from, and everything strange refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchmem
from torchmem.cli import main
from torchmem.models.importers.procgen_ppo import ProcgenCheckpointError, from_state_dict, import_checkpoint
from torchmem.models.noise import Noise
from torchmem.types import EnvSpec, Space

SPEC = EnvSpec("procgen", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int64", classes=15)}, 15.0)


class Res(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(n, n, 3, 1, 1), nn.Conv2d(n, n, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Block(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv, self.res1, self.res2 = nn.Conv2d(i, o, 3, 1, 1), Res(o), Res(o)

    def forward(self, x):
        return self.res2(self.res1(nn.MaxPool2d(3, 2, 1)(self.conv(x))))


class Original(nn.Module):
    """Spec simulator.md 1.2 in torch's own modules, under the names of Appendix C: floats, channels first."""

    def __init__(self, units: int = 64, start: bool = True) -> None:
        super().__init__()
        self.embedder = nn.Module()
        for k, (i, o) in enumerate(((3, 16), (16, 32), (32, 32))):
            self.embedder.add_module(f"block{k + 1}", Block(i, o))
        self.embedder.fc = nn.Linear(2048, units)
        self.gru = nn.Module()
        self.gru.gru = nn.GRU(units, units)
        self.fc_policy, self.fc_value = nn.Linear(units, 15), nn.Linear(units, 1)
        if start:
            self.init_hx = nn.Parameter(0.1 * torch.randn(units))

    def forward(self, image, h, mask):
        """image (B, 3, 64, 64) in 0..1, h (B, D), mask (B,) 0 where the step before ended an episode."""
        x = image
        for k in (1, 2, 3):
            x = self.embedder.get_submodule(f"block{k}")(x)
        x = F.relu(self.embedder.fc(F.relu(x).flatten(1)))
        out, h = self.gru.gru(x[None], (h * mask[:, None])[None])
        return F.log_softmax(self.fc_policy(out[0]), -1), self.fc_value(out[0]).squeeze(-1), h[0]


def original(**kwargs) -> Original:
    torch.manual_seed(0)
    return Original(**kwargs)


def write(folder: Path, model: nn.Module, name: str = "model_80412672.pth") -> Path:
    """As the original does: weights, and Adam after an update."""
    optimiser = torch.optim.Adam(model.parameters(), 5e-4, eps=1e-5)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimiser.step()
    torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimiser.state_dict()}, folder / name)
    return folder / name


@pytest.mark.parametrize("kwargs", [{}, {"units": 256, "start": False}], ids=["with init_hx", "the parent"])
@torch.no_grad()
def test_it_acts_as_the_original(tmp_path, kwargs):
    """Log-probabilities, values and memory over steps with episode ends, the very first start included."""
    with torch.enable_grad():
        file = write(tmp_path, model := original(**kwargs))
    agent = torchmem.load(import_checkpoint(file, tmp_path / "run", SPEC))
    assert sum(p.numel() for _, p in agent.trained()) == sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(1)
    units = model.gru.gru.hidden_size
    h = model.init_hx.expand(3, -1) if hasattr(model, "init_hx") else torch.zeros(3, units)
    carry, done = agent.initial(3), torch.zeros(3, dtype=torch.bool)
    for t in range(6):
        image = torch.randint(256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
        logp, value, h = model(image.permute(0, 3, 1, 2).float() / 255, h, 1 - done.float())
        first = done | (t == 0)
        _, carry, told = agent.policy({"image": image, "is_first": first}, carry, Noise.mode())
        own = agent.read_out(carry)["logits.action"].log_softmax(-1)
        for ours, theirs in ((own, logp), (told["value"], value), (carry.hidden, h)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        done = torch.rand(3, generator=generator) < 0.4


@torch.no_grad()
def test_without_legacy_reset_every_episode_starts_from_init_hx():
    model = original()
    agent = from_state_dict(model.state_dict(), SPEC, legacy_reset=False)
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    moved = agent.initial(1)._replace(hidden=torch.randn(1, 64))
    _, carry, _ = agent.policy({"image": image, "is_first": torch.ones(1, dtype=torch.bool)}, moved, Noise.mode())
    _, _, h = model(image.permute(0, 3, 1, 2).float(), model.init_hx[None], torch.ones(1))
    torch.testing.assert_close(carry.hidden, h, rtol=0, atol=1e-6)


def test_the_key_set_of_the_published_agent():
    """254,800 weights in 41 arrays; the names of spec Appendix C."""
    state = original().state_dict()
    assert len(state) == 41 and sum(v.numel() for v in state.values()) == 254_800
    agent = from_state_dict(state, SPEC)
    assert sum(p.numel() for p in agent.parameters()) == 254_800
    assert agent.config.legacy_reset and agent.config.learned_start and agent.config.gamma == 0.999


WRONG = {
    "fc_valeu.weight": "unknown key 'fc_valeu.weight' .did you mean 'fc_value.weight'",
    "gru.gru.weight_ih_l1": "unknown key 'gru.gru.weight_ih_l1'",
    "embedder.block4.conv.weight": "missing 'embedder.block4.conv.bias'",
}


@pytest.mark.parametrize("key", WRONG)
def test_unknown_keys_are_refused_with_the_nearest(key):
    state = dict(original().state_dict())
    state[key] = state.pop("fc_value.weight") if key.startswith("fc") else torch.zeros(3)
    with pytest.raises(ProcgenCheckpointError, match=WRONG[key]):
        from_state_dict(state, SPEC)


@pytest.mark.parametrize("key", list(original().state_dict()))
def test_each_key_is_needed(key):
    state = {k: v for k, v in original().state_dict().items() if k != key}
    if key == "init_hx":  # its parent has none
        assert not from_state_dict(state, SPEC).config.learned_start
    else:
        with pytest.raises(ProcgenCheckpointError, match=f"missing '{key}'"):
            from_state_dict(state, SPEC)


def test_other_worlds_and_agents_without_memory_are_refused():
    state = original().state_dict()
    for action, image in ((7, 64), (15, 32)):
        spec = EnvSpec(
            "w", {"image": Space((image, image, 3), "uint8")}, {"a": Space((), "int64", classes=action)}, 1.0
        )
        with pytest.raises(ProcgenCheckpointError, match="trained on another one"):
            from_state_dict(state, spec)
    with pytest.raises(ProcgenCheckpointError, match="no GRU"):
        from_state_dict({k: v for k, v in state.items() if "gru" not in k and k != "init_hx"}, SPEC)
    with pytest.raises(ProcgenCheckpointError, match="one image"):
        from_state_dict(state, EnvSpec("w", {"x": Space((3,), "float32")}, SPEC.action, 1.0))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_only_arrays_are_read(tmp_path, capsys):
    torch.save({"model_state_dict": {"a": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(ProcgenCheckpointError, match="refused"):
        import_checkpoint(tmp_path / "evil.pth", tmp_path / "x", SPEC)
    assert "run" not in capsys.readouterr().out
    file = write(tmp_path, original())
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ProcgenCheckpointError, match="not a complete file"):
        import_checkpoint(file, tmp_path / "x", SPEC)
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ProcgenCheckpointError, match="no 'model_state_dict'"):
        import_checkpoint(tmp_path / "other.pth", tmp_path / "x", SPEC)
    assert not (tmp_path / "x").exists()


def test_the_command(tmp_path, capfd):
    file = write(tmp_path, original())
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC.to_json(), default=str).replace("-Infinity", '"-inf"').replace("Infinity", '"inf"'))
    assert main(["import", "procgen-ppo", str(file), "--out", str(tmp_path / "run"), "--spec", str(spec)]) == 0
    told = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert told["agent_steps"] == 80_412_672 and told["not_read"] == ["optimizer_state_dict"] and told["legacy_reset"]
    assert torchmem.load(tmp_path / "run").config.legacy_reset
    words = ["import", "procgen-ppo", str(file), "--out", str(tmp_path / "other")]
    assert main([*words, "--mode", "easy", "--no-legacy-reset"]) == 0
    agent = torchmem.load(tmp_path / "other")
    played = {"game": "coinrun", "mode": "easy", "use_backgrounds": False}
    assert agent.spec.name == "procgen" and {key: agent.spec.kwargs[key] for key in played} == played
    assert not agent.config.legacy_reset
    assert main(["import", "procgen-ppo", str(file), "--out", str(tmp_path / "run"), "--spec", str(spec)]) == 2
    assert "already exists" in capfd.readouterr().err
