"""Stages that fail, are stopped or killed: a half-done one is never taken as done, and two pipelines do not collide."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.planted import chain, ledger, read, run, text
from torchmem.pipeline.plan import plan
from torchmem.pipeline.run import StageFailed

# python -c SLOW out folder [quick]: writes half, says so, waits for folder/go, writes the other half
SLOW = """
code: ignore
folder: {folder}
cache: {cache}
stages:
  slow:
    command: [python, {slow}, "${{out}}", {tmp}]
    resume: {resume}
  after: bash -c 'cp $0/text $1/text' ${{slow}} ${{out}}
"""
SCRIPT = """
import os, pathlib, signal, sys, time
out, folder = map(pathlib.Path, sys.argv[1:])
def say(word):
    with open(folder / "ledger", "a") as file:
        file.write(f"{word}\\n")
def leave(number, frame):
    say("left")
    sys.exit(128 + number)
signal.signal(signal.SIGINT, leave)
say("goes-on" if (out / "half").exists() else "begins")
(out / "half").write_text("half")
(folder / "pid").write_text(str(os.getpid()))
while not (folder / "go").exists():
    time.sleep(0.02)
(out / "text").write_text("whole")
say("ends")
"""


def slow(tmp_path: Path, resume: str = "false", **told) -> Path:
    (tmp_path / "slow.py").write_text(SCRIPT)
    return chain(tmp_path, text=SLOW, slow=tmp_path / "slow.py", tmp=tmp_path, resume=resume, **told)


def start(path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torchmem.cli", "pipeline", str(path), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(tmp_path: Path, name: str = "pid") -> None:
    until = time.monotonic() + 60
    while not (tmp_path / name).exists() or not (tmp_path / name).read_text():
        assert time.monotonic() < until, f"{name} did not come"
        time.sleep(0.02)


def kill(tmp_path: Path) -> None:
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("resume", "again"), [("false", "begins"), ("true", "goes-on")])
def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path, resume, again):
    path = slow(tmp_path, resume)
    process = start(path)
    wait_for(tmp_path)
    process.kill()
    process.communicate()
    kill(tmp_path)
    assert ledger(tmp_path) == ["begins"]
    assert [v.state for v in plan(read(path))] == ["run", "waits"]
    assert not (tmp_path / "run" / "slow").exists()
    (tmp_path / "go").touch()
    assert run(path) == {"slow": "done", "after": "done"}
    assert ledger(tmp_path) == [again, "ends"] and text(tmp_path, "after") == "whole"


def test_a_command_that_outlives_its_pipeline_is_waited_for(tmp_path):
    path = slow(tmp_path)
    first = start(path)
    wait_for(tmp_path)
    first.kill()
    first.communicate()
    second = start(path)
    line = ""
    while "waiting" not in line:
        line = second.stderr.readline()
        assert line, "it ended without waiting"
    assert "or the command it started" in line
    assert ledger(tmp_path) == ["begins"], "nobody writes beside it"
    (tmp_path / "go").touch()
    assert second.wait(60) == 0
    second.communicate()
    assert ledger(tmp_path) == ["ends", "begins", "ends"], "what it has made cannot be trusted: nobody saw it end well"


def test_two_pipelines_at_once_make_a_stage_once(tmp_path):
    one, other = slow(tmp_path), slow(tmp_path, name="other.yaml", folder=tmp_path / "elsewhere")
    first = start(one)
    wait_for(tmp_path)
    second = start(other)
    while "waiting" not in (line := second.stderr.readline()):
        assert line, "it did not wait"
    (tmp_path / "go").touch()
    assert first.wait(60) == second.wait(60) == 0
    assert "slow: cached" in second.communicate()[1]
    first.communicate()
    assert ledger(tmp_path) == ["begins", "ends"]
    assert (tmp_path / "elsewhere" / "after" / "text").read_text() == "whole"


def test_ctrl_c_reaches_the_command_once_and_the_same_words_go_on(tmp_path):
    path = slow(tmp_path, "true")
    process = start(path)
    wait_for(tmp_path)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped in stage slow; the same command goes on" in err
    assert ledger(tmp_path) == ["begins", "left"]
    assert plan(read(path))[0].why == "interrupted the last time"
    (tmp_path / "go").touch()
    assert run(path)["after"] == "done"
    assert ledger(tmp_path) == ["goes-on", "ends"]


FAILS = """
folder: {folder}
stages:
  bad: [bash, -c, "for i in $(seq 99); do echo line $i; done; echo half > $0/x; exit {code}", "${{out}}"]
  needs: bash -c 'cp $0/x $1/x' ${{bad}} ${{out}}
  more: bash -c 'cp $0/x $1/x' ${{needs}} ${{out}}
  other: bash -c 'echo 1 > $0/x' ${{out}}
"""


def test_a_failure_shows_the_end_of_its_log_and_ends_the_run(tmp_path):
    path = chain(tmp_path, text=FAILS, code=3)
    with pytest.raises(StageFailed) as caught:
        run(path)
    told = str(caught.value)
    assert "stage bad ended with code 3" in told and "line 99" in told and "line 79" not in told
    assert Path(told.rpartition("all of it: ")[2]).read_text().count("line") > 99
    assert not (tmp_path / "run" / "other").exists()
    assert plan(read(path))[0].why == "failed the last time"


def test_keep_going_runs_what_does_not_need_the_failed_one(tmp_path):
    path = chain(tmp_path, text=FAILS, code=3)
    states = {"bad": "failed", "needs": "skipped", "more": "skipped", "other": "done"}
    assert run(path, keep_going=True) == states
    states = {"bad": "done", "needs": "done", "more": "done", "other": "cached"}
    assert run(chain(tmp_path, text=FAILS, code=0)) == states


def test_a_stage_that_writes_nothing_has_failed(tmp_path):
    with pytest.raises(StageFailed, match=r"has written nothing into \$\{out\}"):
        run(chain(tmp_path, text="folder: {folder}\nstages:\n  a: 'true ${{out}}'\n"))
