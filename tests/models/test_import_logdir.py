"""The official checkpoint: its policy rollout and head outputs reproduced, and everything strange refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import torchmem
from tests.models import golden
from torchmem.cli import main
from torchmem.errors import TorchmemError
from torchmem.models.importers.array_pickle import PickleRefused, load_arrays
from torchmem.models.importers.dreamerv3_logdir import import_logdir, newest
from torchmem.models.noise import Noise

LOGDIR = golden.ROOT / "ckpt" / "logdir"


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    return import_logdir(LOGDIR, tmp_path_factory.mktemp("import") / "run")


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(LOGDIR, tmp_path / "logdir", copy_function=shutil.copy))


@torch.no_grad()
def test_policy_rollout_and_heads(imported: Path, product: str):
    agent = torchmem.load(imported)
    check = golden.Close("ckpt/expected", 1e-5)
    recorded = {k: torch.as_tensor(v) for k, v in check.recorded.items()}
    continuous = Noise(action={"act_disc": torch.zeros(2, 5), "act_cont": torch.full((2, 6), 0.5)})
    carry, states = agent.initial(2), []
    for t in range(5):
        obs = {key: recorded[f"obs/{key}"][t] for key in (*agent.spec.obs, "is_first")}
        action, carry, latents = agent.policy(obs, carry, continuous)
        assert torch.equal(action["act_disc"], recorded[f"act/{t}/act_disc"])
        check(f"act/{t}/act_disc", action["act_disc"])
        check(f"act/{t}/act_cont", action["act_cont"])
        check(f"out/{t}/dyn/deter", latents["deter"])
        check(f"out/{t}/dyn/stoch", torch.nn.functional.one_hot(latents["stoch"].long(), 8))
        states.append((carry.deter, carry.stoch))
    deter, stoch = (torch.stack(part, 1) for part in zip(*states, strict=True))
    feat = torch.cat([deter, stoch.flatten(-2)], -1)
    behaviour = agent.behaviour
    heads = {"rew": agent.reward, "val": behaviour.value, "slowval": behaviour.slow_value}
    for name, head in heads.items():
        check(f"heads/{name}_logits", head(feat))
        # near-uniform logits: one ulp of a probability times bins of 5e8 is 0.1 (spec, trap 2), so from theirs
        assert torch.allclose(head.mean(recorded[f"heads/{name}_logits"]), recorded[f"heads/{name}_pred"], atol=1e-4)
    check("heads/con_logit", agent.cont(feat))
    check("heads/con_prob", torch.sigmoid(agent.cont(feat)))
    params = behaviour.policy(feat)
    check("heads/pol_disc_logits", params["act_disc"][0])
    check("heads/pol_cont_mean", params["act_cont"][0])
    check("heads/pol_cont_std", params["act_cont"][1])
    for key, value in agent.decoder(deter.flatten(0, 1), stoch.flatten(0, 1)).items():
        check(f"heads/dec/{key}", value.unflatten(0, (2, 5)))
    check.done(but=("obs/", "heads/rew_pred", "heads/val_pred", "heads/slowval_pred"))


def test_run_directory_is_complete(imported: Path):
    agent = torchmem.load(imported)
    assert agent.spec.obs["token"].classes == 256 and agent.spec.obs["int2d"].classes == 4
    assert list(agent.spec.action) == ["act_cont", "act_disc"]
    assert json.loads((imported / "imported.json").read_text())["counters"]["updates"] == 25
    with pytest.raises(FileExistsError, match="already exists"):
        import_logdir(LOGDIR, imported)


class _Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("thing", [_Harmful(), Path("x"), print, np.random.default_rng(0), torch.zeros(2)])
def test_pickles_of_anything_but_arrays_are_refused_by_name(tmp_path: Path, thing, protocol: int, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agent.pkl"
    path.write_bytes(pickle.dumps({"params": {"a": thing}}, protocol=protocol))
    with pytest.raises(PickleRefused, match=r"agent\.pkl wants to call \S+\.\S+: refused"):
        load_arrays(path)
    assert not (tmp_path / "harmed").exists()


def test_arrays_under_both_numpy_names_and_scalars_are_read(tmp_path: Path):
    value = {"a": np.arange(6.0).reshape(2, 3), "n": np.float32(2), "b": np.array(True), "s": "x", "l": [1, 2.5, None]}
    new = pickle.dumps(value, protocol=4)
    name = b"\x8c\x16numpy._core.multiarray"  # a short string and its length
    assert name in new
    old = new.replace(name, b"\x8c\x15numpy.core.multiarray")
    frame = old.index(b"\x95") + 1  # the frame holds its length in eight bytes
    length = int.from_bytes(old[frame : frame + 8], "little") - new.count(name)
    old = old[:frame] + length.to_bytes(8, "little") + old[frame + 8 :]
    for number, content in enumerate((new, old, pickle.dumps(value, protocol=5))):
        (tmp_path / f"{number}.pkl").write_bytes(content)
        found = load_arrays(tmp_path / f"{number}.pkl")
        assert np.array_equal(found["a"], value["a"]) and found["n"] == 2 and found["l"] == value["l"]


def test_truncated_altered_and_object_pickles(tmp_path: Path):
    whole = next(LOGDIR.glob("ckpt/2*/agent.pkl")).read_bytes()
    path = tmp_path / "agent.pkl"
    for content in (b"", whole[:1], whole[:1000], whole[: len(whole) // 2], whole[:-1], b"not a pickle"):
        path.write_bytes(content)
        with pytest.raises(PickleRefused, match=r"agent\.pkl"):
            load_arrays(path)
    path.write_bytes(pickle.dumps({"params": {"a": np.array([{}, 1], dtype=object)}}))
    with pytest.raises(PickleRefused, match="Python objects"):
        load_arrays(path)


def refused(logdir: Path, words: str) -> None:
    with pytest.raises(TorchmemError, match=words):
        import_logdir(logdir, logdir.parent / "out")
    assert not (logdir.parent / "out" / "ckpt" / "latest").exists()


def agent_pickle(logdir: Path) -> Path:
    return newest(logdir) / "agent.pkl"


def rewrite(logdir: Path, change) -> None:
    content = load_arrays(agent_pickle(logdir))
    change(content["params"])
    buffer = io.BytesIO()
    pickle.dump(content, buffer, protocol=4)
    agent_pickle(logdir).write_bytes(buffer.getvalue())


def test_missing_files_are_named(logdir: Path):
    refused(logdir.parent / "nowhere", r"nowhere/config\.yaml is missing")
    agent_pickle(logdir).rename(logdir / "away")
    refused(logdir, r"agent\.pkl is missing")
    (newest(logdir) / "done").unlink()
    refused(logdir, "interrupted")
    (logdir / "ckpt" / "latest").write_text("../../elsewhere")
    refused(logdir, "latest names '../../elsewhere'")
    (logdir / "ckpt" / "latest").unlink()
    refused(logdir, "latest is missing")


def test_unknown_missing_and_misshapen_parameters_are_named(logdir: Path):
    rewrite(logdir, lambda p: p.update({"dyn/magic/kernel": np.zeros((2, 2), np.float32)}))
    refused(logdir, "dyn/magic/kernel")
    rewrite(logdir, lambda p: p.pop("dyn/magic/kernel"))
    rewrite(logdir, lambda p: p.update({"dyn/obs0/kernel": p["dyn/obs0/kernel"][1:]}))
    refused(logdir, "dyn/obs0/kernel")
    rewrite(logdir, lambda p: p.pop("dyn/obs0/kernel"))
    refused(logdir, "dynamics.posterior.linear.weight")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ac_grads: false", "ac_grads: true", "agent.ac_grads=True is not supported"),
        ("bspace: 8", "bspace: 8\n      shiny: 3", "unknown setting agent.dec.simple.shiny"),
        ("  horizon: 333\n", "", "setting agent.horizon is missing"),
        ("agent:\n", "agent: [\n", "not readable YAML"),
        ("agent:\n", "other:\n", "no `agent` section"),
        ("impl: perc", "impl: meanstd", "agent.retnorm.impl='meanstd'"),
    ],
)
def test_settings_that_are_unknown_here_are_named(logdir: Path, old: str, new: str, words: str):
    file = logdir / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    refused(logdir, words)


def test_yaml_is_read_as_version_1_2(imported: Path):
    assert torchmem.load(imported).config.eps == 1e-20  # a string under YAML 1.1


def test_without_replay_the_world_must_be_given(logdir: Path, tmp_path: Path, imported: Path):
    whole = torchmem.load(imported)
    shutil.rmtree(logdir / "replay")
    refused(logdir, "no replay chunk .* --spec FILE.json: .*image")
    file = tmp_path / "spec.json"
    with pytest.raises(TorchmemError, match=r"spec\.json is missing"):
        import_logdir(logdir, tmp_path / "a", spec=file)
    file.write_text('{"name": "w", "obs": 3}')
    with pytest.raises(TorchmemError, match=r"spec\.json does not describe a world"):
        import_logdir(logdir, tmp_path / "b", spec=file)
    spec = whole.spec.to_json() | {"control_hz": 25.0}
    for group in (spec["obs"], spec["action"]):
        for space in group.values():
            space.pop("low"), space.pop("high")  # JSON has no infinity; a spec written by hand leaves them out
    file.write_text(json.dumps(spec))
    agent = torchmem.load(import_logdir(logdir, tmp_path / "c", spec=file))
    assert agent.spec.control_hz == 25.0
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in agent.state_dict().items())


def test_command_line(tmp_path: Path, logdir: Path, capsys):
    assert main(["import", "dreamerv3", str(logdir), "--out", str(tmp_path / "run")]) == 0
    assert "torchmem.load(" in capsys.readouterr().out
    assert torchmem.load(tmp_path / "run").config.deter == 64
    assert main(["import", "dreamerv3", str(tmp_path / "nothing"), "--out", str(tmp_path / "other")]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err
