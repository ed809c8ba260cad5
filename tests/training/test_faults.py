"""Each fault ends with one clear message and its exit code, loses nothing, and the run goes on afterwards."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from tests.training import tiny
from torchmem.envs.dummy import DummyWorld
from torchmem.training import command
from torchmem.training.experiment import Experiment
from torchmem.training.snapshot import Snapshots


@pytest.fixture
def train(capfd, caplog):
    """words -> (exit code, what was said); a traceback in it fails the test"""

    def run(words: list[str]) -> tuple[int, str]:
        capfd.readouterr()
        caplog.clear()
        try:
            code = command.main(words)
        except SystemExit as leaving:
            code = leaving.code
        said = "".join(capfd.readouterr()) + caplog.text
        assert code == 0 or "command.py" not in said, said
        return code, said

    return run


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run with snapshots of 30 and of 40 steps; copy it before use."""
    folder = tmp_path_factory.mktemp("started") / "run"
    threads = torch.get_num_threads()
    for steps in (30, 40):
        assert command.main(tiny.words(folder, "save.keep=2", steps=steps)) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def run(started, tmp_path):
    return shutil.copytree(started, tmp_path / "run")


def at(monkeypatch, steps: int, action) -> None:
    """Do something in the middle of a run, once, before it collects the step after `steps`."""
    collect = Experiment.collect
    done = []

    def disturbed(self):
        if self.clock.agent_steps == steps and not done:
            done.append(True)
            action(self)
        return collect(self)

    monkeypatch.setattr(Experiment, "collect", disturbed)


# Words and folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, answer",
    [
        ("agent.lrr=1", "agent.lr"),
        ("batch=four", "batch"),
        ("replay.capacity=6", "capacity"),
        ("warmup_items=1000", "replay.capacity"),
        ("env.image=20", "20"),
        ("seed=20000000", "seed"),
        ("resume=must", "holds no run"),
    ],
)
def test_words_that_cannot_work_are_refused_before_anything_runs(train, tmp_path, word, answer):
    code, said = train(tiny.words(tmp_path / "run", word))
    assert code == 2 and said.count("config: ") == 1 and answer in said.split("config: ")[1]


def test_a_changed_configuration_is_shown_and_refused_or_allowed_by_name(train, run):
    before = tiny.outcome(run)
    code, said = train(tiny.words(run, "agent.lr=2e-3", "batch=2"))
    assert code == 2
    assert "agent.lr: 0.001 -> 0.002" in said and "batch: 4 -> 2" in said and "allow_config_change" in said
    assert tiny.outcome(run) == before
    code, said = train(tiny.words(run, "agent.lr=2e-3", "allow_config_change=[agent.lr]"))
    assert code == 0 and "changed on resume, as allowed: agent.lr: 0.001 -> 0.002" in said
    code, said = train(tiny.words(run, "agent.lr=2e-3", steps=62))
    assert code == 0, "the allowed change is the run's configuration from then on"


@pytest.mark.parametrize("word", ["envs=4", "seed=1", "env.length=8", "replay.capacity=60", "length=5"])
def test_what_the_stored_experience_is_made_of_never_changes(train, run, word):
    code, said = train(tiny.words(run, word, "allow_config_change=[all]"))
    assert code == 2 and word.split("=")[0] in said and "another logdir=" in said


def test_an_allowed_change_of_the_architecture_is_told_from_a_torn_file(train, run):
    code, said = train(tiny.words(run, "agent.units=16", "allow_config_change=[agent.units]"))
    assert code == 1 and "does not fit this agent" in said and "Snapshot" not in said


def test_another_folder_is_never_touched(train, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("precious")
    code, said = train(tiny.words(folder))
    assert code == 2 and "not a run of torchmem" in said
    assert [f.name for f in folder.iterdir()] == ["chapter1.tex"]


def test_another_runs_folder_is_never_overwritten(train, run, tmp_path):
    before = tiny.outcome(run)
    assert train(tiny.words(run, "resume=never"))[0] == 2
    code, said = train(tiny.words(tmp_path / "new", f"replay.directory={run / 'replay'}"))
    assert code == 1 and "holds the replay" in said and "replay.directory" in said
    assert tiny.outcome(run) == before


def test_one_run_at_a_time(train, run):
    from torchmem.training.replay_home import _lock

    held = os.fork()  # a lock of this process would not stop this process
    if not held:
        _lock(run / "replay" / "rank0")
        signal.pause()
    try:
        while True:
            code, said = train(tiny.words(run, steps=40))
            if code:
                break
        assert code == 1 and "in use by another process" in said
    finally:
        os.kill(held, signal.SIGKILL)
        os.waitpid(held, 0)


# Torn files ----------------------------------------------------------------------------------------------------------

PARTS = ["agent/agent.json", "agent/agent.safetensors", "shared.json", "shared.safetensors", "rank0.json"]


@pytest.mark.parametrize("part", [*PARTS, "rank0.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_truncated_snapshot_names_the_file_and_the_way_out(train, run, straight, part, share):
    file = tiny.snapshot(run) / part
    os.truncate(file, int(file.stat().st_size * share))
    code, said = train(tiny.words(run))
    assert code == 1 and str(file) in said
    older, newer = sorted(f.name for f in (run / "ckpt").glob("0*"))
    assert f"echo {older} > {run / 'ckpt' / 'latest'}" in said
    if share:
        (run / "ckpt" / "latest").write_text(older)
        assert train(tiny.words(run))[0] == 0
        assert not (run / "ckpt" / newer).exists()
        assert tiny.outcome(run) == straight


def test_without_an_older_snapshot_it_says_so(train, run):
    shutil.rmtree(sorted((run / "ckpt").glob("0*"))[0])
    (tiny.snapshot(run) / "rank0.json").unlink()
    code, said = train(tiny.words(run))
    assert code == 1 and "rank0.json is missing" in said and "save.keep=2" in said


@pytest.mark.parametrize("name", ["ckpt/latest", "run.json", "config.json", "replay/rank0/replay.json"])
def test_other_torn_files_are_named(train, run, name):
    (run / name).write_text((run / name).read_text()[:3])
    code, said = train(tiny.words(run))
    assert code in (1, 2) and name.split("/")[-1] in said


@pytest.mark.parametrize("pattern", ["data/deter.memmap", "data/meta.json", "journal/*.undo"])
def test_a_torn_replay_is_named(train, run, pattern):
    file = sorted((run / "replay" / "rank0").glob(pattern))[-1]
    os.truncate(file, 20)
    code, said = train(tiny.words(run))
    assert code == 1 and "the replay in" in said and "cannot be resumed" in said


def test_what_a_crash_left_half_written_does_not_outlive_the_next_snapshot(train, run, straight):
    """Its number is higher than that of the next real snapshot, so a careless clean-up would keep it instead."""
    (run / "ckpt" / "000000000055-000000099").mkdir()
    assert train(tiny.words(run, "save.every_s=1e-6"))[0] == 0
    assert tiny.outcome(run) == straight
    assert len(list((run / "ckpt").glob("0*"))) == 1


# NaN, worlds, GL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, answer", [("loss", "not finite"), ("gradient", "gradient_norm=")])
def test_what_is_not_finite_ends_the_run_and_is_not_saved(train, run, straight, monkeypatch, kind, answer):
    with monkeypatch.context() as patch:
        at(patch, 46, lambda x: poison(x, kind))
        code, said = train(tiny.words(run, "save.every_s=1e-6"))
    assert code == 1 and said.count("NaNLoss") == 1
    assert answer in said and "allow_config_change=[agent.lr]" in said
    assert train(tiny.words(run))[0] == 0
    assert tiny.outcome(run) == straight, "something was saved after it"


def poison(x: Experiment, kind: str) -> None:
    if kind == "loss":
        loss = x.learner.loss
        x.learner.loss = lambda *a: dataclasses.replace(out := loss(*a), total=out.total * torch.nan)
    else:  # an overflow on the way back: the loss itself is fine
        x.learner.parameters[0].register_hook(lambda grad: grad * torch.inf)


@pytest.mark.parametrize("key", ["reward", "vector"])
def test_a_world_that_gives_nan_is_named_and_nothing_of_it_is_stored(train, run, straight, monkeypatch, key):
    with monkeypatch.context() as patch:
        if key == "reward":
            broken = ("_advance", lambda *_: (float("nan"), False, False))
        else:
            broken = ("_observe", lambda _: {"vector": np.full(4, np.nan, np.float32)})
        at(patch, 46, lambda x: patch.setattr(DummyWorld, *broken))
        code, said = train(tiny.words(run, "on_env_error=raise", "save.every_s=1e-6"))
    assert code == 1 and "WorldFailed" in said and f"{key}" in said
    assert "the world gave the reward nan" in said or "'vector' that is not finite" in said
    assert train(tiny.words(run))[0] == 0
    assert tiny.outcome(run) == straight


def test_a_worker_that_dies_is_restarted_and_its_row_marked(tmp_path):
    from torchmem.training.config import compose
    from torchmem.training.processes import Processes

    config = compose(tiny.words(tmp_path / "run", "workers=2", "env.vary=false"))
    x = Experiment(config, Processes(), torch.device("cpu"))
    try:
        x.open_replay("me")
        for _ in range(4):
            x.collect()
        os.kill(x.envs._groups[1].pid, signal.SIGKILL)
        x.collect()
        flags = {key: x.replay._store.gather(key, np.arange(40)).reshape(2, 20) for key in ("is_first", "is_last")}
        assert x.envs.restarted.tolist() == [False, True]
        assert flags["is_last"][:, :5].tolist() == [[False] * 5, [False, False, False, True, False]]
        assert flags["is_first"][:, :5].tolist() == [[True] + [False] * 4, [True, False, False, False, True]]
        for _ in range(20):
            x.collect()
            for _ in range(x.updates_due()):
                x.learn()
        assert x.clock.updates > 5
    finally:
        x.close()


@pytest.mark.parametrize("reaction", ["restart", "raise"])
def test_a_worker_killed_in_a_running_training(train, tmp_path, monkeypatch, reaction):
    at(monkeypatch, 40, lambda x: os.kill(x.envs._groups[0].pid, signal.SIGKILL))
    words = tiny.words(tmp_path / "run", "workers=1", f"on_env_error={reaction}", "save.every_s=1e-6")
    code, said = train(words)
    assert "exit code -9" in said
    if reaction == "raise":
        assert code == 1 and said.count("WorldFailed") == 1
        code, said = train(words)
        assert "resumed from snapshot 000000000040" in said
    assert code == 0


def test_a_world_that_raises_ends_the_run_with_its_own_traceback(train, tmp_path, monkeypatch):
    at(monkeypatch, 40, lambda x: monkeypatch.setattr(DummyWorld, "_advance", lambda *_: 1 / 0))
    code, said = train(tiny.words(tmp_path / "run", "on_env_error=raise"))
    assert code == 1 and "WorldFailed" in said and "ZeroDivisionError" in said and "host.py" in said


def test_without_gl_the_run_says_what_to_install(train, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "bogus")
    code, said = train(tiny.words(tmp_path / "run", "workers=1", world=["env=memory_maze", "replay.capacity=100"]))
    assert code == 1 and "MUJOCO_GL=bogus does not work here" in said and "torchmem doctor" in said
    assert "Traceback" not in said


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(train, tmp_path, monkeypatch, straight, number):
    folder = tmp_path / "run"
    at(monkeypatch, 34, lambda x: os.kill(os.getpid(), number))
    code, said = train(tiny.words(folder))
    assert code == 128 + number
    assert f"{number.name}: saving a snapshot" in said and "resume:   python" in said
    assert tiny.snapshot(folder).name.startswith("000000000036-")
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "the handler was left behind"
    code, said = train(tiny.words(folder))
    assert code == 0 and "resumed from snapshot" in said
    assert tiny.outcome(folder) == straight


def test_the_second_ctrl_c_does_not_wait(train, run, monkeypatch, straight):
    before = tiny.outcome(run)
    at(monkeypatch, 46, lambda x: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    code, said = train(tiny.words(run))
    assert code == 130 and "stopped without saving" in said and "Traceback" not in said
    assert tiny.snapshot(run).name == before["id"]
    assert train(tiny.words(run))[0] == 0
    assert tiny.outcome(run) == straight


def test_ctrl_c_while_saving_lets_the_snapshot_finish(train, run, monkeypatch, straight):
    write = Snapshots.write
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "write", lambda *a: (os.kill(os.getpid(), signal.SIGINT), write(*a))[1])
        code, _ = train(tiny.words(run, "save.every_s=1e-6"))
    assert code == 130
    assert train(tiny.words(run))[0] == 0
    assert tiny.outcome(run) == straight


def test_a_snapshot_of_another_version_is_refused_by_what_it_lacks(run, train, monkeypatch):
    read = Snapshots.read

    def older(self, name, agent):
        shared, own = read(self, name, agent)
        del own["acting"]
        return shared, own

    before = {f: f.read_bytes() for f in run.rglob("ckpt/**/*") if f.is_file()}
    monkeypatch.setattr(Snapshots, "read", older)
    code, said = train(tiny.words(run, "save.keep=2", steps=50))
    assert code == 1 and "holds no 'acting': another version of torchmem wrote it" in said
    assert before == {f: f.read_bytes() for f in run.rglob("ckpt/**/*") if f.is_file()}
