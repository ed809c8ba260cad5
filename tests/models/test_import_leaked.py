"""An agent that was given its position: refused, or read with that input apart and a caveat on all that follows.

No such checkpoint is at hand (that of vviggyy/dreamerv3f was not published), so one is written here: an agent of ours
with the input `player_pos`, in the layout of the official program.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import torchmem
from tests.models import golden
from torchmem.analysis.probe_position import probe_position
from torchmem.cli import main
from torchmem.envs.collector import Collector, leaking
from torchmem.envs.make import env_spec
from torchmem.envs.vector import VectorEnv
from torchmem.errors import TorchmemError
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.importers.array_pickle import load_arrays
from torchmem.models.importers.dreamerv3 import config_from_official, translate
from torchmem.models.importers.dreamerv3_logdir import import_logdir, newest, read_config
from torchmem.models.noise import Noise
from torchmem.surgery.diff import update_diff
from torchmem.surgery.record import record
from torchmem.training.evaluate import evaluate
from torchmem.types import EnvSpec, Space

LOGDIR = golden.ROOT / "ckpt" / "logdir"
SPEC = EnvSpec(
    name="crafter_reward", obs={"image": Space((64, 64, 3), "uint8"), "player_pos": Space((2,), "float32")},
    action={"action": Space((), "int32", classes=17)}, control_hz=1.0,
)  # fmt: skip
CRAFTER = {"length": 25}


def official(agent: DreamerAgent) -> dict[str, np.ndarray]:
    """The agent's weights as the official program stores them.

    Which parameters there are is read off a real checkpoint; their values are turned round here, without the importer.
    """
    own = {name: value.numpy() for name, value in agent.state_dict().items()}
    swaps = (("dec/vec/vector/", "dec/vec/player_pos/"), ("pol/head/act_disc/", "pol/head/action/"))
    out = {}
    for template, sample in load_arrays(newest(LOGDIR) / "agent.pkl")["params"].items():
        path = template
        for old, new in swaps:
            path = path.replace(old, new)
        keys = {"dec/vec": "player_pos", "pol/head": "action"}
        other = next((key for head, key in keys.items() if path.startswith(head)), None)
        if path.startswith(("opt/", "slowval_count")) or (other and path.split("/")[2] != other):
            continue
        value = own[translate(path, sample)[0]]
        if path.endswith("/kernel") and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # (out, in, height, width) -> (height, width, in, out)
        elif path.endswith("/kernel") and value.ndim == 3:
            value = value.transpose(0, 2, 1)  # per block
        elif path.endswith("/kernel"):
            value = value.T
        out[path] = np.array(value, order="C")
    return out


@pytest.fixture(scope="module")
def agent() -> DreamerAgent:
    torch.manual_seed(5)
    made = DreamerAgent(SPEC, config_from_official(read_config(LOGDIR / "config.yaml")["agent"]))
    with torch.no_grad():  # heads start at zero
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
        made.behaviour.return_low.fill_(-0.25)
    return made


@pytest.fixture(scope="module")
def logdir(agent: DreamerAgent, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("leaked") / "logdir"
    home = folder / "ckpt" / "20260101T000000F000000"
    home.mkdir(parents=True)
    (folder / "ckpt" / "latest").write_text(home.name)
    (home / "done").write_text("")
    content = {"params": official(agent), "counters": {"updates": 3}}
    (home / "agent.pkl").write_bytes(pickle.dumps(content, protocol=4))
    (folder / "config.yaml").write_text((LOGDIR / "config.yaml").read_text())
    (folder / "replay").mkdir()
    flags = {key: np.zeros(4, bool) for key in ("is_first", "is_last", "is_terminal")}
    np.savez(folder / "replay" / "20260101T000000F000000-a-b-4.npz", image=np.zeros((4, 64, 64, 3), np.uint8),
             player_pos=np.zeros((4, 2), np.float32), action=np.zeros(4, np.int32), reward=np.zeros(4, np.float32),
             stepid=np.zeros((4, 20), np.uint8), **flags)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def imported(logdir: Path) -> Path:
    return import_logdir(logdir, logdir.parent / "run", allow_leaked_position=True)


def test_it_is_refused_with_the_way_out(logdir: Path, tmp_path: Path, capsys):
    with pytest.raises(TorchmemError, match=r"given its own position \(player_pos\).*--allow-leaked-position"):
        import_logdir(logdir, tmp_path / "run")
    assert main(["import", "dreamerv3", str(logdir), "--out", str(tmp_path / "run")]) == 2
    assert "allow_leaked_position=True" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["import", "dreamerv3", str(logdir), "--out", str(tmp_path / "run"), "--allow-leaked-position"]) == 0
    blind = dataclasses.replace(SPEC, obs={"image": SPEC.obs["image"]})
    with pytest.raises(TorchmemError, match="trained on 'player_pos', which the given spec does not observe"):
        import_logdir(logdir, tmp_path / "other", spec=blind, allow_leaked_position=True)


def test_the_round_trip_keeps_every_weight_and_names_the_leak(agent: DreamerAgent, imported: Path, caplog):
    again = torchmem.load(imported)
    assert again.spec.leaked == {"player_pos": "pos"} and "CAVEAT" in caplog.text
    own, found = agent.state_dict(), again.agent.state_dict()
    assert own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    assert json.loads((imported / "imported.json").read_text())["caveats"] == list(again.caveats)
    obs = {"image": torch.zeros(1, 64, 64, 3, dtype=torch.uint8), "is_first": torch.tensor([True])}
    here, there = ({**obs, "player_pos": torch.full((1, 2), place)} for place in (1.0, 20.0))
    reads = [again.agent.policy(o, again.initial(1), Noise.mode())[2]["stoch"] for o in (here, there)]
    logits = [again.agent.dynamics.posterior(torch.zeros(1, 64), again.agent.dynamics.posterior.embed(
        again.agent.encoder({k: o[k] for k in SPEC.obs}, torch.float32))) for o in (here, there)]  # fmt: skip
    assert not torch.equal(*logits) and reads[0].shape == reads[1].shape, "the position goes in"


def test_its_recordings_probes_and_scores_say_so(imported: Path, capsys):
    model = torchmem.load(imported)
    rec = record(model, "crafter", ["memory"], env_kwargs=CRAFTER, episodes=4, envs=2)
    np.testing.assert_array_equal(rec.covariates["obs.player_pos"][:], rec.covariates["pos"][:].astype(np.float32))
    assert rec.provenance.caveats == model.caveats and "player_pos" in model.caveats[0]
    assert evaluate(model.agent, "crafter", CRAFTER, 1, envs=1).returns.shape == (1,)
    with model.trace.play(3, env=leaking(VectorEnv("crafter", CRAFTER, 1, split="record", seed=0), model.spec)) as tr:
        memory = model.site("memory").save()
    assert memory.shape == (1, 3, 64) and "player_pos" in tr.out.obs
    if len(np.unique(rec.covariates["pos"][:], axis=0)) > 2:
        assert "CAVEAT: the agent was given the truth" in probe_position(
            rec, draws=1, resamples=5, folds=3, pixels=None).summary()  # fmt: skip
    assert update_diff(imported, model.agent, ranks=False).provenance.caveats == model.caveats


def test_the_commands_play_it_and_say_so(logdir: Path, tmp_path: Path, capsys):
    world = dataclasses.replace(SPEC, name="crafter", kwargs=CRAFTER)
    run = str(import_logdir(logdir, tmp_path / "run", spec=world, allow_leaked_position=True))
    assert main(["eval", run, "--episodes", "1", "--json", str(tmp_path / "eval.json")]) == 0
    assert "CAVEAT: the agent was given the truth" in capsys.readouterr().out
    assert "player_pos" in json.loads((tmp_path / "eval.json").read_text())["caveats"][0]
    assert main(["video", run, "--steps", "7", "--out", str(tmp_path / "film.gif")]) == 0


def test_worlds_without_that_truth_and_agents_without_a_leak():
    spec = dataclasses.replace(SPEC, leaked={"player_pos": "pos"})
    with pytest.raises(ValueError, match="'pos', which dummy does not know"):
        leaking(VectorEnv("dummy", {}, 1, split="record", seed=0), spec)
    with pytest.raises(ValueError, match="not observed"):
        dataclasses.replace(spec, leaked={"nothing": "pos"})
    worlds = VectorEnv("dummy", {}, 1, split="record", seed=0)
    assert leaking(worlds, env_spec("dummy")) is worlds and not env_spec("dummy").caveats
    seen = []
    Collector(worlds, None).step(lambda obs, carry: (seen.append(set(obs)) or {"action": torch.zeros(1)}, carry, {}))
    assert not seen[0] & set(worlds.spec.truth)
