"""Self-tests for users: is this agent in this world what it should be? `torchmem verify agent=... env=...`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchmem.envs.collector import LockStep
from torchmem.envs.make import env_spec
from torchmem.envs.seeds import Split
from torchmem.models.checkpoint import KINDS
from torchmem.training.config import compose
from torchmem.training.experiment import as_config_error
from torchmem.training.world_views import array_worlds
from torchmem.types import EnvSpec
from torchmem.verify.acting import shake
from torchmem.verify.agent import agent_checks
from torchmem.verify.play import Factory, Row
from torchmem.verify.report import Check, Verification, measured
from torchmem.verify.returns import of_replay, of_rollouts, return_checks
from torchmem.verify.tape import STEPS, Tape, windows
from torchmem.verify.world import COPIES, fresh, world_checks, worlds_close

__all__ = ["Check", "Verification", "verify", "verify_agent", "verify_world"]
LONGEST = 1200  # lock-steps of random play; it stops sooner once every copy has ended two episodes


def verify(words: Sequence[str]) -> Verification:
    """Test the agent and the world that `words` choose, as for train.py: ["agent=ppo", "env=minigrid_memory"].

    Minutes on a CPU; nothing is trained and nothing is written. Raises ConfigError for wrong words and WorldFailed
    where the world cannot be made here.
    """
    start = time.monotonic()
    config = compose(words)
    torch.manual_seed(config.seed)
    with as_config_error():
        spec = env_spec(config.env_name, **config.env_kwargs)
        agent = make_agent(spec, config.agent)
    checks = [*verify_world(config.env_name, config.env_kwargs), *verify_agent(agent)]
    return Verification(config.groups["agent"], config.env_name, tuple(checks), time.monotonic() - start)


def verify_world(name: str, kwargs: Mapping[str, Any] | None = None, factory: Factory | None = None) -> list[Check]:
    """The checks of a world alone. name: as for `make_env`, also "package.module:Class" for one of your own.

    factory: makes the worlds in lock-step, where they are not `array_worlds(name, kwargs, ...)`.
    Raises WorldFailed where the world cannot be made here.
    """
    kwargs = dict(kwargs or {})
    factory = factory or worlds_of(name, kwargs)
    rows: list[Row] = []

    def begin() -> tuple[float, str]:
        rows.extend(fresh(factory, LONGEST, seed=0, ends=2))
        return 0, ""

    worlds_close(factory(COPIES, "train", 0))  # one that cannot even be made is no finding but an error
    played = measured("random play", f"{COPIES} copies under random actions: errors", 0, begin)
    if not played.ok:
        return [played]
    return [played, *world_checks(name, kwargs, factory, rows, env_spec(name, **kwargs))]


def verify_agent(agent: Any) -> list[Check]:
    """The checks of an agent on observations of its own world. Moves its weights: hand over one of your own.

    Raises WorldFailed where its world (`agent.spec`) cannot be played.
    """
    spec = agent.spec
    rows = fresh(worlds_of(spec.name, spec.kwargs), 2 * STEPS, seed=11)
    tape, other = Tape(spec, windows(spec, rows)), windows(spec, rows, offset=1)
    return [*agent_checks(shake(agent), tape, other), *learnt_returns(agent.config)]


def learnt_returns(config: Any) -> list[Check]:
    """The checks of the returns that an agent with this config learns from."""
    if config.name == "ppo":
        return return_checks("advantage + value", of_rollouts, config.gamma, config.lam)
    lam = getattr(config, "replay_lam", config.lam)  # an agent without replayed returns has imagined ones alone
    return return_checks("lambda_return", of_replay, 1 - 1 / config.horizon, lam)


def worlds_of(name: str, kwargs: Mapping[str, Any]) -> Factory:
    def factory(copies: int, split: Split, seed: int) -> LockStep:
        return array_worlds(name, kwargs, copies, split=split, seed=seed)

    return factory


def make_agent(spec: EnvSpec, config: Any) -> Any:
    """A fresh agent of the kind that its config names."""
    module, _, attribute = KINDS[config.name][1].partition(":")
    return getattr(importlib.import_module(module), attribute)(spec, config)
