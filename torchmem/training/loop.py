"""The one loop: collect, add, sample, update, log, evaluate, save."""

from __future__ import annotations

import logging

from torchmem.training.averages import Averages
from torchmem.training.clock import Eta, Every
from torchmem.training.evaluate import Stopped, evaluate
from torchmem.training.experiment import Experiment
from torchmem.training.rollout_experiment import RolloutExperiment
from torchmem.training.run_config import RunConfig
from torchmem.training.simulator_experiment import SimulatorExperiment
from torchmem.training.sitting import Sitting

log = logging.getLogger("torchmem")


def run(config: RunConfig) -> None:
    """Train until `config.steps` agent steps or the goal, from the start or from the newest snapshot of this run."""
    with Sitting(config) as sitting:  # devices, folders, banner, signals; saves on the way out
        train(sitting.experiment, sitting)


def train(x: Experiment | RolloutExperiment, sitting: Sitting) -> None:
    """The loop itself. `sitting` decides when to stop and where to write."""
    config, clock = x.config, x.clock
    episodes, metrics, eta = Averages(), Averages(), Eta(config.steps)
    log_due, save_due = Every(seconds=config.log.every_s), Every(seconds=config.save.every_s)
    video_due, eval_due = Every(seconds=config.log.video_every_s), Every(steps=config.eval.every_steps)
    eta.update(clock.agent_steps)  # else a long first rollout would have no pace
    eval_due(clock.agent_steps)  # a resumed run does not repeat the evaluation it has just made

    while not sitting.enough() and not sitting.stopped():
        for _, total, length in x.collect():
            sitting.goal.add(total)
            episodes.add({"return": total, "length": length}, "episode/")
        for _ in range(x.updates_due()):
            metrics.add(x.learn(), "train/")
        eta.update(clock.agent_steps)
        sitting.progress(clock, eta)
        if log_due():
            x.learner.check()
            sitting.log({**episodes.pop(), **metrics.pop(), "steps_per_s": eta.per_s})
        if eval_due(clock.agent_steps):
            report(x, sitting)
        if video_due():
            sitting.video(x)
        if x.processes.any(x.processes.main and save_due()):  # one clock decides for all
            sitting.save()
        sitting.ladder(clock.agent_steps)
    sitting.log({**episodes.pop(), **metrics.pop()})
    if sitting.finished:
        report(x, sitting)
        sitting.video(x)


def report(x: Experiment | RolloutExperiment, sitting: Sitting) -> None:
    """Evaluate on fresh seeds, with and without memory, on the main process."""
    if not x.processes.main:
        return
    if isinstance(x, SimulatorExperiment):
        sitting.log(x.held_out_losses())
        return
    e = x.config.eval
    for name, memory in {"eval": True, "eval_no_memory": False}.items():
        if memory or e.no_memory:
            try:
                result = evaluate(
                    x.agent, x.config.env_name, x.config.env_kwargs, e.episodes, x.config.seed,
                    memory=memory, envs=x.envs.n, workers=sitting.workers, stop=sitting.signalled,
                )
            except Stopped as told:
                return sitting.say(str(told))
            sitting.log(result.metrics(name))
            sitting.say(f"{'evaluation' if memory else 'without memory'}: {result.summary()}")
