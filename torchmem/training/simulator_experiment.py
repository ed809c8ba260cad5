"""Everything a simulator's training consists of: a recording in place of worlds, otherwise `Experiment`.

A step is one recorded step gone through: every update counts batch x simulated steps, and `steps` ends the run. Nothing
is collected; replay is filled once, from the levels that are not held out.
"""

from __future__ import annotations

import dataclasses
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.models.checkpoint import CheckpointError, load, new_agent, read_card, save_agent
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.files import FROZEN
from torchmem.models.synthetic import random_batch
from torchmem.recording import Recording, RecordingError
from torchmem.training.clock import Clock
from torchmem.training.compile import CompileReport, check_gradients, compile_loss, wanted
from torchmem.training.experiment import Experiment, as_config_error
from torchmem.training.learner import Learner
from torchmem.training.processes import Processes
from torchmem.training.recorded import check_recording, read_rows, split_levels, spread_places, windows_at
from torchmem.training.recorded_config import RecordedConfig
from torchmem.training.replay import Replay
from torchmem.training.replay_size import bytes_per_step, readable
from torchmem.training.run_config import RunConfig
from torchmem.training.snapshot import Snapshots
from torchmem.training.tree import TornFile
from torchmem.training.typed import ConfigError

WAY = "needs env=recording env.path=RECORDING env.agent=RUN (as torchmem simulator train writes it)"


class SimulatorExperiment(Experiment):
    """Recording, frozen agent, simulator, replay, learner and clock of one process.

    Several processes: each holds its share of the training episodes, and batch / N sequences of every update.
    """

    LOOK = "torchmem simulator report {logdir}   |   torchmem simulate {logdir} --out FOLDER"

    def __init__(self, config: RunConfig, processes: Processes, device: torch.device) -> None:
        self.config, self.processes = config, processes
        if config.batch % processes.size:
            raise ConfigError(f"batch={config.batch} cannot be shared by {processes.size} processes")
        if not isinstance(config.env, RecordedConfig):
            raise ConfigError(f"agent=simulator learns from a recording, not from env={config.env_name}: {WAY}")
        if config.replay.long_term is not None or config.log.collect or config.trainer.policy_device:
            raise ConfigError("replay.long_term, log.collect and trainer.policy_device are not for agent=simulator")
        self.logdir, self.batch = Path(str(config.logdir)), config.batch // processes.size
        self.snapshots = Snapshots(self.logdir, processes, config.save.keep)
        agent = self._frozen_agent(device)
        self.spec = agent.spec
        try:
            self.recording = Recording(config.env.path)
        except RecordingError as error:
            raise ConfigError(f"env.path: {error}") from error
        check_recording(self.recording, self.spec)
        training, self.held_out = split_levels(self.recording, config.agent.held_out)
        self.episodes = training[processes.rank :: processes.size]
        loop = AgentLoop(agent)
        torch.manual_seed(config.seed)
        with as_config_error():
            sized = dataclasses.replace(config.agent, guessed=loop.packing.guessed)
            self.agent: Any = new_agent(self.spec, sized).to(device)
            self.agent.attach(loop)
            self.simulated = self.agent.steps(config.length)
        self.agent.dtype = torch.bfloat16 if config.trainer.precision == "bfloat16" else torch.float32
        self.learner = Learner(self.agent, self.batch, config.length, config.seed, processes)
        self.clock = Clock(self.spec.action_repeat)
        self.taps, self.replay = None, None  # type: ignore[assignment]
        self._rows: list[dict[str, np.ndarray]] | None = None

    def _frozen_agent(self, device: torch.device) -> Any:
        """The agent in the loop: the copy that the run keeps, made of `env.agent` when it begins."""
        copy, source = self.logdir / FROZEN, self.config.env.agent
        try:
            if self.snapshots.latest() is None:
                if not source or not self.config.env.path:
                    raise ConfigError(f"agent=simulator {WAY}")
                if self.processes.main:
                    agent = load(source)
                    shutil.rmtree(copy, ignore_errors=True)  # of a start that failed
                    save_agent(agent, copy)
                self.processes.barrier()
            return load(copy, device)
        except CheckpointError as error:
            raise ConfigError(f"env.agent: {error}") from error

    def compile(self) -> CompileReport | None:
        """Compile the loss where the configuration and the device ask for it, and check the gradients."""
        if not wanted(self.config.compile, self.device):
            return None
        loss = compile_loss(self.agent)
        noise = self.agent.training_noise(self.batch, self.config.length, torch.Generator(self.device).manual_seed(0))
        batch = random_batch(self.agent, self.batch, self.config.length)
        report = check_gradients(self.agent, loss, batch, noise)
        self.learner.loss = loss
        return report

    @property
    def stride(self) -> int:
        """Recorded steps that one update goes through, over all processes."""
        return self.config.batch * self.simulated

    def describe(self) -> list[str]:
        """The lines shown before the first step."""
        c, rec, replay = self.config, self.recording, self.replay
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {c.trainer.threads}"
        weights = read_card(self.logdir / FROZEN)["weights_sha256"]
        other = "" if rec.provenance.weights == weights else "; NOTE: recorded with other weights than the agent's"
        per_step = bytes_per_step(self.schema)
        return [
            f"simulator {self.agent.config.transition}, {self.agent.config.bottleneck}: "
            f"{sum(p.numel() for _, p in self.agent.trained()):,} trained parameters around "
            f"{sum(p.numel() for p in self.agent.loop.agent.parameters()):,} frozen ones of {c.env.agent}",
            f"device {name} threads; compute {c.trainer.precision}; {self.processes.size} process(es); compile "
            f"{c.compile}",
            f"recording {rec.path}: {len(rec.episodes)} episodes, {len(self.held_out)} on levels held out{other}",
            f"replay {replay.rows:,} steps x {per_step:,} B = {readable(replay.rows * per_step)}",
            f"{c.steps:,} steps in updates on {c.batch} x {self.simulated}, {c.steps / (replay.rows or 1):.1f} times "
            f"through what was recorded",
            f"run folder {self.logdir}",
        ]

    # The data ----------------------------------------------------------------------------------------------------

    def open_replay(self, owner: str) -> None:
        """A new replay, filled from the recording. Raises ConfigError for a recording that is too short."""
        steps = int(self.recording.episodes["length"][self.episodes].sum()) if self.episodes else 0
        with as_config_error():
            self.replay = Replay(
                self.schema, 1, steps, self.config.length + 1, self.replay_folder,
                seed=self.config.seed * 1009 + self.processes.rank, online=False, latents=(), owner=owner,
                pin=self.device.type == "cuda",
            )  # fmt: skip
        for rows in read_rows(self.recording, self.agent.loop, self.episodes, self.config.seed):
            for t in range(len(rows["reward"])):
                self.replay.add({key: values[t : t + 1] for key, values in rows.items()})

    def collect(self) -> list[tuple[int, float, int]]:
        """Nothing is collected: what is recorded is there. Counts the steps of the update that follows."""
        self.clock.collected(self.stride)
        return []

    def updates_due(self) -> int:
        return 1

    def learn(self) -> dict[str, torch.Tensor]:
        """One update on recorded sequences. Returns its metrics, on the device."""
        batch = self.replay.sample(self.batch)
        del batch["index"]
        out = self.learner.update({k: v.to(self.device, non_blocking=True) for k, v in batch.items()})
        self.clock.updated(self.stride)
        return out.metrics

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """The losses on windows of `eval.episodes` held-out episodes, two of each, with noise that never changes."""
        if self._rows is None:
            some = self.held_out[: self.config.eval.episodes]
            self._rows = list(islice(read_rows(self.recording, self.agent.loop, some), len(some)))
        places = spread_places(self._rows, 2, self.simulated, seed=0)
        totals: dict[str, list[float]] = {}
        for begin in range(0, len(places), self.config.batch):
            part = places[begin : begin + self.config.batch]
            batch = windows_at(self._rows, part, self.agent.context, self.simulated)
            generator = torch.Generator(self.device).manual_seed(begin)
            noise = self.agent.training_noise(len(part), self.config.length, generator)
            metrics = self.agent.loss({k: v.to(self.device) for k, v in batch.items()}, noise).metrics
            for name, value in metrics.items():
                totals.setdefault(f"held_out/{name}", []).extend([float(value)] * len(part))
        return {name: float(np.mean(values)) for name, values in totals.items()}

    # State ---------------------------------------------------------------------------------------------------------

    def _source(self) -> dict[str, Any]:
        """What tells this recording from another one in its place."""
        rec = self.recording
        return {"steps": rec.steps, "episodes": len(rec.episodes), "weights": rec.provenance.weights,
                "date": rec.provenance.date}  # fmt: skip

    def save(self, extra: dict[str, Any]) -> str:
        """Write a snapshot of everything; returns its id."""
        self.learner.check()
        own = {"replay": self.replay.snapshot(), "sampling": self.learner.generator.get_state()}
        shared = {"learner": self.learner.state_dict(), "clock": self.clock.state_dict(), "source": self._source()}
        name = self.snapshots.write(self.agent, self.clock.updates, self.clock.agent_steps, {**shared, **extra}, own)
        self.replay.commit(self.config.save.keep)
        self.snapshots.prune()
        return name

    def restore(self, name: str) -> dict[str, Any]:
        """Continue from a snapshot; returns the shared state, `extra` of `save` included."""
        shared, own = self.snapshots.read(name, self.agent)
        if shared["source"] != self._source():
            raise ConfigError(f"{self.recording.path} is not the recording this run began with: choose another logdir=")
        self.learner.load_state_dict(shared["learner"])
        self.learner.generator.set_state(own["sampling"])
        self.clock.load_state_dict(shared["clock"])
        try:
            self.replay = Replay.restore(self.replay_folder, own["replay"], pin=self.device.type == "cuda")
        except ValueError as error:
            place = f"the replay in {self.replay_folder}"
            raise TornFile(f"snapshot {name} cannot be resumed with {place}: {error}") from error
        return shared

    def close(self) -> None:
        if self.replay is not None:
            self.replay.close()
