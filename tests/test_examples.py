"""The memory story, told by its script about a recurrent PPO agent that is trained here."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "memory_story.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_memory_story(tmp_path, capsys):
    story = runpy.run_path(str(EXAMPLE))
    model = story["train"](seed=0, size=7)
    found = story["story"](model, tmp_path, episodes=60, pairs=60)
    probe, swap = found["probe"], found["swap"]
    assert probe.score[0] > 0.9 and probe.controls["exchanged"]["score"][0] < 0.65
    won, all_of = swap.success
    assert won / all_of > 0.95
    assert swap.rate("other cue")[0] > 0.9, "the choice follows the memory"
    assert swap.rate("same cue")[0] <= 0.02, "and not the act of swapping"
    assert swap.rate("random units")[0] < 0.5 * swap.rate("top units")[0] + 0.1
    assert (tmp_path / "swap" / "figure.png").stat().st_size > 5000
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "provenance" not in page.split("<h2>")[0]
    assert "swapped" in capsys.readouterr().out
