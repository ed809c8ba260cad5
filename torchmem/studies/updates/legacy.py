"""Recorded runs of the program that isolated updates came from: weights of four phases and rewards of five.

    <run>/metadata.json                          rewards and step counts of the phases
    <run>/<phase>_weights.json, ..._model.zip    init, pre_update, post_update, sub_update; the zip is of SB3
    <run>/updates.json                           post - pre
    <run>/rewards.json                           phase -> total_reward and fuel_reward of 20,000 test steps

Zips are read without running anything of theirs (models/importers/sb3_ppo.py). A salvaged policy was not kept.

legacy_replay.py plays the policies again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.envs.make import env_spec
from torchmem.errors import TorchmemError
from torchmem.models.importers.sb3_ppo import from_state_dict, names, read
from torchmem.surgery.weight_delta import WeightDelta

WEIGHTS = ("init", "pre_update", "post_update", "sub_update")
PHASES = (*WEIGHTS, "salvage")
META = ("FIRST_WRAPPER", "SECOND_WRAPPER", "TEST_ENV", "FIRST_TRAIN_TIMESTEPS", "SECOND_TRAIN_TIMESTEPS")
TOLERANCE = {"updates.json": 1e-7, "sub_update_weights.json": 1e-6}


class LegacyRunError(TorchmemError):
    """A folder is not a recorded run of the old program, or its files contradict each other; the message names them."""


@dataclasses.dataclass(frozen=True)
class LegacyRun:
    """agents: by phase. rewards: phase -> (steps, 2) total and fuel reward of each recorded step."""

    path: Path
    metadata: dict[str, Any]
    agents: dict[str, Any]
    rewards: dict[str, np.ndarray]

    @property
    def update(self) -> WeightDelta:
        """post - pre, exactly."""
        return WeightDelta.between(self.agents["pre_update"], self.agents["post_update"])

    def recorded_means(self) -> dict[str, tuple[float, float]]:
        """Phase -> mean total and mean fuel reward per step."""
        return {phase: (float(r[:, 0].mean()), float(r[:, 1].mean())) for phase, r in self.rewards.items()}


def import_run(folder: str | Path) -> LegacyRun:
    """Read one recorded run and check that its files agree. Raises LegacyRunError and SB3ZipError."""
    folder = Path(folder)
    metadata = _json(folder / "metadata.json")
    lacking = [key for key in META if key not in metadata]
    if lacking:
        raise LegacyRunError(f"{folder / 'metadata.json'} lacks {', '.join(lacking)}")
    spec = env_spec("lunar_lander")
    agents: dict[str, Any] = {}
    for phase in WEIGHTS:
        weights, data, _ = read(folder / f"{phase}_weights_model.zip")
        agents[phase] = from_state_dict(weights, data, spec)
    table = names(agents["init"].config.head_layers, "action", continuous=False)
    states = {phase: agents[phase].state_dict() for phase in WEIGHTS}
    before, after = states["pre_update"], states["post_update"]
    claims: dict[str, Mapping[str, torch.Tensor]] = {f"{p}_weights.json": states[p] for p in WEIGHTS}
    claims["updates.json"] = {name: after[name].double() - before[name].double() for name in table.values()}
    claims["sub_update_weights.json"] = {
        name: 2 * before[name].double() - after[name].double() for name in table.values()
    }
    for name, ours in claims.items():
        _compare(folder / name, table, ours, TOLERANCE.get(name, 1e-7))
    return LegacyRun(folder, metadata, agents, _rewards(folder / "rewards.json"))


def _compare(file: Path, table: Mapping[str, str], ours: Mapping[str, torch.Tensor], limit: float) -> None:
    found = _json(file)
    if set(found) != set(table):
        raise LegacyRunError(f"{file} names {sorted(set(found) ^ set(table))[:3]} otherwise than the zips do")
    for theirs, own in table.items():
        value = torch.tensor(found[theirs], dtype=torch.float64)
        off = float((value - ours[own].double()).abs().max()) if value.shape == ours[own].shape else float("inf")
        if not off <= limit:
            raise LegacyRunError(f"{file}: {theirs} differs by {off:.2g} from what the zips say (limit {limit:g})")


def _rewards(file: Path) -> dict[str, np.ndarray]:
    found = _json(file)
    try:
        both = {p: np.array([found[p]["total_reward"], found[p]["fuel_reward"]], np.float64).T for p in found}
    except (KeyError, TypeError, ValueError) as error:
        raise LegacyRunError(f"{file} holds no total_reward and fuel_reward of equal length by phase") from error
    if unknown := set(both) - set(PHASES):
        raise LegacyRunError(f"{file} names unknown phases {sorted(unknown)}")
    return both


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LegacyRunError(f"{file} is missing or no JSON ({error}): this is no complete recorded run") from error
    if not isinstance(found, dict):
        raise LegacyRunError(f"{file} is no JSON object")
    return found
