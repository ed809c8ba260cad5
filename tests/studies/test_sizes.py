"""Runs compared by the size of their memory."""

from __future__ import annotations

import json
import math

import torch

from tests.studies.cloned import cloned
from torchmem import cli
from torchmem.models.checkpoint import save_agent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.result import load_result


def test_runs_are_measured_and_compared(tmp_path):
    trained = cloned()
    torch.manual_seed(0)
    fresh = PPOAgent(trained.spec, trained.config)
    for name, agent, scores in (("good", trained, [0.2, 0.95, 0.6, 0.92, 1.0]), ("bad", fresh, [0.0, 0.1, 0.1])):
        save_agent(agent, tmp_path / name / "agent")
        (tmp_path / name / "config.json").write_text(json.dumps({"seed": 0}))
        rows = [{"agent_steps": 100 * i, "eval/score": s, "wall_s": 2.0 * i} for i, s in enumerate(scores)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    words = ["study", "sizes", str(tmp_path / "good"), str(tmp_path / "bad"), "--out", str(out), "--pairs", "40",
             "--episodes", "60", "--steps", "14"]  # fmt: skip
    assert cli.main(words) == 0
    result = load_result(out / "sizes")
    good, bad = (result.rows[str(tmp_path / name)] for name in ("good", "bad"))
    assert good["success"] == 1.0 and good["steps_to_90"] == 300 and good["wall_s"] == 8 and good["units"] == 16
    assert 1 <= good["k90"] <= 16 and good["k90_share"] == good["k90"] / 16 and 1 <= good["participation"] <= 16
    assert bad["success"] < 0.6 and math.isnan(bad["steps_to_90"]) and math.isnan(bad["k90"])
    assert "untouched episodes" in load_result(out / "run_1").note
    assert result.by_size("k90")["minigrid_memory 7", 16].tolist() == [good["k90"]]
    assert (out / "sizes.csv").read_text().count("\n") == 3 and (out / "report.html").is_file()
