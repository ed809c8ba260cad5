"""The two commands: train.py and torchmem. Each as a user meets it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchmem.cli import VERBS, main

ROOT = Path(__file__).resolve().parent.parent


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("agent.lrr=3", "did you mean 'agent.lr'?"),
        ("env.size=big", "env.size: expected int"),
        ("--hlep", "unknown flag --hlep"),
    ],
)
def test_train_refuses_a_wrong_word_in_one_line_with_code_2(word, answer):
    result = python("train.py", "env=memory_maze", word)
    assert result.returncode == 2
    assert answer in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_train_help_is_about_the_chosen_world():
    result = python("train.py", "--help", "env=dummy")
    assert result.returncode == 0, result.stderr
    assert "env.ending=truncated" in result.stdout and "[dummy]" in result.stdout


def test_hydra_leaves_no_folder_behind(tmp_path):
    python("train.py", "--help")
    assert not (ROOT / "outputs").exists() and not (ROOT / "multirun").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_starting_is_cheap():
    lines = [
        "import contextlib, sys, torchmem.cli",
        "with contextlib.suppress(SystemExit): torchmem.cli.main(['--help'])",
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)",
    ]
    code = "\n".join(lines)
    assert python("-c", code).returncode == 0, "a verb imports what it needs when it runs, not before"


def test_envs_lists_each_argument_with_its_meaning(capsys):
    assert main(["envs", "minigrid_memory"]) == 0
    text = capsys.readouterr().out
    for word in ("env=minigrid_memory", "torchmem/MemoryS13-v0", "truth: pos (cells)", "chance 0.5", "env.view=3"):
        assert word in text
    assert "env=dummy" not in text
    assert main(["envs", "dumy"]) == 2
    assert "did you mean 'dummy'?" in capsys.readouterr().err


def test_an_error_is_one_line_unless_the_traceback_is_asked_for(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"torchmem plot: {tmp_path} is not a run: it holds no config.json\n"
    with pytest.raises(ValueError):
        main(["--traceback", "plot", str(tmp_path)])
