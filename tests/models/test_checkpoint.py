"""Agents as folders: what is written is what is read, and everything damaged ends with one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import torchmem
from torchmem.models import checkpoint
from torchmem.models.checkpoint import CARD, WEIGHTS, CheckpointError, card_hash, load_agent, load_weights, save_agent
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.types import EnvSpec, Space

SPEC = EnvSpec(
    "toy",
    {"b": Space((3,), "float32", low=-1, high=1), "a": Space((), "int32", 4), "z": Space((2,), "float32")},
    {"action": Space((), "int32", 3)},
    control_hz=4.0,
    truth={"pos": "cells"},
    levels={"chance": 0.5},
    kwargs={"size": 9, "start": [1, 2]},
)
IMAGE = EnvSpec("toy", {"image": Space((48, 48, 3), "uint8")}, {"action": Space((), "int32", 3)}, control_hz=4.0)
TINY = {"deter": 16, "hidden": 8, "classes": 4, "stoch": 2, "depth": 2, "units": 8}


def tiny(**changes) -> DreamerAgent:
    return DreamerAgent(SPEC, DreamerConfig(**TINY | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_agent(tiny(), tmp_path / "agent")


def test_round_trip(tmp_path: Path):
    agent = tiny(lr=3e-4)
    agent.behaviour.return_high.fill_(2.5)
    with torch.no_grad():
        agent.behaviour.slow_value.out.bias.fill_(0.25)
    save_agent(agent, tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert again.config == agent.config and again.spec == agent.spec
    assert list(again.spec.obs) == ["b", "a", "z"]  # in the world's order
    assert again.state_dict().keys() == agent.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in agent.state_dict().items())
    assert [n for n, _ in again.trained()] == [n for n, _ in agent.trained()]
    json.loads((tmp_path / "agent" / CARD).read_text(), parse_constant=pytest.fail)  # strict: no Infinity, no NaN


def test_loading_draws_no_random_numbers_and_saving_changes_nothing(folder: Path, tmp_path: Path):
    state = torch.get_rng_state()
    agent = load_agent(folder)
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    save_agent(agent, tmp_path / "again")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in agent.state_dict().items())
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


def test_load_finds_the_newest_snapshot(tmp_path: Path):
    for name, lr in (("one", 1e-3), ("two", 2e-3)):
        save_agent(tiny(lr=lr), tmp_path / "ckpt" / name / "agent")
    (tmp_path / "ckpt" / "latest").write_text("two\n")
    assert torchmem.load(tmp_path).config.lr == torchmem.load(tmp_path / "ckpt").config.lr == 2e-3
    assert torchmem.load(tmp_path / "ckpt" / "one").config.lr == 1e-3
    assert torchmem.load(str(tmp_path / "ckpt" / "one" / "agent")).config.lr == 1e-3
    (tmp_path / "ckpt" / "latest").write_text("three")
    with pytest.raises(CheckpointError, match=r"latest names 'three'.*\['one', 'two'\]"):
        torchmem.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"no agent in .*give a run directory"):
        torchmem.load(tmp_path / "nowhere")


def test_nothing_is_overwritten(folder: Path):
    before = (folder / CARD).read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_agent(tiny(), folder)
    assert (folder / CARD).read_bytes() == before


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch, file: str):
    real = checkpoint.atomic_write

    def full(path, content):
        if Path(path).name == file:
            raise OSError(28, f"could not write {path}: No space left on device")
        return real(path, content)

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        save_agent(tiny(), tmp_path / "agent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated(folder: Path, file: str, kept: int):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: kept if kept >= 0 else len(content) - 40])
    with pytest.raises(CheckpointError, match=rf"{file}.*(truncated|altered)"):
        load_agent(folder)


def test_altered_weights(folder: Path):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1  # one bit of one weight
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is truncated or altered"):
        load_agent(folder)


def test_missing_files(folder: Path):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is missing"):
        load_agent(folder)
    (folder / CARD).unlink()
    with pytest.raises(CheckpointError, match=f"{CARD} is missing"):
        load_agent(folder)


def rewrite(folder: Path, change, sign: bool = True) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    if sign:
        card["card_sha256"] = card_hash(card)
    (folder / CARD).write_text(json.dumps(card))


def test_altered_card(folder: Path):
    rewrite(folder, lambda card: card["config"].update(free_nats=0.0), sign=False)
    with pytest.raises(CheckpointError, match=f"{CARD} was altered"):
        load_agent(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.update(format=99, torchmem="9.0"), r"format 99 \(torchmem 9\.0\).*reads formats 1, 2"),
        (lambda card: card.pop("format"), "no format number"),
        (lambda card: card.update(agent="genie"), "holds a 'genie' agent; this torchmem knows"),
        (lambda card: card["config"].update(magic=1), "unknown settings \\['magic'\\]"),
        (lambda card: card["env_spec"]["obs"]["b"].update(units="m"), "does not describe an agent"),
        (lambda card: card["config"].update(deter=32), f"{WEIGHTS} does not fit this agent"),
    ],
)
def test_cards_of_another_version_or_agent(folder: Path, change, words: str):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=words):
        load_agent(folder)


def test_a_setting_that_is_younger_than_the_file_takes_its_default_with_a_warning(folder: Path, caplog):
    rewrite(folder, lambda card: card["config"].pop("slow_reg"))
    assert load_agent(folder).config.slow_reg == 1.0
    assert "slow_reg" in caplog.text


def test_weights_into_an_agent_that_exists(folder: Path):
    agent = tiny()
    load_weights(agent, folder)
    assert all(torch.equal(v, load_agent(folder).state_dict()[k]) for k, v in agent.state_dict().items())
    before = {k: v.clone() for k, v in tiny(deter=32).state_dict().items()}
    other = tiny(deter=32)
    other.load_state_dict(before)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(other, folder)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_loading_needs_no_trainer(folder: Path):
    code = (
        f"import sys, torchmem; agent = torchmem.load({str(folder)!r});"
        "assert agent.config.deter == 16;"
        "bad = {'lightning', 'hydra', 'omegaconf', 'torchrl', 'gymnasium'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("older", [True, False])
def test_format_1_is_read_in_either_layout_of_its_blocks(tmp_path: Path, older: bool):
    """The decoder's block of this agent is square: its shape alone would not tell."""
    agent = DreamerAgent(IMAGE, DreamerConfig(**TINY | {"deter": 2 * 72, "depth": 4, "blocks": 2, "decoder_blocks": 2}))
    square = agent.decoder.cnn.from_deter.weight
    assert square.shape == (2, 72, 72)
    folder = save_agent(agent, tmp_path / "agent")
    blocks = [n for n in agent.state_dict() if n.endswith(("hidden.0.weight", "gates.weight", "from_deter.weight"))]
    assert len(blocks) == 3
    weights = load_file(folder / WEIGHTS)
    if older:
        weights |= {name: weights[name].transpose(1, 2).contiguous() for name in blocks}
    save_file(weights, folder / WEIGHTS)
    rewrite(folder, lambda card: card.update(format=1, weights_sha256=checkpoint.file_hash(folder / WEIGHTS)))
    again = load_agent(folder).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in agent.state_dict().items())
    if older:
        with pytest.raises(checkpoint.WrongAgent, match=r"format 1.*torchmem\.load reads.*cannot be resumed"):
            load_weights(agent, folder)
    else:
        load_weights(agent, folder)
