"""Recording: the values that acting had, whole episodes, the same again, and nothing that leaks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.errors import TorchmemError
from torchmem.models.checkpoint import read_card, save_agent
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.recording import Recording
from torchmem.surgery import record as module
from torchmem.surgery.edits import Ablate
from torchmem.surgery.model import Model
from torchmem.surgery.record import record, weights_hash
from torchmem.surgery.schedule import Schedule

TINY = {"deter": 16, "hidden": 8, "classes": 4, "depth": 4, "units": 8, "stoch": 4, "imag_length": 3, "blocks": 2}
WORLD = {"length": 90, "vary": True, "image": 0, "vector": 4}  # episodes of 45 to 90 steps: blocks are crossed
SITES = ("memory", "dynamics.stoch")


def make_model(**kwargs) -> Model:
    torch.manual_seed(0)
    agent = DreamerAgent(env_spec("dummy", **{**WORLD, **kwargs}), DreamerConfig(**TINY))
    with torch.no_grad():
        for parameter in agent.parameters():  # the critic starts at zero
            parameter += 0.1 * torch.randn_like(parameter)
    return Model(agent)


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="module")
def rec(model, tmp_path_factory) -> Recording:
    return record(model, sites=SITES, episodes=7, envs=3, seed=5, out=tmp_path_factory.mktemp("rec") / "a")


def same(a: Recording, b: Recording) -> None:
    """Bit for bit the same episodes in the same order."""
    np.testing.assert_array_equal(a.episodes, b.episodes)
    for mine, theirs in ((a.activations, b.activations), (a.covariates, b.covariates)):
        assert list(mine) == list(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name][:], theirs[name][:], err_msg=name)


def test_episodes_are_whole_equal_in_number_and_of_record_seeds(rec):
    assert rec.finished and len(rec.episodes) == 7 and rec.episodes["complete"].all()
    for number in range(7):
        rows = rec.rows(number)
        first, last = rec.covariates["is_first"][rows], rec.covariates["is_last"][rows]
        assert first[0] and not first[1:].any() and last[-1] and not last[:-1].any()
        assert rec.covariates["reward"][rows][0] == 0 and not rec.covariates["action"][rows][-1]
        np.testing.assert_array_equal(rec.covariates["time"][rows], np.arange(rec.episodes["length"][number]))
    worlds, counts = np.unique(rec.episodes["seed"] >> 25 & 4095, return_counts=True)
    assert worlds.tolist() == [0, 1, 2] and counts.tolist() == [3, 2, 2]
    assert set(rec.episodes["seed"] >> 61) == {2}, "the split is record"


def test_values_are_those_of_the_unrolled_agent(model, rec):
    """What was recorded step by step, for worlds in lock-step, is what one sequence gives under the same noise."""
    from torchmem.models.noise import Noise
    from torchmem.surgery.schedule import DRAWN

    for number in (0, 6):
        rows = rec.rows(number)
        length = int(rec.episodes["length"][number])
        generator = torch.Generator().manual_seed(int(rec.episodes["seed"][number]))
        draws = [model.agent.acting_noise(DRAWN, generator).posterior for _ in range(length // DRAWN + 1)]
        obs = {"vector": rec.covariates["obs.vector"][rows]}
        actions = {"action": rec.covariates["action"][rows]}
        out = model.unroll(obs, actions, noise=Noise(posterior=torch.cat(draws)[None, :length]))
        memory = rec.activations["memory"][rows]
        torch.testing.assert_close(out.states.deter[0], torch.from_numpy(memory), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(out.states.stoch[0], rec.activations["dynamics.stoch"][rows])
        torch.testing.assert_close(out.value[0], torch.from_numpy(rec.covariates["value"][rows]), rtol=1e-4, atol=1e-5)
        logits = out.policy["action"][0][0]
        torch.testing.assert_close(
            logits, torch.from_numpy(rec.covariates["logits.action"][rows]), rtol=1e-4, atol=1e-5
        )


def test_heads_read_whole_blocks_unless_edits_hold(model, rec, monkeypatch):
    """Value, logits and the sites of a head do not depend on how many steps the heads were given at once."""
    from torchmem.surgery.read_out import ReadOut

    begin, settled, settle = ReadOut.__init__, [], ReadOut.settle
    sites = (*SITES, "critic.mlp", "actor.mlp")
    at_once = record(model, sites=sites, episodes=7, envs=3, seed=5)

    def always_stepwise(self, *given):
        begin(self, *given)
        self.stepwise = True

    monkeypatch.setattr(ReadOut, "__init__", always_stepwise)
    stepwise = record(model, sites=sites, episodes=7, envs=3, seed=5)
    assert list(at_once.activations) == list(stepwise.activations)
    for name in ("critic.mlp", "actor.mlp"):
        np.testing.assert_allclose(at_once.activations[name][:], stepwise.activations[name][:], rtol=1e-4, atol=1e-5)
        assert np.ptp(at_once.activations[name][:], 0).max() > 0.01
    for name in ("value", "logits.action"):
        np.testing.assert_allclose(rec.covariates[name][:], stepwise.covariates[name][:], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rec.covariates[name][:], at_once.covariates[name][:])
    np.testing.assert_array_equal(rec.activations["memory"][:], stepwise.activations["memory"][:])
    monkeypatch.undo()
    monkeypatch.setattr(ReadOut, "settle", lambda self: (settled.append(len(self._carries)), settle(self))[1])
    record(model, sites="memory", episodes=3, envs=3)
    assert any(settled), "else this test tests nothing"
    settled.clear()
    record(model, sites="memory", episodes=3, envs=3, edits=Ablate("memory", units=(1,)))
    assert settled and not any(settled), "edits may depend on the step: every step is read by itself"


def test_the_same_seed_gives_the_same_recording_whatever_its_home(model, rec, tmp_path):
    same(rec, record(model, sites=SITES, episodes=7, envs=3, seed=5, out=tmp_path / "b"))
    same(rec, record(model, sites=SITES, episodes=7, envs=3, seed=5, workers=2))
    other = record(model, sites=SITES, episodes=7, envs=3, seed=6)
    assert not set(other.episodes["seed"]) & set(rec.episodes["seed"])


def test_an_episode_does_not_depend_on_its_neighbours_or_the_quota(model, rec):
    """World 0 plays the same episodes when its neighbours have other worlds' lengths to wait for."""
    more = record(model, sites=SITES, episodes=9, envs=3, seed=5)
    known = {int(seed): number for number, seed in enumerate(more.episodes["seed"])}
    for number, seed in enumerate(rec.episodes["seed"].tolist()):
        a, b = rec.rows(number), more.rows(known[seed])
        np.testing.assert_array_equal(rec.activations["memory"][a], more.activations["memory"][b])


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_interrupted_recording_goes_on_to_the_same_end(model, rec, tmp_path, monkeypatch, after):
    out = tmp_path / "a"
    given = {"sites": SITES, "episodes": 7, "envs": 3, "seed": 5, "out": out}
    with monkeypatch.context() as patch:
        real, count = module.RecordingWriter.append, []

        def append(self, *args, **kwargs):
            if len(count) == after:
                raise Interrupted
            count.append(real(self, *args, **kwargs))

        patch.setattr(module.RecordingWriter, "append", append)
        with pytest.raises(Interrupted):
            record(model, **given)
    assert len(Recording(out).episodes) == after and not Recording(out).finished
    with pytest.raises(FileExistsError, match="or resume"):
        record(model, **given)
    with pytest.raises(TorchmemError, match="greedy was False, is True"):
        record(model, **given, resume=True, greedy=True)
    same(rec, record(model, **given, resume=True))
    same(rec, record(model, **given, resume=True))  # nothing left to do


def _play_until_killed(out: Path) -> None:
    torch.set_num_threads(1)
    real, count = module.RecordingWriter.append, []

    def append(self, *args, **kwargs):
        if len(count) == 4:
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        count.append(real(self, *args, **kwargs))

    module.RecordingWriter.append = append
    record(make_model(), sites=SITES, episodes=7, envs=3, seed=5, out=out)


def test_a_killed_recording_goes_on_to_the_same_end(model, rec, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_play_until_killed, args=(tmp_path / "a",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(Recording(tmp_path / "a").episodes) == 4
    same(rec, record(model, sites=SITES, episodes=7, envs=3, seed=5, out=tmp_path / "a", resume=True))


def test_order_is_that_of_an_uninterrupted_run_wherever_it_broke():
    """Simulated: three worlds with episodes of very different lengths, broken after every number of episodes."""
    lengths = np.array([[3, 40, 2, 9], [7, 7, 7, 7], [30, 1, 1, 50]])

    def play(table: list[tuple[int, int]], stop_after: int) -> list[tuple[int, int]]:
        schedule = Schedule(12, 3, 0)
        schedule.skip(np.array(table, [("seed", "i8"), ("length", "i8")]))
        left = [0, 0, 0]
        step, out = 0, list(table)
        while not schedule.done and len(out) < stop_after:
            for row in range(3):
                if not left[row]:
                    left[row] = lengths[row, schedule.played[row] % 4]
                    schedule.began(row, step)
            step += 1
            for row in range(3):
                left[row] -= 1
                if not left[row]:
                    schedule.ended(row, step)
            out += [(one.seed, one.stop - one.start) for one in schedule.ready(step, step)]
        return out[:stop_after]

    whole = play([], 12)
    assert len(whole) == len(set(whole)) == 12
    for broken in range(12):
        assert play(play([], broken), 12) == whole, broken
    assert play(play(play([], 2), 5), 12) == whole


def test_truth_never_reaches_the_policy(model, monkeypatch):
    seen: set[str] = set()
    real = model.agent.policy

    def policy(obs, carry, noise):
        seen.update(obs)
        return real(obs, carry, noise)

    monkeypatch.setattr(model.agent, "policy", policy)
    rec = record(model, episodes=2, envs=2)
    assert seen and not seen & set(model.spec.truth)
    assert set(model.spec.truth) <= set(rec.covariates)
    assert rec.units["place"] == "image widths" and rec.units["logits.action"] == "nats"


def test_edits_hold_and_are_written_down(model, rec):
    edit = Ablate("memory", units=(0, 3))
    cut = record(model, sites=("memory", "dynamics.stoch", "dynamics.deter"), episodes=7, envs=3, seed=5, edits=edit)
    assert not cut.activations["memory"][:, [0, 3]].any() and rec.activations["memory"][:, [0, 3]].any(0).all()
    np.testing.assert_array_equal(cut.activations["memory"][:], cut.activations["dynamics.deter"][:])
    assert cut.provenance.edits == ({"edit": edit.describe(), "digest": edit.digest},)
    np.testing.assert_array_equal(  # the same worlds and noise: a paired comparison
        sorted(cut.episodes["seed"]), sorted(rec.episodes["seed"])
    )
    with model.edited(edit):
        outside = record(model, sites="memory", episodes=7, envs=3, seed=5)
    np.testing.assert_array_equal(outside.activations["memory"][:], cut.activations["memory"][:])
    assert outside.provenance.edits == cut.provenance.edits and not model.edits
    same(rec, record(model, sites=SITES, episodes=7, envs=3, seed=5))


def test_edits_of_the_heads_show_in_logits_and_value(model):
    """The logits that are written down are those that chose the action, and the value is the edited critic's."""
    from torchmem.surgery.edits import Steer

    sites = ("behaviour.policy.mlp", "behaviour.value.mlp")
    edits = [Steer(site, direction=torch.linspace(-9, 9, 8)) for site in sites]
    rec = record(model, sites=sites, episodes=2, envs=2, greedy=True, edits=edits)
    plain = record(model, sites=sites, episodes=2, envs=2, greedy=True)
    open_ = ~rec.covariates["is_last"][:]
    likely = rec.covariates["logits.action"][:].argmax(-1)
    np.testing.assert_array_equal(rec.covariates["action"][open_], likely[open_])
    first = rec.rows(0).start
    for name in ("value", "logits.action"):
        assert not np.allclose(rec.covariates[name][first], plain.covariates[name][first])
    for site in sites:
        assert np.abs(rec.activations[site][:] - plain.activations[site][first]).min(0).max() > 5


def test_a_condition_of_an_edit_may_look_at_the_truth(model):
    with model.edited(Ablate("memory"), when=lambda info: info.truth["time"] >= 10):
        rec = record(model, sites="memory", episodes=2, envs=2)
    cut = rec.covariates["time"][:] >= 10
    assert not rec.activations["memory"][cut].any() and rec.activations["memory"][~cut].any()


def test_greedy_takes_the_likeliest_action(model):
    rec = record(model, episodes=2, envs=2, greedy=True)
    open_ = ~rec.covariates["is_last"][:]
    likely = rec.covariates["logits.action"][:].argmax(-1)
    np.testing.assert_array_equal(rec.covariates["action"][open_], likely[open_])
    sampled = record(model, episodes=2, envs=2)
    likely, open_ = sampled.covariates["logits.action"][:].argmax(-1), ~sampled.covariates["is_last"][:]
    assert (sampled.covariates["action"][open_] != likely[open_]).any()


def test_dtype_and_pooling_go_by_pattern():
    model = make_model(image=48, length=8)
    sites = ["encoder.cnn.*.conv", "memory"]
    full = record(model, sites=sites, episodes=2, envs=2)
    small = record(
        model, sites=sites, episodes=2, envs=2, observations=False,
        dtype={"memory": "bfloat16", "encoder.*": "float16"}, pooling={"encoder.cnn.0.*": "mean"},
    )  # fmt: skip
    maps, means = full.activations["encoder.cnn.0.conv"][:], small.activations["encoder.cnn.0.conv"]
    assert maps.ndim == 4 and means.shape == (len(full), maps.shape[-1]) and means.dtype == np.float16
    np.testing.assert_allclose(means[:], maps.mean((1, 2)), rtol=2e-3, atol=1e-4)
    assert small.activations["encoder.cnn.1.conv"].ndim == 4
    expected = torch.from_numpy(full.activations["memory"][:]).bfloat16().float().numpy()
    np.testing.assert_array_equal(small.activations["memory"][:], expected)
    assert "obs.image" in full.covariates and "obs.image" not in small.covariates
    np.testing.assert_array_equal(full.covariates["obs.image"].dtype, np.uint8)
    assert small.sites["memory"] == {"dtype": "bfloat16", "pooling": "none", "path": "dynamics.deter"}


def test_patterns_take_what_runs_while_acting(model, caplog):
    with caplog.at_level("INFO", "torchmem"):
        rec = record(model, sites="dynamics.*", episodes=2, envs=2)
    assert {"dynamics.deter", "dynamics.core.update", "dynamics.posterior.logit"} <= set(rec.activations)
    assert not [name for name in rec.activations if name.startswith("dynamics.prior")]
    assert "dynamics.prior" in caplog.text


def test_the_critic_can_be_recorded_though_acting_does_not_need_it(model):
    rec = record(model, sites="behaviour.value.*", episodes=2, envs=2)
    assert rec.activations


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"sites": "dynamics.dter"}, "nearest: dynamics.deter"),
        ({"sites": "dynamix.*"}, "no site matches 'dynamix"),
        ({"sites": []}, "no site to record"),
        ({"sites": ["memory", "reward.out"]}, r"reward.out does not run while the agent acts"),
        ({"sites": "dynamics.prior.*"}, r"dynamics.prior.* does not run while"),
        ({"dtype": "int8"}, "one of float32, float16, bfloat16"),
        ({"dtype": {"behaviour.*": "float16"}}, "matches none of the recorded sites memory"),
        ({"pooling": "max"}, "one of none, mean"),
        ({"episodes": 0}, "at least 1"),
        ({"env": "dumy"}, "did you mean 'dummy'"),
        ({"env": "minigrid_memory"}, "cannot act in minigrid_memory: observation 'vector'"),
        ({"env_kwargs": {"vector": 5, "image": 0}}, "cannot act in dummy"),
        ({"seed": -1}, "seed must be in"),
        ({"edits": Ablate("memory", units=(999,))}, "memory"),
    ],
)  # fmt: skip
def test_wrong_use_is_told_and_leaves_nothing(model, tmp_path, given, word):
    with pytest.raises((TorchmemError, ValueError), match=word):
        record(model, **{"episodes": 2, "envs": 2, "out": tmp_path / "r", **given})
    assert not (tmp_path / "r").exists()
    assert not [m for m in model.agent.modules() if m._forward_hooks] and not model.edits


def test_a_value_beyond_float16_is_refused(model, tmp_path):
    from torchmem.surgery.edits import Steer

    edit = Steer("memory", direction=torch.full((16,), 1e6))
    with pytest.raises(TorchmemError, match="leaves the range of float16"):
        record(model, sites="memory", episodes=2, envs=2, dtype="float16", edits=edit, out=tmp_path / "r")


def test_a_temporary_recording_goes_with_its_object(model):
    rec = record(model, episodes=1)
    path = rec.path
    assert path.exists() and len(rec.episodes) == 1
    del rec
    assert not path.exists()


def test_provenance_names_the_weights(model, tmp_path):
    folder = save_agent(model.agent, tmp_path / "agent")
    assert weights_hash(model.agent) == read_card(folder)["weights_sha256"]
    rec = record(model, episodes=1, seed=9)
    assert rec.provenance.weights == weights_hash(model.agent) and rec.provenance.seeds == {"record": 9}
    assert rec.provenance.config["deter"] == 16 and rec.plan["kwargs"]["length"] == 90


def test_the_command_records_and_resumes(model, tmp_path, capsys):
    from torchmem.cli import main
    from torchmem.surgery.edit_files import save_edits

    agent = save_agent(model.agent, tmp_path / "agent")
    words = ["record", str(agent), "--sites", "dynamics.core.*", "memory", "--episodes", "3", "--envs", "2"]
    out = ["--out", str(tmp_path / "r"), "--seed", "4"]
    assert main([*words, *out, "--dtype", "bfloat16"]) == 0
    told = capsys.readouterr()
    assert "3 episodes" in told.out and "dynamics.core.update" in told.out and "3/3" in told.err
    assert main([*words, *out]) == 2 and "already exists" in capsys.readouterr().err
    assert main([*words, *out, "--resume"]) == 2 and "dtype was" in capsys.readouterr().err
    assert main([*words, *out, "--dtype", "bfloat16", "--resume"]) == 0
    save_edits(tmp_path / "edits", Ablate("memory"))
    assert main([*words[:3], "memory", "--envs", "1", "--episodes", "1", "--out", str(tmp_path / "cut"), "--edits",
                 str(tmp_path / "edits")]) == 0  # fmt: skip
    rec = Recording(tmp_path / "cut")
    assert not rec.activations["memory"][:].any() and len(rec.provenance.edits) == 1
    assert Path(rec.provenance.checkpoint or "").samefile(agent)
    assert main([*words[:2], "--out", str(tmp_path / "x"), "--env-kwargs", "{"]) == 2
    assert "not JSON" in capsys.readouterr().err


def test_public_names():
    import torchmem

    assert torchmem.record is record and torchmem.Recording is Recording
