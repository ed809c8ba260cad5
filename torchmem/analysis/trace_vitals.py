"""What becomes of an agent's health, food, drink and energy, what it does at each level, and what it dies of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._probe_data import Recorded, lookup
from torchmem.analysis.nulls import p_value, shift_rows, spans
from torchmem.result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["VitalsResult", "trace_vitals"]

VITALS = ("health", "food", "drink", "energy")  # the first four items of Crafter's inventory
STRIKE = 2  # health that one blow of a zombie or an arrow takes, in Crafter
CAUSES = {"food": "hunger", "drink": "thirst", "energy": "exhaustion"}


@dataclasses.dataclass(frozen=True)
class VitalsResult(Result):
    """V vitals, L levels from 0, A actions, E episodes, window of 2 W + 1 steps.

    action_given_level: (V, L, A) share of each action, NaN at levels never met; steps: (V, L). bits: (V,) mutual
    information of level and action, chance: mean of levels turned in a circle within episodes, p.
    around: achievement number -> (V, 2 W + 1) mean vitals around its first unlock, around_count its number of episodes;
    around_chance: (V, 2 W + 1) the same around random steps. causes: cause of death -> episodes ("alive" where none).
    lengths: (E,). traces: (E, V, T) padded with NaN.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.0, 4.2)

    vitals: tuple[str, ...]
    action_given_level: np.ndarray
    steps: np.ndarray
    bits: np.ndarray
    chance: np.ndarray
    p: np.ndarray
    window: int
    around: dict[str, np.ndarray]
    around_count: dict[str, int]
    around_chance: np.ndarray
    causes: dict[str, int]
    lengths: np.ndarray
    traces: np.ndarray
    settings: dict[str, Any]

    def summary(self) -> str:
        """Causes of death, then what the actions tell of each vital beside chance."""
        deaths = ", ".join(f"{cause} {count}" for cause, count in sorted(self.causes.items(), key=lambda one: -one[1]))
        rows = [[name, *map(style.number, (b, c, p))] for name, b, c, p in
                zip(self.vitals, self.bits, self.chance, self.p)]  # fmt: skip
        header = ["vital", "bits of the action", "levels shifted", "p"]
        lengths = f"median length {np.median(self.lengths):g} steps"
        return f"{len(self.lengths)} episodes, {lengths}; ends: {deaths}\n" + style.table(header, rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Median and quartiles of each vital over the steps of an episode, while half of the episodes last."""
        ax = self.axes(ax)
        until = max(2, int(np.median(self.lengths)))
        steps = np.arange(until)
        for v, name in enumerate(self.vitals):
            low, middle, high = np.nanpercentile(self.traces[:, v, :until], [25, 50, 75], axis=0)
            colour = style.COLOURS[v % len(style.COLOURS)]
            ax.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(steps, middle, color=colour, label=name)
        return style.finish(ax, "step of the episode", "level (median, quartiles)", legend_columns=4)


def trace_vitals(
    recording: Recorded, *, vitals: Sequence[str] = VITALS, achievements: str | None = "achievements",
    action: str = "action", window: int = 20, draws: int = 50, seed: int = 0,
) -> VitalsResult:  # fmt: skip
    """Vital levels against actions, around first unlocks, and at death.

    vitals: covariates, or else the first columns of "inventory" in this order. achievements: covariate (steps, kinds),
    counts in the episode; None or not recorded: no unlocks. A death is an episode that ends with is_terminal. Cause,
    by rules for Crafter: a vital that was 0 at the last step before it (the one that was 0 longest); else lava where
    health fell by more than a blow while awake; else combat where it fell by a blow or more; else unknown.
    Raises ValueError for columns that were not recorded.
    """
    levels = np.stack([_vital(recording, name, i) for i, name in enumerate(vitals)], 1).astype(np.int64)
    acts = lookup(recording.covariates, action, "covariate").astype(np.int64)
    if acts.ndim != 1 or levels.min() < 0:
        raise ValueError(f"{action} must be one number per step, and vitals must not be negative")
    rng = np.random.default_rng(seed)
    last = lookup(recording.covariates, "is_last", "covariate").astype(bool)
    terminal = lookup(recording.covariates, "is_terminal", "covariate").astype(bool)
    episode = np.asarray(recording.episode)
    free = ~last  # the action of the last step is no choice
    top, kinds = int(levels.max()) + 1, int(acts.max()) + 1
    tables = np.stack([_table(column[free], acts[free], top, kinds) for column in levels.T])
    bits = np.array([_information(table) for table in tables])
    null = np.empty((draws, len(vitals)))
    for r in range(draws):
        turned = levels[shift_rows(episode, rng)]
        null[r] = [_information(_table(column[free], acts[free], top, kinds)) for column in turned.T]
    steps = tables.sum(2)
    with np.errstate(invalid="ignore", divide="ignore"):
        given = tables / steps[:, :, None]
    pieces = spans(episode)
    traces = np.full((len(pieces), len(vitals), max(map(len, pieces))), np.nan)
    for e, rows in enumerate(pieces):
        traces[e, :, : len(rows)] = levels[rows].T
    asleep = np.asarray(recording.covariates["sleeping"][:], bool) if "sleeping" in recording.covariates else None
    sleeping = np.zeros(len(levels), bool) if asleep is None else asleep
    ends = [_cause(tuple(vitals), levels[rows], bool(terminal[rows[-1]]), bool(sleeping[rows][-2:-1].any()))
            for rows in pieces]  # fmt: skip
    around, counts = {}, {}
    if achievements is not None and achievements in recording.covariates:
        unlocked = np.asarray(recording.covariates[achievements][:]) > 0
        for kind in range(unlocked.shape[1]):
            firsts = [(e, int(unlocked[rows, kind].argmax())) for e, rows in enumerate(pieces)
                      if unlocked[rows, kind].any()]  # fmt: skip
            if firsts:
                around[str(kind)], counts[str(kind)] = _around(traces, firsts, window), len(firsts)
    lengths = np.array([len(rows) for rows in pieces])
    picked = rng.integers(0, len(pieces), 1000)
    random = [(int(e), int(rng.integers(lengths[e]))) for e in picked]
    own = getattr(recording, "provenance", None) or Provenance.here()
    return VitalsResult(
        vitals=tuple(vitals), action_given_level=given, steps=steps, bits=bits, chance=null.mean(0),
        p=p_value(bits, null), window=window, around=around, around_count=counts,
        around_chance=_around(traces, random, window), causes={c: ends.count(c) for c in dict.fromkeys(ends)},
        lengths=lengths, traces=traces, settings={"draws": draws, "seed": seed},
        provenance=own.again(seeds={**own.seeds, "trace_vitals": seed}),
    )  # fmt: skip


def _vital(recording: Recorded, name: str, index: int) -> np.ndarray:
    if name not in recording.covariates and "inventory" in recording.covariates and name in VITALS:
        return np.asarray(recording.covariates["inventory"][:])[:, VITALS.index(name)]
    return lookup(recording.covariates, name, "covariate")


def _table(level: np.ndarray, action: np.ndarray, levels: int, actions: int) -> np.ndarray:
    return np.bincount(level * actions + action, minlength=levels * actions).reshape(levels, actions).astype(float)


def _information(table: np.ndarray) -> float:
    """Mutual information in bits of a table of counts."""
    p = table / table.sum()
    free = p.sum(1, keepdims=True) * p.sum(0)
    return float((p[p > 0] * np.log2(p[p > 0] / free[p > 0])).sum())


def _around(traces: np.ndarray, places: Sequence[tuple[int, int]], window: int) -> np.ndarray:
    """(V, 2 window + 1) mean of the traces around (episode, step); steps outside an episode do not count."""
    padded = np.pad(traces, ((0, 0), (0, 0), (window, window)), constant_values=np.nan)
    cut = np.stack([padded[e, :, t : t + 2 * window + 1] for e, t in places])
    known = np.isfinite(cut)
    return np.where(known.any(0), np.where(known, cut, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _cause(vitals: tuple[str, ...], levels: np.ndarray, died: bool, asleep: bool) -> str:
    """levels: (T, V) of one episode."""
    if not died:
        return "alive"
    before = levels[:-1] if len(levels) > 1 else levels
    empty = {}
    for name, cause in CAUSES.items():
        if name in vitals and before[-1, vitals.index(name)] == 0:
            column = before[::-1, vitals.index(name)]
            empty[cause] = len(column) if (column == 0).all() else int((column != 0).argmax())
    if empty:
        return max(empty, key=lambda cause: empty[cause])
    if "health" not in vitals or len(levels) < 2:
        return "unknown"
    health = levels[:, vitals.index("health")]
    fall = health[-2] - health[-1]
    if fall > STRIKE and not asleep:
        return "lava"
    return "combat" if fall >= STRIKE else "unknown"
