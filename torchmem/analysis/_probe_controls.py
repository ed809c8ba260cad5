"""What a probe of the memory must beat: a guess, a clock, the present observation, labels of other episodes."""

from __future__ import annotations

import numpy as np

from torchmem.analysis._probe_data import ProbeData
from torchmem.analysis.nulls import exchange_rows, shift_rows

WIDEST_OBSERVATION = 4096  # entries: beyond that the sums of a linear probe (width^2) do not fit in memory
KNOTS = 16  # of the piecewise linear function of time in the time-only control


def guess(data: ProbeData) -> np.ndarray:
    """(1, N) quality of the best constant answer, known in hindsight: the majority class, or the mean.

    A guess from the training folds alone would be an easy rival: with few episodes their majority is the minority of
    the held-out ones.
    """
    if data.values is not None:
        return (data.y[:, 0] == np.bincount(data.y[:, 0]).argmax()).astype(np.float64)[None]
    return ((data.y - data.y.mean(0)) ** 2).sum(1)[None]


def clock(step: np.ndarray) -> np.ndarray:
    """(N, knots) piecewise linear functions of the step within the episode: what a clock could tell."""
    knots = np.unique(np.quantile(step, np.linspace(0, 1, KNOTS)))
    return np.stack([np.interp(step, knots, row) for row in np.eye(len(knots))], 1)


def observe(data: ProbeData, asked: str, notes: list[str]) -> np.ndarray | None:
    """The site or covariate `asked` for, or all covariates that begin with "obs."."""
    known = [*data.recording.activations, *data.recording.covariates]
    names = [n for n in data.recording.covariates if n.startswith("obs.")] if asked == "auto" else [asked]
    if asked != "auto" and asked not in known:
        raise ValueError(f"observation={asked!r} was not recorded; there are {', '.join(known)}")
    if not names:
        notes.append("no observation-only control: no covariate begins with 'obs.'; name an encoder site: observation=")
        return None
    matrix = np.concatenate([data.matrix(name) for name in names], 1)
    if matrix.shape[1] > WIDEST_OBSERVATION:
        notes.append(f"no observation-only control: {matrix.shape[1]} entries are too wide; name an encoder site")
        return None
    return matrix


def cut_bins(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(edges (J,), index (N,)): every value is a bin where there are few, else bins of about equal size."""
    edges = np.unique(values)
    if len(edges) > bins:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[:-1]))
    return edges, place(values, edges)


def place(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return (np.searchsorted(edges, values, side="right") - 1).clip(0)


def draw_labels(data: ProbeData, draws: int, rng: np.random.Generator, notes: list[str]) -> dict[str, list[np.ndarray]]:
    """name -> draws of (N,) rows whose labels replace the true ones."""
    grouped = None if np.array_equal(data.group, data.episode) else data.group
    sources = {
        "exchanged": [exchange_rows(data.episode, rng, grouped) for _ in range(draws)],
        "shifted": [shift_rows(data.episode, rng) for _ in range(draws)],
    }
    if all((data.y[rows] == data.y).all() for rows in sources["shifted"]):
        del sources["shifted"]
        notes.append("no shifted control: the target does not change within an episode")
    return sources
