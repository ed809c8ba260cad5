"""Units that keep their maps, units that take new ones, and units without any."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.recordings import clock, drift
from tests.analysis.test_probe_position import walk
from torchmem.analysis.nulls import spans
from torchmem.analysis.remap_units import RemapResult, remap_units
from torchmem.cli import main
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import load_result


@pytest.fixture(scope="module")
def rec(tmp_path_factory) -> Recording:
    rng = np.random.default_rng(0)
    episode, _ = clock(18, 150)
    pos, world = walk(rng, episode), episode % 3
    centres = rng.uniform(0, 5, (3, 20, 2))
    fixed = np.exp(-((pos[:, None] - centres[0]) ** 2).sum(-1) / 3)
    moved = np.exp(-((pos[:, None] - centres[world]) ** 2).sum(-1) / 3)
    noise = 0.2 * drift(rng, episode, 20, keep=0.8)
    sites = {"fixed": fixed + noise, "moved": moved + noise, "none": noise}
    with RecordingWriter(tmp_path_factory.mktemp("remap") / "rec", control_hz=1.0) as out:
        for rows in spans(episode):
            out.append({n: v[rows].astype(np.float32) for n, v in sites.items()},
                       {"pos": pos[rows], "world": world[rows], "step": np.arange(len(rows))})  # fmt: skip
        out.finish()
    return Recording(out.path)


def test_remapping_is_told_from_keeping(rec: Recording, tmp_path):
    found = remap_units(rec)
    mean = {name: (np.nanmean(found.across[name]), np.nanmean(found.within[name])) for name in found.sites}
    assert mean["fixed"][0] > 0.85 and mean["fixed"][1] > 0.8 and found.p["fixed"] < 0.02
    assert mean["moved"][0] < 0.3 and mean["moved"][1] > 0.8 and found.p["moved"] > 0.05
    assert abs(mean["none"][1]) < 0.2 and abs(np.mean(found.exchanged["fixed"])) < 0.2
    assert load_result(found.save(tmp_path / "remap")) == found and isinstance(found, RemapResult)
    assert "within a world" in found.summary() and found.worlds == ("0", "1", "2")


def test_command_line(rec: Recording, tmp_path, capsys):
    words = ["tune", str(rec.path), "--worlds", "world", "--sites", "fixed", "--shifts", "39"]
    assert main([*words, "--out", str(tmp_path / "tuning")]) == 0
    assert "units exchanged" in capsys.readouterr().out
    assert load_result(tmp_path / "tuning_remapping").sites == ("fixed",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worlds": "step"}, "changes within an episode"), ({"worlds": "pos"}, "must be one id"),
        ({"where": "world == 1"}, "needs two worlds"), ({"min_tiles": 99}, "no two worlds share 99"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_clear_error(rec: Recording, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        remap_units(rec, **change)
