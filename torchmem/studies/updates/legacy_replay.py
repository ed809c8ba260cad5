"""Policies of an old recorded run, played again, to account for the numbers that were recorded.

Recorded totals carry a leak: the old environment did not forget the shaping of an episode's end, and paid the first
step of the next one the difference from there. `replay` adds it on request; nothing else in torchmem knows it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.envs.collector import Collector
from torchmem.envs.lunar_lander import TERMS
from torchmem.envs.vector import VectorEnv
from torchmem.models.noise import Noise
from torchmem.result import Provenance, Result
from torchmem.studies.updates.legacy import WEIGHTS, LegacyRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
            ax.errorbar(place + 0.1 * q, self.mean[:, q], 1.96 * self.error[:, q], fmt="o", label=f"{name}, played")
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
