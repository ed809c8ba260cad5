"""Episodes of a recording, real or simulated, as the panel shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.recording import Recording
from torchmem.studies.looks import action_names, pictures
from torchmem.types import EnvSpec

REAL, SIMULATED = "real", "simulated"


@dataclasses.dataclass
class Sample:
    """S steps of one episode. origin: recorded episode and step it begins at, (-1, -1) without; seed: of its reset.

    frames (S, H, W, 3) uint8, or None; shown (S, N) the numbers shown in its stead. action (S,) classes, -1 where none
    was chosen, or None; lines (S, L) what is drawn of the policy: log-probabilities, else means of continuous actions.
    states: site -> (S, N). obs: what was shown, as recorded. cluster (S,), -1 without. edited: the matched pair of it.
    """

    name: str
    source: str
    number: int
    origin: tuple[int, int]
    seed: int
    reward: np.ndarray
    value: np.ndarray
    lines: np.ndarray
    states: dict[str, np.ndarray]
    obs: dict[str, np.ndarray]
    frames: np.ndarray | None = None
    shown: np.ndarray | None = None
    action: np.ndarray | None = None
    done: np.ndarray | None = None
    cluster: np.ndarray | None = None
    edited: Sample | None = None

    def __len__(self) -> int:
        return len(self.reward)


def line_names(spec: EnvSpec) -> list[str]:
    """What the columns of `Sample.lines` are, by name."""
    if names := action_names(spec):
        return list(names)
    return [
        f"{key} {i}" if space.one_hot_size > 1 else key
        for key, space in sorted(spec.action.items()) if not space.discrete for i in range(space.one_hot_size)
    ]  # fmt: skip


def read_samples(rec: Recording, spec: EnvSpec, sites: Sequence[str], episodes: int, steps: int) -> list[Sample]:
    """The first `episodes` episodes, each up to `steps` steps. Raises ValueError where observations are missing."""
    missing = [key for key in spec.obs if f"obs.{key}" not in rec.covariates]
    if missing:
        raise ValueError(f"{rec.path} does not hold obs.{missing[0]}, so there is nothing to show: record it with "
                         f"observations, of the world {spec.name}")  # fmt: skip
    simulated = "from_episode" in rec.covariates
    return [_sample(rec, spec, sites, i, steps, simulated) for i in range(min(episodes, len(rec.episodes)))]


def _sample(rec: Recording, spec: EnvSpec, sites: Sequence[str], number: int, steps: int, simulated: bool) -> Sample:
    whole = rec.rows(number)
    rows = slice(whole.start, min(whole.stop, whole.start + steps))

    def column(name: str, default: float = np.nan) -> np.ndarray:
        if name in rec.covariates:
            return np.asarray(rec.covariates[name][rows])
        return np.full(rows.stop - rows.start, default, np.float32)

    obs = {key: column(f"obs.{key}") for key in spec.obs}
    kind = SIMULATED if simulated else REAL
    sample = Sample(
        name=f"{kind} {number}", source=kind, number=number, origin=(number, 0), seed=int(rec.episodes["seed"][number]),
        reward=column("reward"), value=column("value"), lines=_lines(spec, rec, rows), obs=obs,
        states={s: np.asarray(rec.activations[s][rows], np.float32) for s in sites if s in rec.activations},
        frames=pictures(spec, obs), done=column("done") if simulated else column("is_terminal").astype(np.float32),
    )  # fmt: skip
    if simulated:
        sample.origin = (int(column("from_episode")[0]), int(column("from_step")[0]))
    if sample.frames is None:
        sample.shown = np.concatenate([v.reshape(len(v), -1) for v in obs.values()], 1).astype(np.float32)
    if action_names(spec):
        (key,) = spec.action
        sample.action = column(key).astype(np.int64)
        if not simulated:  # what was recorded there are zeros
            sample.action = np.where(column("is_last").astype(bool), -1, sample.action)
    return sample


def _lines(spec: EnvSpec, rec: Recording, rows: slice) -> np.ndarray:
    names = line_names(spec)
    none = np.full((rows.stop - rows.start, len(names)), np.nan, np.float32)
    if action_names(spec):
        (key,) = spec.action
        if f"logits.{key}" not in rec.covariates:
            return none
        logits = np.asarray(rec.covariates[f"logits.{key}"][rows], np.float64)
        top = logits.max(-1, keepdims=True)
        return (logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))).astype(np.float32)
    parts = []
    for key, space in sorted(spec.action.items()):
        if not space.discrete:
            name = f"mean.{key}" if f"mean.{key}" in rec.covariates else key
            parts.append(np.asarray(rec.covariates[name][rows]).reshape(len(none), -1))
    return np.concatenate(parts, 1).astype(np.float32) if parts else none


def pair_edited(samples: Sequence[Sample], edited: Sequence[Sample], where: str) -> int:
    """Give each sample its edited pair: simulated ones begin alike, real ones have the same seed. Returns how many.

    Raises ValueError where not one has a pair.
    """

    def mark(one: Sample) -> tuple[object, ...]:
        return (one.source, one.number, *one.origin) if one.source == SIMULATED else (one.source, one.seed)

    known = {mark(one): one for one in edited if one.source == SIMULATED or one.seed >= 0}
    found = 0
    for one in samples:
        if (pair := known.get(mark(one))) is not None:
            one.edited = pair
            found += 1
    if not found:
        raise ValueError(f"{where} holds no episode with the seed or start of one that is shown: give the same --seed")
    return found


def put_clusters(result: Any, samples: Sequence[Sample], homes: Mapping[str, Path]) -> dict[str, int]:
    """Write the label of each step into the samples of the recordings that were clustered.

    homes: source -> folder of its recording. Returns, by source, which of the clustered recordings that is.
    Raises ValueError where the result has no labels, or none of these recordings.
    """
    labels = getattr(result, "label", None)
    if labels is None:
        raise ValueError(f"a {type(result).__name__} has no labels by step: give what torchmem behaviours wrote")
    names = [Path(name).resolve() for name in result.recordings]
    taken = {source: names.index(home.resolve()) for source, home in homes.items() if home.resolve() in names}
    if not taken:
        told = ", ".join(map(str, names))
        raise ValueError(f"the clusters are of {told}, which is not shown here: give it as --recording or --simulated")
    for one in samples:
        if one.source not in taken:
            continue
        mine = (result.recording == taken[one.source]) & (result.episode == one.number)
        one.cluster = np.full(len(one), -1)
        steps, label = result.step[mine], labels[mine]
        kept = steps < len(one)
        one.cluster[steps[kept]] = label[kept]
    return taken
