"""The four stories, told by their scripts about small agents that are made here."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from tests.studies.cloned import cloned
from torchmem.models.checkpoint import save_agent

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LANDER = "preset=lunar_lander env.max_steps=60 envs=4 batch=4 length=16 agent.head_units=8 workers=0".split()


def script(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_memory_story(tmp_path, capsys):
    story = script("memory_story")
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


def test_circuit_and_editing_stories(tmp_path, capsys):
    """On an agent that has learned by example; two earlier agents hold its weights scaled down."""
    run, agent = tmp_path / "run", cloned()
    save_agent(agent, run / "agent")
    for steps, scale in {100: 0.0, 200: 0.3, 400: 1.0}.items():
        earlier = cloned()
        with torch.no_grad():
            for p in earlier.parameters():
                p.mul_(scale)
        save_agent(earlier, run / "ladder" / str(steps))
    search = {"alphas": (3e-3,), "seeds": 2, "rows": 32, "fit_steps": 80, "rate": 0.15, "singles": 5, "steps": 14}
    found = script("circuit_story")["story"](run, tmp_path / "c", episodes=60, **search)
    rows = found["circuit"].rows
    assert rows["circuit"]["score"] >= rows["full"]["score"] - 0.02 and rows["random 0"]["score"] < 0.6
    assert (tmp_path / "c" / "development" / "report.html").is_file()
    circuit = tmp_path / "c" / "circuit" / "circuit.safetensors"
    quick = {"rates": (2e-2,), "examples": 16, "kept": 16, "episodes": 60, "steps": 14, "most": 100}
    edits = script("editing_story")["story"](run, circuit, tmp_path / "e", edits=1, **quick)
    (result,) = edits.values()
    assert result.rows["none"]["edit"] < 0.1 < 0.8 < result.rows["circuit"]["edit"]
    assert all(row["restored"] == 1.0 for row in result.rows.values())
    assert "circuit" in capsys.readouterr().out


def test_update_story(tmp_path, capsys):
    found = script("update_story")["story"](tmp_path, LANDER, 128, 64, episodes=16, scales=(-1.0, 1.0), modules=False)
    assert found["step"].along[-1] == pytest.approx(1)
    assert (tmp_path / "update" / "figure.png").stat().st_size > 5000
    assert "fuel" in capsys.readouterr().out
