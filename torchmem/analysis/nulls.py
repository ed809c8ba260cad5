"""What a score must beat: labels whose link to the activations is cut while their own structure in time is kept.

Steps of one episode resemble each other, so a shuffle of single rows destroys more than the link and makes everything
look significant. Labels are therefore exchanged between whole episodes, or shifted in a circle within each.
"""

from __future__ import annotations

import numpy as np


def spans(episode: np.ndarray) -> list[np.ndarray]:
    """The rows (indices, in order) of each episode, in order of first appearance. episode: (N,) ids."""
    _, first, inverse = np.unique(episode, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    return [pieces[i] for i in np.argsort(first)]


def exchange_rows(episode: np.ndarray, rng: np.random.Generator, group: np.ndarray | None = None) -> np.ndarray:
    """(N,) row whose label each row gets: each episode takes the labels of a random other (or the same) episode.

    Step j of an episode gets its donor's step j, so that what the labels owe to time in the episode stays; a shorter
    donor repeats its last label. group: (N,) ids of what is exchanged as a whole where episodes are not independent
    (those of one maze layout): episode i of a group then takes the labels of episode i (modulo its count) of another.
    """
    members: dict[object, list[np.ndarray]] = {}
    for rows in spans(episode):
        members.setdefault(rows[0] if group is None else group[rows[0]], []).append(rows)
    groups = list(members.values())
    source = np.empty(len(episode), np.int64)
    for takers, giver in zip(groups, rng.permutation(len(groups))):
        for i, taker in enumerate(takers):
            donor = groups[giver][i % len(groups[giver])]
            source[taker] = donor[np.minimum(np.arange(len(taker)), len(donor) - 1)]
    return source


def shift_rows(episode: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) row whose label each row gets: each episode's labels are turned by its own random number of steps (>= 1).

    What the labels owe to the episode as a whole stays. Episodes of a single step stay as they are.
    """
    source = np.empty(len(episode), np.int64)
    for rows in spans(episode):
        source[rows] = np.roll(rows, rng.integers(1, len(rows)) if len(rows) > 1 else 0)
    return source


def deal_folds(groups: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) fold of each row: whole groups, dealt in random order, longest first, to the fold with the fewest rows.

    The labels play no part: folds that are balanced by the true labels would favour these over exchanged ones.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order], kind="stable")]
    fold, load = np.empty(len(counts), np.int64), np.zeros(folds)
    for group in order:
        fold[group] = load.argmin()
        load[fold[group]] += counts[group]
    return fold[inverse]


def resample_groups(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, count) how often each of `count` groups occurs in a bootstrap sample of as many groups."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def p_value(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Share of draws that reach the score, the score itself counted as one: never 0. score: (...), null: (R, ...).

    NaN where the score or any draw is NaN.
    """
    p = (1 + (null >= score).sum(0)) / (1 + len(null))
    return np.where(np.isfinite(score) & np.isfinite(null).all(0), p, np.nan)


def false_discoveries(p: np.ndarray, rate: float = 0.05) -> np.ndarray:
    """(N,) bool: the tests that stand when at most this share of those that stand may be false alarms.

    Benjamini and Hochberg 1995. p: (N,); NaN never stands.
    """
    p = np.where(np.isfinite(p), p, 1.0)
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / len(p))
    out = np.zeros(len(p), bool)
    out[order[: below[-1] + 1 if len(below) else 0]] = True
    return out
