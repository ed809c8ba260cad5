"""One sitting of a run: from the command to the exit. Folders, resuming, signals, banner, progress, saving."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchmem.artefact import append_record
from torchmem.files import atomic_write
from torchmem.models.checkpoint import find_agent, plain, read_card
from torchmem.models.inputs import colour_image
from torchmem.provenance import Provenance
from torchmem.provenance import device as device_name
from torchmem.training.clock import Clock, Eta, duration
from torchmem.training.compile import recompiles, wanted
from torchmem.training.config import ConfigError, from_json, refuse_changes, to_json
from torchmem.training.device import launch
from torchmem.training.experiment import Experiment, worker_count
from torchmem.training.goal import Goal
from torchmem.training.logger import Logger
from torchmem.training.rollout_experiment import RolloutExperiment
from torchmem.training.run_config import RunConfig
from torchmem.training.simulator_experiment import SimulatorExperiment
from torchmem.training.tree import TornFile

log = logging.getLogger("torchmem")
SHOWN = 6  # sequences side by side in the open-loop video
# What stored experience, open episodes and random numbers are made of: no word allows a change of these on resume.
FIXED = (
    "groups.agent", "groups.env", "env", "envs", "length", "seed", "replay.capacity", "replay.online",
    "trainer.devices", "trainer.nodes",
)  # fmt: skip
# config.agent.name -> what runs it
EXPERIMENTS = {
    "dreamer": Experiment, "r2i": Experiment, "ppo": RolloutExperiment, "simulator": SimulatorExperiment,
}  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Sitting:
    """Context of one process from start to end. Leaving it saves, unless an error says that nothing is worth it."""

    experiment: Experiment | RolloutExperiment

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.logdir = Path(str(config.logdir))
        self.signal: int | None = None  # came to this process
        self.leaving = 0  # the signal that ends the run, wherever it came
        self.saved_at = -1
        self.reached = False  # the goal
        self.logger: Logger | None = None
        self.bar: tqdm | None = None

    # Start and end -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Sitting:
        self.processes, device = launch(self.config.trainer)
        self.workers = worker_count(self.config, self.processes.size)
        notes = claim(self.config) if self.processes.main else []
        self.processes.barrier()
        try:
            self._open(notes, device)
        except BaseException:
            self._close()
            raise
        self._handlers = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        return self

    def _open(self, notes: list[str], device: torch.device) -> None:
        x = self.experiment = EXPERIMENTS[self.config.agent.name](self.config, self.processes, device)
        self.goal = Goal(self.config.goal, x.spec.score)
        owner = run_id(self.logdir)
        name = x.snapshots.latest()
        if name is None:
            if self.config.resume == "must":
                raise ConfigError(f"resume=must, but {self.logdir} holds no snapshot")
            x.open_replay(owner)
            watermark = 0
        else:
            try:
                shared = x.restore(name)
            except KeyError as error:
                text = f"snapshot {name} in {self.logdir} holds no {error}: another version of torchmem wrote it"
                raise TornFile(f"{text}; resume with that version, or choose another logdir=") from error
            watermark = shared["watermark"]
            self.goal.load(shared.get("goal", ()))  # snapshots from before there were goals
            self.saved_at = x.clock.agent_steps
        x.snapshots.discard_after(name)
        self.processes.share([p.data for p in x.agent.parameters()])
        if self.processes.main:
            atomic_write(self.logdir / "config.json", to_json(self.config))
            atomic_write(self.logdir / "env_spec.json", json.dumps(plain(x.spec.to_json()), indent=1))
            self.made_by = Provenance.here(config=json.loads(to_json(self.config)), seeds={"train": self.config.seed})
            self.logger = Logger(self.logdir, x.clock, self.config.log.sinks, watermark=watermark)
            for line in x.describe() + notes:
                self.say(line)
            if name is not None:
                self.say(f"resumed from snapshot {name}")
        if isinstance(x, Experiment) and wanted(self.config.compile, device):
            self.say("compiling loss and policy (minutes on a CPU); compile=off goes without")
            self.say(str(x.compile()))
        if self.processes.main:
            self.bar = tqdm(
                total=self.config.steps, initial=x.clock.agent_steps, unit="step", unit_scale=True,
                disable=not sys.stderr.isatty(), dynamic_ncols=True,
            )

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.save()
                if self.processes.main:
                    for line in self._farewell():
                        self.say(line)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._close()
        if kind is None and self.processes.main:
            self._leave_record()  # of files that nobody writes any more
        if kind is None and (number := self.signal or self.leaving):
            self._requeue(number)
            # Fabric kills the main process where another one ends with a code.
            raise SystemExit(128 + number if self.processes.main else 0)

    def _leave_record(self) -> None:
        """A line in the run's provenance.jsonl: this sitting, with the code as it was when it started."""
        weights = read_card(find_agent(self.logdir))["weights_sha256"]
        made_by = dataclasses.replace(self.made_by, weights=weights, device=device_name())
        append_record(self.logdir, made_by, agent_steps=self.experiment.clock.agent_steps, finished=self.finished)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.logger is not None:
            self.logger.close()
        if hasattr(self, "experiment"):
            self.experiment.close()

    # Stopping ------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second ctrl-C does not wait for the snapshot
        self.signal = number
        if self.processes.main:
            name = signal.Signals(number).name
            text = f"\n{name}: saving a snapshot, then stopping (ctrl-C again: stop without saving)\n"
            os.write(2, text.encode())  # not through sys.stderr, whose write this may have interrupted

    def signalled(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self.signal is not None

    def stopped(self) -> bool:
        """Whether a signal asked any process to stop. All processes ask this together."""
        self.leaving = self.processes.largest(self.signal or 0)
        return self.leaving > 0

    def enough(self) -> bool:
        """Whether the run has come to its end: all steps made, or the goal reached. All processes ask this together."""
        if self.config.goal.score is not None and not self.reached:
            self.reached = self.processes.any(self.processes.main and self.goal.reached)
            if self.reached:
                self.say(f"goal reached: {self.goal.mean:.3f} over the last {self.config.goal.episodes} episodes")
        return self.finished

    @property
    def finished(self) -> bool:
        return self.reached or self.experiment.clock.agent_steps >= self.config.steps

    def _requeue(self, number: int) -> None:
        """Under SLURM, USR1 (sbatch --signal=USR1@120) means: time is up, put me back into the queue."""
        job = os.environ.get("SLURM_JOB_ID")
        if number == signal.SIGUSR1 and job and self.processes.main:
            subprocess.run(["scontrol", "requeue", job], check=False)

    def _farewell(self) -> list[str]:
        command = shlex.join(["python", *sys.argv])
        again = recompiles() if wanted(self.config.compile, self.experiment.device) else 0
        return [
            *([f"torch.compile recompiled {again} times: report this with the command line"] if again else []),
            f"snapshot: {self.logdir / 'ckpt'} (newest: {self.experiment.snapshots.latest()})",
            *([] if self.finished else [f"resume:   {command}"]),
            f"curves:   tensorboard --logdir {self.logdir}   or   torchmem plot {self.logdir}",
            f"look:     {self.experiment.LOOK.format(logdir=self.logdir)}",
        ]

    # While running ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """A snapshot of now, unless one exists."""
        x = self.experiment
        if x.clock.agent_steps == self.saved_at:
            return
        watermark = self.logger.watermark() if self.logger else 0
        x.save({"watermark": watermark, "goal": self.goal.state()})
        self.saved_at = x.clock.agent_steps

    def ladder(self, agent_steps: int) -> None:
        """Keep the agent at 1, 2, 4, 8, ... thousand agent steps, and every `save.agents_every` of them."""
        save = self.config.save
        rungs = {1000 * 2 ** int(math.log2(max(agent_steps, 1000) / 1000))} if save.ladder else set()
        if save.agents_every:
            rungs.add(agent_steps // save.agents_every * save.agents_every)
        for rung in rungs:
            if agent_steps - self.experiment.stride < rung <= agent_steps and rung > 0:
                self.experiment.snapshots.ladder(self.experiment.agent, rung)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl, and one line for whoever watches without a progress bar."""
        if self.logger is None or not metrics:
            return
        row = self.logger.log(metrics)
        if self.bar is not None and self.bar.disable and "steps_per_s" in metrics:
            self.say(headline(row, self.eta))

    def progress(self, clock: Clock, eta: Eta) -> None:
        self.eta = eta
        if self.bar is not None and not self.bar.disable:
            self.bar.n = clock.agent_steps
            self.bar.set_postfix_str(f"{clock.updates} updates, {eta} left", refresh=False)
            self.bar.update(0)

    def video(self, x: Experiment | RolloutExperiment) -> None:
        """Open-loop prediction beside the truth, where the world has images and replay has sequences."""
        if self.logger is not None and isinstance(x, Experiment) and colour_image(x.spec.obs) and len(x.replay):
            batch = x.replay.peek(SHOWN, seed=x.clock.updates)  # training goes on as if it had not been drawn
            path = self.logger.video("open_loop", x.agent.open_loop({k: v.to(x.device) for k, v in batch.items()}))
            self.say(f"open-loop video (truth / model / error): {path}")

    def say(self, text: str) -> None:
        """Tell whoever watches, above the progress bar."""
        if self.processes.main:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()


def headline(row: Mapping[str, Any], eta: Eta) -> str:
    """The few numbers of a row that tell whether all is well."""
    names = {"train/loss/image": "image", "train/loss/dyn": "dyn", "train/loss/rew": "rew", "episode/return": "return"}
    parts = [f"{short} {row[key]:.4g}" for key, short in names.items() if key in row]
    return (
        f"{row['agent_steps']:>9} steps  {row['updates']:>7} updates  {row['steps_per_s']:.1f} steps/s  "
        f"{duration(eta.left_s)} left  " + "  ".join(parts)
    )


def run_id(logdir: Path) -> str:
    """The identity of the run in `logdir`, by which its replay knows it. Raises TornFile."""
    file = logdir / "run.json"
    try:
        return json.loads(file.read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornFile(f"{file} is missing, truncated or altered ({type(error).__name__}: {error})") from error


def claim(config: RunConfig) -> list[str]:
    """Make the run's folder ours, or find that it is ours already. Returns lines to show.

    Raises ConfigError for a folder of something else, of another configuration, or where `resume` forbids it.
    """
    logdir = Path(str(config.logdir))
    if logdir.exists() and not logdir.is_dir():
        raise ConfigError(f"logdir={logdir} is a file")
    if logdir.is_dir() and any(not p.name.endswith(".part") for p in logdir.iterdir()):  # a kill leaves such files
        if not (logdir / "run.json").is_file():
            raise ConfigError(f"logdir={logdir} holds something that is not a run of torchmem: choose another logdir=")
        if config.resume == "never":
            raise ConfigError(f"logdir={logdir} holds a run, and resume=never: choose another logdir=")
        if (logdir / "config.json").is_file():
            changes = refuse_changes(from_json((logdir / "config.json").read_text()), config)
            for line in changes:
                if any(line.startswith((f"{f}:", f"{f}.")) for f in FIXED):
                    raise ConfigError(f"{line}: cannot change within a run, even if allowed; choose another logdir=")
            return [f"changed on resume, as allowed: {line}" for line in changes]
        return []
    if config.resume == "must":
        raise ConfigError(f"resume=must, but logdir={logdir} holds no run")
    atomic_write(logdir / "run.json", json.dumps({"id": uuid.uuid4().hex}))
    return []
