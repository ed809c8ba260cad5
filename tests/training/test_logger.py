"""metrics.jsonl holds the truth after crashes, resumes, full disks and failing viewers."""

from __future__ import annotations

import io
import itertools
import json
import logging
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchmem.training.averages import Averages
from torchmem.training.clock import Clock
from torchmem.training.logger import DROPPED, METRICS, Logger, read_metrics
from torchmem.training.sinks import open_sinks

CLOCKS = {"env_steps", "agent_steps", "updates", "episodes", "replay_ratio", "wall_s", "time"}


def logger(folder: Path, clock: Clock | None = None, **kwargs) -> Logger:
    return Logger(folder, clock or Clock(action_repeat=2), **{"sinks": (), **kwargs})


def test_every_row_carries_all_clocks_and_plain_numbers(tmp_path):
    clock = Clock(action_repeat=2)
    with logger(tmp_path, clock) as log:
        clock.collected(8)
        log.log({"a": torch.tensor(1.5), "b": np.float32(2), "c": 3, "note": "text"}, prefix="loss/")
    (row,) = read_metrics(tmp_path)
    assert set(row) >= CLOCKS
    assert row["agent_steps"] == 8 and row["env_steps"] == 16
    assert (row["loss/a"], row["loss/b"], row["loss/c"], row["loss/note"]) == (1.5, 2.0, 3.0, "text")


def test_numbers_that_are_not_finite_stay_visible_in_valid_json(tmp_path):
    with logger(tmp_path) as log:
        log.log({"a": float("nan"), "b": float("inf"), "c": torch.tensor(float("-inf"))})
    line = (tmp_path / METRICS).read_text()
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (row,) = read_metrics(tmp_path)
    assert np.isnan(row["a"]) and row["b"] == np.inf and row["c"] == -np.inf


def test_a_metric_may_not_hide_a_clock_or_be_an_array(tmp_path):
    with logger(tmp_path) as log:
        with pytest.raises(ValueError, match="updates"):
            log.log({"updates": 3})
        with pytest.raises(ValueError, match=r"'x' is not one number: Tensor \(2,\)"):
            log.log({"x": torch.zeros(2)})
    assert read_metrics(tmp_path) == []


def test_resume_moves_the_rows_after_the_snapshot_away(tmp_path):
    with logger(tmp_path) as log:
        log.log({"a": 1})
        mark = log.watermark()
        log.log({"a": 2})
        log.log({"a": 3})
    with logger(tmp_path, watermark=mark) as log:
        log.log({"a": 4})
    assert [r["a"] for r in read_metrics(tmp_path)] == [1, 4]
    assert [r["a"] for r in read_metrics(tmp_path / DROPPED)] == [2, 3]
    with logger(tmp_path, watermark=0) as log:
        pass
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_cut_and_whole_rows_stay(tmp_path):
    with logger(tmp_path) as log:
        log.log({"a": 1})
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'{"a": 2, "b"')
    assert [r["a"] for r in read_metrics(tmp_path)] == [1], "a reader never sees half a row"
    with logger(tmp_path) as log:
        log.log({"a": 3})
    assert [r["a"] for r in read_metrics(tmp_path)] == [1, 3]


def test_a_watermark_of_another_file_is_refused_and_nothing_is_cut(tmp_path):
    with logger(tmp_path) as log:
        log.log({"a": 1})
    before = (tmp_path / METRICS).read_bytes()
    for wrong in (len(before) + 1, len(before) - 3):
        with pytest.raises(ValueError, match="does not fit"):
            logger(tmp_path, watermark=wrong)
    assert (tmp_path / METRICS).read_bytes() == before


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / METRICS).write_text('{"a": 1}\nrubbish\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_kill_at_any_instant_leaves_whole_rows(tmp_path):
    code = """
        import sys
        from torchmem.training.clock import Clock
        from torchmem.training.logger import Logger
        log = Logger(sys.argv[1], Clock(), ())
        for n in range(10**6):
            log.log({"n": n, "pad": "x" * 5000})
    """
    path = tmp_path / METRICS
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
        size = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 60
        while (path.stat().st_size if path.exists() else 0) < size + 200_000:
            assert child.poll() is None and time.monotonic() < deadline, "the child logs nothing"
            time.sleep(0.01)
        child.kill()
        child.wait()
        logger(tmp_path).close()
        lines = path.read_bytes().splitlines()
        assert all(json.loads(line) for line in lines)
    counts = [r["n"] for r in read_metrics(tmp_path)]
    assert counts.count(0) == 3, "three sittings"
    assert all(b == a + 1 or b == 0 for a, b in itertools.pairwise(counts)), "no row is lost inside a sitting"


def test_a_full_disk_ends_with_one_clear_error_and_whole_rows(tmp_path, monkeypatch):
    log = logger(tmp_path)
    log.log({"a": 1})

    class Full:
        """A file on a disk with room for ten more bytes."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:10])

        def fileno(self):
            return self.file.fileno()

    real = log._file
    monkeypatch.setattr(log, "_file", Full(real))
    with pytest.raises(OSError, match=r"metrics\.jsonl: No space left on device.*resume"):
        log.log({"a": 2})
    monkeypatch.setattr(log, "_file", real)
    log.log({"a": 3})
    log.close()
    assert [r["a"] for r in read_metrics(tmp_path)] == [1, 3]


def test_a_sink_that_fails_is_given_up_with_one_warning(tmp_path, caplog):
    class Broken:
        name = "Broken"
        calls = 0

        def scalars(self, values, *, step):
            self.calls += 1
            raise RuntimeError("no connection")

    log, broken = logger(tmp_path), Broken()
    log._sinks.append(broken)
    with caplog.at_level(logging.WARNING, logger="torchmem"):
        log.log({"a": 1})
        log.log({"a": 2})
    log.close()
    assert broken.calls == 1 and len(caplog.records) == 1 and "no connection" in caplog.text
    assert [r["a"] for r in read_metrics(tmp_path)] == [1, 2]


def test_a_sink_that_is_asked_for_and_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_sinks(["wandb"], tmp_path, 0, {})
    with pytest.raises(ValueError, match="unknown sink 'tensorbord'"):
        open_sinks(["tensorbord"], tmp_path, 0, {})


def test_videos_and_images_lie_in_the_folder_and_in_tensorboard(tmp_path):
    clock = Clock(action_repeat=2)
    frames = np.random.default_rng(0).integers(0, 255, (6, 20, 30, 3), dtype=np.uint8)
    with logger(tmp_path, clock, sinks=["tensorboard"]) as log:
        clock.collected(50)
        log.log({"loss": 0.5})
        gif = log.video("eval/open_loop", frames, fps=10)
        png = log.image("eval/first", frames[0])
    assert gif.name == "eval_open_loop-0000000100.gif" and gif.parent == tmp_path / "videos"
    with Image.open(gif) as picture:
        assert (picture.n_frames, picture.size, picture.info["duration"]) == (6, (30, 20), 100)
    with Image.open(png) as picture:
        assert np.array_equal(np.array(picture), frames[0])

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (point,) = events.Scalars("loss")
    assert (point.step, point.value) == (100, 0.5)
    assert events.Scalars("clock/agent_steps")[0].value == 50
    shown = events.Images("eval/open_loop")[0]
    with Image.open(io.BytesIO(shown.encoded_image_string)) as picture:
        assert picture.n_frames == 6


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_frames_of_another_kind_are_refused(tmp_path, frames):
    with logger(tmp_path) as log, pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
        log.video("v", frames)


def test_averages_are_means_since_the_last_pop_and_keep_nan():
    means, buffer = Averages(), torch.tensor(1.0, dtype=torch.float64)
    means.add({"a": buffer, "b": 1}, prefix="loss/")
    buffer.fill_(3.0)  # as CUDA graphs do with their outputs
    means.add({"a": buffer}, prefix="loss/")
    means.add({"c": torch.tensor(float("nan"))})
    found = means.pop()
    assert found["loss/a"] == 2.0 and found["loss/b"] == 1.0 and np.isnan(found["c"])
    assert means.pop() == {}
    means.add({"a": torch.tensor(2.0, requires_grad=True).to(torch.bfloat16)})
    assert means.pop() == {"a": 2.0}
