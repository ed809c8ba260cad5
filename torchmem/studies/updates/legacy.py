"""Recorded runs of the program that isolated updates came from: weights of four phases and rewards of five.

    <run>/metadata.json                          rewards and step counts of the phases
    <run>/<phase>_weights.json, ..._model.zip    init, pre_update, post_update, sub_update; the zip is Stable-Baselines3's
    <run>/updates.json                           post - pre
    <run>/rewards.json                           phase -> total_reward and fuel_reward of 20,000 test steps

Zips are read without running anything of theirs (models/importers/sb3_ppo.py). A salvaged policy was not kept.

Its recorded totals carry a leak: what the shaping of an episode's end was is subtracted in the first step of the next
one. `replay` adds it on request, to account for the old numbers; nothing else in torchmem knows it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchmem.envs.collector import Collector
from torchmem.envs.lunar_lander import TERMS
from torchmem.envs.make import env_spec
from torchmem.envs.vector import VectorEnv
from torchmem.errors import TorchmemError
from torchmem.models.importers.sb3_ppo import from_state_dict, names, read
from torchmem.models.noise import Noise
from torchmem.result import Provenance, Result
from torchmem.surgery.weight_delta import WeightDelta

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


# Playing the old policies again --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReplayResult(Result):
    """Means per step of replayed policies. P phases, Q quantities (total, fuel).

    mean, error: (P, Q) ours and its standard error (bootstrap over episodes). recorded: (P, Q), NaN where none.
    plain: (P,) our total without the leak. steps, episodes: (P,) played.
    """

    phases: tuple[str, ...]
    quantities: tuple[str, ...]
    mean: np.ndarray
    error: np.ndarray
    recorded: np.ndarray
    plain: np.ndarray
    steps: np.ndarray
    episodes: np.ndarray
    leak: bool

    def summary(self) -> str:
        lines = [f"reward per step, legacy shaping leak {'on' if self.leak else 'off'} (+- standard error)"]
        for p, phase in enumerate(self.phases):
            parts = [
                f"{name} {self.mean[p, q]:+.4f} +- {self.error[p, q]:.4f} (recorded {self.recorded[p, q]:+.4f})"
                for q, name in enumerate(self.quantities)
            ]
            lines.append(f"{phase:<12} {'   '.join(parts)}   total without leak {self.plain[p]:+.4f}   "
                         f"{self.steps[p]} steps, {self.episodes[p]} episodes")  # fmt: skip
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        place = np.arange(len(self.phases))
        for q, name in enumerate(self.quantities):
            ax.errorbar(place + 0.1 * q, self.mean[:, q], 1.96 * self.error[:, q], fmt="o", label=f"{name}, played here")
            ax.scatter(place + 0.1 * q, self.recorded[:, q], marker="x", color="black", zorder=3)
        ax.set_xticks(place, self.phases)
        ax.set_yscale("symlog", linthresh=0.3)
        ax.set_ylabel("reward per step (crosses: recorded)")
        ax.legend(frameon=False)
        return ax


def replay(
    run: LegacyRun, *, steps: int = 20_000, legacy_shaping_leak: bool = False, seed: int = 0, envs: int = 16
) -> ReplayResult:
    """Play the four policies of a run deterministically in LunarLander-v3 for `steps` steps each.

    Episodes of several worlds are strung together as if one world had played them, up to the one in which `steps` is
    reached, which ends whole (the recording cut it).
    legacy_shaping_leak: add to the first step of each episode what the old environment did (see the module).
    """
    rows, errors, plain, lengths, counts = [], [], [], [], []
    for phase in WEIGHTS:
        played = _play(run.agents[phase], steps, seed, envs)
        leak = np.array([e.leak_after(b) for b, e in zip([None, *played], played)])
        total = np.array([e.total for e in played])
        fuel, length = np.array([e.fuel for e in played]), np.array([e.length for e in played])
        both = np.stack([total + leak if legacy_shaping_leak else total, fuel], 1)
        rows.append(both.sum(0) / length.sum())
        errors.append(_ratio_error(both, length, seed))
        plain.append(total.sum() / length.sum())
        lengths.append(length.sum())
        counts.append(len(length))
    known = run.recorded_means()
    return ReplayResult(
        phases=WEIGHTS, quantities=("total", "fuel"), mean=np.stack(rows), error=np.stack(errors),
        recorded=np.array([known.get(p, (np.nan, np.nan)) for p in WEIGHTS]), plain=np.array(plain),
        steps=np.array(lengths), episodes=np.array(counts), leak=legacy_shaping_leak,
        provenance=Provenance.here(checkpoint=run.path.name, seeds={"eval": seed}, config=run.metadata),
    )  # fmt: skip


@dataclasses.dataclass
class _Episode:
    total: float
    fuel: float
    length: int
    first: float  # the shaping at its start, after its first step and at its end
    second: float
    end: float

    def leak_after(self, before: _Episode | None) -> float:
        """What its first step paid beside the stock reward: the old `prev_shaping` survived the reset."""
        return self.first - (self.second if before is None else before.end)


def _play(agent: Any, steps: int, seed: int, envs: int) -> list[_Episode]:
    """Whole episodes, as many of each world, until they hold `steps` steps."""
    fuel_index = TERMS.index("fuel")
    rounds: list[list[_Episode]] = [[] for _ in range(envs)]
    with VectorEnv("lunar_lander", {}, envs, split="eval", seed=seed, on_error="raise") as worlds:
        collector = Collector(worlds, agent.initial(envs), agent.device)
        while True:
            data = collector.step(lambda obs, carry: agent.policy(obs, carry, Noise.mode()))
            look = _shaping(np.asarray(data["vector"], np.float64))
            for i in range(envs):
                if data["is_first"][i]:
                    rounds[i].append(_Episode(0.0, 0.0, 0, look[i], np.nan, np.nan))
                    continue
                now = rounds[i][-1]
                now.total += float(data["reward"][i])
                now.fuel += float(collector.truth["terms"][i, fuel_index])
                now.length += 1
                now.second = look[i] if now.length == 1 else now.second
                now.end = look[i] if data["is_last"][i] else now.end
            whole = min(sum(not np.isnan(e.end) for e in row) for row in rounds)
            string = [rounds[i][k] for k in range(whole) for i in range(envs)]
            if sum(e.length for e in string) >= steps:
                break
    ends = np.cumsum([e.length for e in string])
    return string[: int(np.searchsorted(ends, steps)) + 1]


def _shaping(state: np.ndarray) -> np.ndarray:
    """(n,) the potential whose differences the stock task pays. state: (n, 8) as observed."""
    x, y, vx, vy, angle, _, left, right = state.T
    return -100 * (np.hypot(x, y) + np.hypot(vx, vy) + np.abs(angle)) + 10 * (left + right)


def _ratio_error(sums: np.ndarray, lengths: np.ndarray, seed: int, draws: int = 2000) -> np.ndarray:
    """(Q,) standard error of sum / steps when whole episodes are drawn again."""
    pick = np.random.default_rng(seed).integers(len(lengths), size=(draws, len(lengths)))
    return (sums[pick].sum(1) / lengths[pick].sum(1)[:, None]).std(0, ddof=1)
