"""The smallest run that has every part: the words of its command, and ways to look at what it left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torchmem.training.logger import read_metrics

AGENT = (
    "size=1m agent.deter=32 agent.hidden=8 agent.units=8 agent.stoch=4 agent.classes=4 agent.depth=2 agent.blocks=4 "
    "agent.imag_length=3 agent.bins=21 agent.decoder_blocks=4 agent.vector_layers=1 agent.policy_layers=1 "
    "agent.value_layers=1 agent.prior_layers=1 agent.lr=1e-3 agent.warmup=0"
).split()
LOOP = (
    "trainer=cpu trainer.threads=1 trainer.matmul=default envs=2 workers=0 batch=4 length=4 warmup_items=8 "
    "eval.episodes=2 eval.every_steps=0 log.every_s=1e-6 log.video_every_s=0 log.sinks=[] save.every_s=0"
).split()
# 20 rows of 2 envs: the ring wraps at 40 agent steps. 5 updates in 8 iterations: credit is carried over.
DUMMY = "env=dummy env.image=0 env.length=7 env.vary=true env.ending=both replay.capacity=40 ratio=5".split()
MEMORY = "env=minigrid_memory env.size=7 env.max_steps=9 replay.capacity=40 ratio=5".split()
IMAGE = "env=dummy env.image=48 env.length=7 replay.capacity=40 ratio=5".split()


def words(logdir: Path, *more: str, world: list[str] = DUMMY, steps: int = 60) -> list[str]:
    """The command `train.py` gets; later words win."""
    both = [*world, *AGENT, *LOOP, f"steps={steps}", f"logdir={logdir}", *more]
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in both).items()]


def snapshot(logdir: Path) -> Path:
    return logdir / "ckpt" / (logdir / "ckpt" / "latest").read_text().strip()


def outcome(logdir: Path) -> dict[str, Any]:
    """All that a run came to: weights, optimiser, worlds, random states, replay rows. Not its clock on the wall."""
    place = snapshot(logdir)
    files = [*place.glob("**/*.safetensors"), *(logdir / "replay").glob("**/*.memmap")]
    assert len(files) > 8, f"too few files: {files}"
    hashes = {str(f.relative_to(place if place in f.parents else logdir)): digest(f) for f in sorted(files)}
    shared = json.loads((place / "shared.json").read_text())
    del shared["watermark"], shared["clock"]["wall_s"]
    return {**hashes, "shared": shared, "id": place.name}


def rows(logdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    times = ("time", "wall_s", "steps_per_s")
    return [{k: v for k, v in row.items() if k not in times} for row in read_metrics(logdir)]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
