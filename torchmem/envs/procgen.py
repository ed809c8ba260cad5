"""Procgen (Cobbe et al. 2020, arXiv:1912.01588): 16 games with procedurally generated levels, through EnvPool."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.procgen_config import ALL_LEVELS, ProcgenConfig, levels
from torchmem.envs.procgen_engine import ACTIONS, SIDE, Engine, Frames
from torchmem.envs.procgen_scores import scores
from torchmem.envs.protocol import Arrays, World
from torchmem.envs.seeds import split_of
from torchmem.types import EnvSpec, Space

TRUTH = {"level_seed": "level", "level_complete": "1 = by this step", "time": "steps"}


class Procgen(World):
    """One level per episode. The seed's split says from which range it is drawn (`procgen_config.levels`).

    Plain seeds below 2^61 are of split train. `reset(options={"level": k})` plays level k, 0 <= k < 2^31 - 1, whatever
    the seed. The game's time limit truncates; reaching the goal or losing terminates. Rewards are the game's own.
    Restored by replaying the actions, which is exact: level and actions determine an episode.
    """

    config: ProcgenConfig

    def __init__(self, config: ProcgenConfig) -> None:
        super().__init__(config)
        self._engine = Engine(config, levels(config, "train"), [0])  # here, so that a missing library shows at once
        self._now: Frames = self._engine.reset()

    @classmethod
    def describe(cls, config: ProcgenConfig) -> EnvSpec:
        return EnvSpec(
            name="procgen", obs={"image": Space((SIDE, SIDE, 3), "uint8")},
            action={"action": Space((), "int64", classes=ACTIONS)}, control_hz=15.0,  # the pace people play it at
            truth=TRUTH, levels=scores(config.game, config.mode), kwargs=dataclasses.asdict(config))

    def _begin(self, seed: int, options: Mapping[str, Any] | None) -> None:
        level = self._chosen(dict(options or {}))
        if level is None:
            mine = levels(self.config, split_of(seed))
            level = mine[int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] % len(mine))]
        self._engine = Engine(self.config, range(level, level + 1), [0])
        self._now = self._engine.reset()

    def _chosen(self, options: dict[str, Any]) -> int | None:
        level = options.pop("level", None)
        if options:
            raise ValueError(f"procgen has the reset option level only; got {sorted(options)}")
        if level is None:
            return None
        known = levels(self.config, "train") if self.config.mode == "exploration" else ALL_LEVELS
        if int(level) not in known:
            raise ValueError(f"procgen: option level must be in {known.start}..{known.stop - 1}; got {level}")
        return int(level)

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        action = int(action)
        if not 0 <= action < ACTIONS:
            raise ValueError(f"procgen: action must be in 0..{ACTIONS - 1}, got {action}")
        self._now = now = self._engine.step(np.array([action]))
        return float(now.reward[0]), bool(now.terminated[0]), bool(now.truncated[0])

    def _observe(self) -> Arrays:
        return {"image": self._now.image[0].copy()}

    def _truth(self) -> Arrays:
        return {key: rows[0].copy() for key, rows in self._now.truth().items()}
