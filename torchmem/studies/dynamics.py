"""measure_dynamics: how does one direction of a memory drive another, inside the agent and through its world?

Jacobians of direction activations in a simulator, lagged correlation and regression of them in a recording, and whether
the two agree beyond chance ("causal stories", spec simulator.md 5.9, 5.10, R10). What stands in both is a hypothesis,
to be tried by an intervention (direction_edits.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from torchmem.analysis.correlate_lags import LagsResult, correlate_lags
from torchmem.analysis.find_directions import DirectionsResult
from torchmem.analysis.nulls import false_discoveries, p_value, resample_groups
from torchmem.provenance import Provenance
from torchmem.recording import Recording
from torchmem.studies.dynamics_result import DynamicsResult
from torchmem.studies.saliency import measure_saliency

DRAWS, LABELS = 500, 500


def measure_dynamics(
    simulator: str | Path,
    recording: str | Path,
    directions: DirectionsResult,
    *,
    lags: int = 4,
    ways: Sequence[str] = ("total", "internal", "external"),
    samples: int = 64,
    where: np.ndarray | None = None,
    draws: int = 200,
    seed: int = 0,
    **how: Any,
) -> DynamicsResult:
    """Jacobians over 0..lags steps from `samples` real starts, beside what the same directions do in the recording.

    where: (steps,) bool of the recording, of a behaviour: where Jacobians begin and links are counted.
    directions: of the site `memory`, found on this recording or another of the same agent. how: as for
    `measure_saliency` (through, sees, noise of world and actions, agent, batch, device, allow).

    Raises FidelityError, ValueError for directions of another site or size.
    """
    if directions.site != "memory":
        raise ValueError(f"the directions are of {directions.site}: find them on the site memory")
    found = measure_saliency(
        simulator, recording, scalars=["directions"], at=lags, wrt=["memory"], ways=ways, directions=directions,
        samples=samples, where=where, seed=seed, **how,
    )  # fmt: skip
    slopes = {way: found.slopes[f"{way}.directions"] for way in ways}
    rec = Recording(recording)
    seen = correlate_lags(rec, directions, lags=lags, where=where, draws=draws, seed=seed)
    return compare_stories(
        slopes, seen, directions, found.origin[:, 0], seed=seed, simulator=str(simulator),
        provenance=found.provenance, settings={**found.settings, "lags": lags, "draws": draws},
    )  # fmt: skip


def compare_stories(
    slopes: dict[str, np.ndarray], seen: LagsResult, directions: DirectionsResult, episode: np.ndarray, *,
    seed: int = 0, simulator: str, provenance: Provenance, settings: dict[str, Any],
) -> DynamicsResult:  # fmt: skip
    """slopes[way]: (K later, B, S, K earlier), the target at the last step; seen: lags 0..S-1; episode (B,) of each."""
    rng = np.random.default_rng(seed)
    steps = next(iter(slopes.values())).shape[2]
    if seen.lags != tuple(range(steps)):
        raise ValueError(f"the recording was asked for lags {seen.lags}, the gradients reach back {steps - 1}")
    unit = directions.spread[:, None] / directions.spread  # a slope in standard deviations, row earlier, column later
    regression = seen.regression * unit
    members = np.unique(episode, return_inverse=True)[1]
    weight = resample_groups(members.max() + 1, DRAWS, rng)[:, members].astype(np.float64)
    weight = weight[weight.sum(1) > 0]
    mean, low, high, p = {}, {}, {}, {}
    for way, values in slopes.items():
        jacobian = values.transpose(1, 2, 3, 0)[:, ::-1].astype(np.float64) * unit  # (B, L, earlier, later)
        mean[way] = jacobian.mean(0)
        again = np.tensordot(weight / weight.sum(1, keepdims=True), jacobian, 1)
        low[way], high[way] = np.quantile(again, [0.025, 0.975], axis=0)
        # the slope of a linear system has no spread at all: below a millionth of a deviation there is none to be told
        p[way] = 2 * norm.sf(np.abs(mean[way]) / np.maximum(again.std(0), 1e-6))
    told = {"": (regression, seen.unlinked * unit), " (r)": (seen.correlation, seen.exchanged)}
    agreement = {
        f"{way}{kind}": _agreement(value, real, exchanged, rng)
        for kind, (real, exchanged) in told.items()
        for way, value in mean.items()
    }
    edges = [edge for way in slopes for edge in _edges(way, mean[way], regression, p[way], seen.regression_p)]
    edges.sort(key=lambda e: (not e[7], e[6], -abs(e[4] * e[5])))
    return DynamicsResult(
        simulator=simulator, site=directions.site, names=seen.names, samples=len(episode), jacobian=mean,
        jacobian_low=low, jacobian_high=high, jacobian_p=p, correlation=seen.correlation, regression=regression,
        regression_p=seen.regression_p, agreement=agreement, edges=edges, settings=settings, provenance=provenance,
    )  # fmt: skip


def _agreement(
    slope: np.ndarray, real: np.ndarray, exchanged: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(L, 6), see DynamicsResult. A slope of zero agrees with nothing and is not counted."""
    size, count = slope.shape[:2]
    out = np.full((size, 6), np.nan)
    off = ~np.eye(count, dtype=bool)
    orders = [rng.permutation(count) for _ in range(LABELS)]
    for lag in range(1, size):
        j = slope[lag][off]
        told = np.abs(j) > 1e-6 * max(float(np.abs(slope[lag]).max()), 1e-300)  # else rounding has a say
        if count < 2 or not told.any():
            continue
        j = j[told]
        # what all episodes share at the same steps is no link between two directions: take it away from both
        shared = exchanged[:, lag].mean(0) if len(exchanged) else 0.0
        link = real[lag] - shared

        def measure(c: np.ndarray, j: np.ndarray = j, told: np.ndarray = told) -> tuple[float, float]:
            """Share of equal signs, and the product of both."""
            c = c[off][told]
            return float((np.sign(j) == np.sign(c)).mean()), float(j @ c)

        same, product = measure(link)
        length = float(np.linalg.norm(j) * np.linalg.norm(link[off][told]))
        time = np.array([measure(c - shared) for c in exchanged[:, lag]]).reshape(-1, 2)
        label = np.array([measure(link[np.ix_(order, order)])[0] for order in orders])
        if len(time):
            out[lag] = (same, time[:, 0].mean(), p_value(np.array(same), time[:, 0]), p_value(np.array(same), label),
                        product / length if length > 0 else 0.0,
                        p_value(np.array(product), time[:, 1]))  # fmt: skip
    return out


def _edges(
    way: str, slope: np.ndarray, regression: np.ndarray, slope_p: np.ndarray, regression_p: np.ndarray
) -> list[tuple[str, int, int, int, float, float, float, bool]]:
    """All unlike pairs at lags > 0 of one way; both p must be small and both signs the same."""
    count = slope.shape[1]
    places = [(lag, a, b) for lag in range(1, len(slope)) for a in range(count) for b in range(count) if a != b]
    if not places:
        return []
    index = tuple(np.array(places).T)
    same = np.sign(slope[index]) == np.sign(regression[index])
    p = np.where(same, np.maximum(slope_p[index], regression_p[index]), 1.0)
    stands = false_discoveries(p)
    return [
        (way, lag, a, b, float(slope[lag, a, b]), float(regression[lag, a, b]), float(p[i]), bool(stands[i]))
        for i, (lag, a, b) in enumerate(places)
    ]
