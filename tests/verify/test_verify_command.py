"""`torchmem verify`: words as for train.py, a table or JSON, exit code 1 where a check fails."""

from __future__ import annotations

import json
import math

import pytest

from tests.verify.broken_worlds import IgnoresSeed, SmallConfig
from torchmem.cli import main
from torchmem.envs import make
from torchmem.verify import verify
from torchmem.verify.report import Check, Verification, measured

WORDS = "agent=ppo agent.units=8 agent.encoder_units=8 env=dummy env.image=0 env.length=7".split()


def test_a_sound_pair_passes_with_code_0(capsys):
    assert main(["verify", *WORDS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("agent=ppo env=dummy: all 24 checks hold")
    assert sum(line.startswith(("ok ", "look ")) for line in lines) == 24


def test_json_holds_every_number(capsys):
    assert main(["verify", *WORDS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["agent"] == "ppo" and found["env"] == "dummy" and len(found["checks"]) == 24
    for check in found["checks"]:
        assert set(check) == {"name", "compared", "value", "limit", "detail", "ok"}
        assert check["limit"] is None or check["value"] <= check["limit"]


def test_a_defect_fails_with_code_1(capsys, monkeypatch):
    """A world of one's own, entered into the table of worlds."""

    class Config(SmallConfig):
        """Its arguments."""

    monkeypatch.setitem(make.CONFIGS, "forgetful", Config)
    monkeypatch.setitem(make.WORLDS, "forgetful", f"{IgnoresSeed.__module__}:{IgnoresSeed.__name__}")
    words = [word for word in WORDS if not word.startswith("env")]
    assert main(["verify", *words, "env=forgetful"]) == 1
    text = capsys.readouterr().out
    assert "FAILED  seeds: different" in text and "1 failed: seeds: different" in text
    assert not verify([*words, "env=forgetful"]).ok


@pytest.mark.parametrize(("word", "answer"), [
    ("agent.lrr=3", "did you mean 'agent.lr'?"), ("env=dumy", "did you mean 'dummy'?"), ("env.image=-1", "at least 0"),
])
def test_wrong_words_are_told_in_one_line(word, answer, capsys):
    assert main(["verify", *WORDS, word]) == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1


def test_a_check_that_raises_or_finds_nan_fails():
    assert measured("a", "b", 1, lambda: (1.0, "")).ok
    assert not measured("a", "b", 1, lambda: (math.nan, "")).ok
    broken = measured("a", "b", 1, lambda: next(iter(()), None) + 1)
    assert not broken.ok and broken.value == math.inf and broken.detail.startswith("TypeError: unsupported")


def test_the_table_marks_what_failed_and_what_to_look_at():
    checks = (Check("fine", "x", 0, 0), Check("seen", "y", 2, math.inf, "a is b"), Check("off", "z", 3, 1))
    found = Verification("ppo", "dummy", checks)
    lines = found.summary().splitlines()
    assert [line.split()[0] for line in lines if line] == ["ok", "look", "a", "FAILED", "agent=ppo"]
    assert found.failed == ["off"] and "3 > 1" in lines[3]
    assert [c["limit"] for c in json.loads(found.to_json())["checks"]] == [0, None, 1]
