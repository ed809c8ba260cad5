"""A recording of an untrained agent, and the words of the smallest simulator run on it."""

from __future__ import annotations

from pathlib import Path

import torch

from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.recording import Recording
from torchmem.surgery.model import load
from torchmem.surgery.record import record
from torchmem.training.config import compose
from torchmem.training.loop import run

WORLD = {"size": 7, "max_steps": 14}
SIZES = (
    "agent.latent=4 agent.deter=8 agent.stoch=2 agent.classes=3 agent.hidden=8 agent.encoder_units=8 "
    "agent.head_layers=1 agent.head_units=8 agent.units=8 agent.vector_layers=1 agent.held_out=0.3"
).split()
LOOP = (
    "trainer=cpu trainer.threads=1 trainer.matmul=default batch=3 length=5 eval.every_steps=0 eval.episodes=2 "
    "log.every_s=1e-6 log.video_every_s=0 log.sinks=[] save.every_s=0"
).split()
STRIDE = 3 * 4  # steps that one update counts: batch x simulated


def make_agent(folder: Path) -> Path:
    torch.manual_seed(5)
    agent = PPOAgent(env_spec("minigrid_memory", **WORLD), PPOConfig(units=6, encoder_units=8))
    return save_agent(agent, folder / "agent")


def make_recording(folder: Path, agent: Path, episodes: int = 16) -> Recording:
    return record(load(agent), episodes=episodes, envs=4, out=folder / "recording", seed=3)


def words(logdir: Path, agent: Path, recording: Path, updates: int, *more: str) -> list[str]:
    """The command `train.py` gets; later words win."""
    head = ["agent=simulator", "env=recording", f"env.path={recording}", f"env.agent={agent}"]
    both = [*head, *SIZES, *LOOP, f"steps={updates * STRIDE}", f"logdir={logdir}", *more]
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in both).items()]


def make_run(folder: Path, updates: int) -> tuple[Path, Path]:
    """(run of a simulator after so many updates, its recording)."""
    agent = make_agent(folder)
    recording = make_recording(folder, agent).path
    run(compose(words(folder / "run", agent, recording, updates)))
    return folder / "run", recording
