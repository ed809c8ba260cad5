"""What can be read, linearly, from the activations of each site, and how much of that the controls explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from torchmem.analysis._crossval import validate_sites
from torchmem.analysis._probe_controls import clock, cut_bins, draw_labels, guess, observe, place
from torchmem.analysis._probe_data import Kind, ProbeData, Recorded, read_probe_data
from torchmem.analysis._probe_result import Numbers, ProbeResult
from torchmem.analysis._score import METRICS, Tally
from torchmem.analysis.nulls import deal_folds, p_value, resample_groups
from torchmem.result import Provenance

__all__ = ["ProbeResult", "fit_probe"]

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _folds(data: ProbeData, folds: int, rng: np.random.Generator) -> np.ndarray:
    groups = len(np.unique(data.group))
    if not 3 <= folds <= groups:
        raise ValueError(f"folds={folds} over {groups} groups: record more episodes, or choose 3 to {groups} folds")
    fold = deal_folds(data.group, folds, rng)
    for f in range(folds if data.values is not None else 0):
        if len(np.unique(data.y[fold != f])) < 2:
            raise ValueError(
                f"one class of the target occurs in fold {f} alone, so it cannot be learnt there: use more episodes"
            )
    return fold


def _matrices(data: ProbeData) -> dict[str, np.ndarray]:
    return {name: data.matrix(name) for name in data.sites}


def _units(data: ProbeData) -> np.ndarray:
    """(N,) number of the group: what is resampled."""
    return np.unique(data.group, return_inverse=True)[1]


def fit_probe(
    recording: Recorded,
    sites: str | Sequence[str],
    target: str | np.ndarray,
    *,
    kind: Kind = "auto",
    metric: str | None = None,
    groups: str | np.ndarray = "episode",
    folds: int = 5,
    where: str | Sequence[str] | np.ndarray | None = None,
    by: str | None = None,
    bins: int = 20,
    observation: str | None = "auto",
    untrained: Recorded | None = None,
    alphas: Sequence[float] = ALPHAS,
    draws: int = 20,
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
) -> ProbeResult:
    """Decode `target` from each site with a linear probe that is always tested on episodes it has not seen.

    sites: names or patterns ("dynamics.*"). target: a covariate, or (steps, ...) values. kind: ridge, logistic (two or
    more classes), circular (angle in rad, as cosine and sine); auto goes by the covariate's unit and dtype. metric:
    accuracy (default) or balanced_accuracy. groups: what is held out as a whole, "episode", a covariate (layout
    seed) or (steps,) ids. where: steps to use: "steps_since_cue >= 0", a list of such (all must hold), or a mask.
    by: covariate, or "step" of the episode, over which scores are also shown, in at most `bins` bins.

    Controls: labels exchanged between episodes, or shifted in a circle within them (`draws` each: the smallest p is
    1 / (draws + 1)); majority class or mean, known in hindsight; time in the episode alone; observation alone (the
    covariates "obs.*", or the site or covariate named, None for none); `untrained`: a recording of the untrained agent.
    alphas: penalties per step, chosen anew in each fold and for each draw by the training episodes alone.
    With few episodes chance lies below the majority (whoever holds out a cue has less of it to learn from): compare
    with exchanged labels, not with 1 / classes. resamples: bootstrap samples of episodes. device: "cpu" or "cuda".

    Raises ValueError for an unknown name, a constant target, NaN, or too few episodes.
    Source of the control by selectivity: Hewitt & Liang 2019 (1909.03368), with labels exchanged by episode.
    """
    if draws < 1 or resamples < 1:
        raise ValueError(f"draws={draws}, resamples={resamples}: at least one of each")
    data = read_probe_data(recording, sites, target, kind=kind, groups=groups, by=by, where=where)
    metric = metric or METRICS[data.kind][0]
    if metric not in METRICS[data.kind]:
        raise ValueError(f"metric={metric!r} does not fit a {data.kind} probe: {' or '.join(METRICS[data.kind])}")
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    fold = _folds(data, folds, rng)
    classes = 0 if data.values is None else len(data.values)
    sources = draw_labels(data, draws, rng, notes)
    labels = np.stack([data.y, *(data.y[rows] for name in sources for rows in sources[name])])
    matrices = _matrices(data)
    found = validate_sites(matrices, fold, labels, classes, alphas, device)

    edges, where_bin = cut_bins(data.by, bins) if data.by is not None else (np.zeros(0), np.zeros(len(fold), np.int64))
    unit = _units(data)
    shape = (int(unit.max()) + 1, max(1, len(edges)))
    weights = resample_groups(shape[0], resamples, rng)

    def scored(quality: np.ndarray, y: np.ndarray = data.y) -> Tally:
        return Tally(metric, quality, y, classes, unit, where_bin, shape=shape)

    quality = torch.cat([found[name].quality for name in data.sites]).numpy()  # (S, R, N)
    main = scored(quality[:, 0])
    score, by_score = main.total(), main.by_bin()
    boot, by_boot = main.resampled(weights)
    controls: dict[str, Numbers] = {}
    by_controls: Numbers = {}
    by_p: Numbers = {}
    for i, name in enumerate(sources):
        tallies = [scored(quality[:, r], labels[r]) for r in range(1 + i * draws, 1 + (i + 1) * draws)]
        null, by_null = np.stack([t.total() for t in tallies]), np.stack([t.by_bin() for t in tallies])
        spread = null.std(0, ddof=1) if draws > 1 else np.full(len(score), np.nan)
        controls[name] = {"score": null.mean(0), "spread": spread, "p": p_value(score, null)}
        by_controls[name], by_p[name] = by_null.mean(0), p_value(by_score, by_null)

    single = {"majority" if classes else "mean": guess(data)}
    others = {"time only": clock(data.step)}
    if observation is not None and (seen := observe(data, observation, notes)) is not None:
        others["observation only"] = seen
    for name, held in validate_sites(others, fold, labels[:1], classes, alphas, device).items():
        single[name] = held.quality[:, 0].numpy()
    compared = {name: (scored(q), weights) for name, q in sorted(single.items())}
    if untrained is not None:
        other = read_probe_data(untrained, data.sites, target, kind=data.kind, groups=groups, by=by, where=where,
                                values=data.values)  # fmt: skip
        other_fold, other_unit = _folds(other, folds, rng), _units(other)
        held = validate_sites(_matrices(other), other_fold, other.y[None], classes, alphas, device)
        theirs = torch.cat([held[name].quality[:, 0] for name in data.sites]).numpy()
        other_bin = np.zeros(len(other.y), np.int64) if other.by is None else place(other.by, edges)
        other_shape = (int(other_unit.max()) + 1, shape[1])
        tallied = Tally(metric, theirs, other.y, classes, other_unit, other_bin, shape=other_shape)
        compared["untrained"] = tallied, resample_groups(other_shape[0], resamples, rng)
    for name, (rival, drawn) in compared.items():
        total = np.broadcast_to(rival.total(), score.shape).copy()
        p = (1 + (boot <= rival.resampled(drawn)[0]).sum(0)) / (1 + resamples)
        none = np.full(len(score), np.nan)
        controls[name] = {"score": total, "spread": none, "p": np.where(np.isfinite(total), p, np.nan)}
        by_controls[name] = np.broadcast_to(rival.by_bin(), by_score.shape).copy()
    for control in controls.values():
        control["selectivity"] = score - control["score"]

    settings = {
        "where": f"a mask of {len(fold)} steps" if isinstance(where, np.ndarray) else where,
        "groups": groups if isinstance(groups, str) else "given ids",
        "observation": observation,
    } | {"seed": seed, "draws": draws, "resamples": resamples, "alphas": list(alphas), "bins": bins}
    own = getattr(recording, "provenance", None) or Provenance.here()
    count = np.bincount(where_bin, minlength=shape[1])
    centres = np.zeros(0) if data.by is None else np.bincount(where_bin, data.by, shape[1]) / count
    shown = len(edges)  # 0 without `by`
    return ProbeResult(
        target=target if isinstance(target, str) else "target",
        kind=data.kind,
        metric=metric,
        classes=() if data.values is None else tuple(str(v) for v in data.values.tolist()),
        sites=data.sites,
        widths=tuple(matrices[name].shape[1] for name in data.sites),
        steps=len(fold),
        groups=shape[0],
        folds=folds,
        score=score,
        interval=np.nanpercentile(boot, [2.5, 97.5], axis=0).T,
        alpha=torch.cat([found[name].alpha for name in data.sites]).numpy(),
        controls=controls,
        by=by or "",
        bins=centres,
        by_steps=count[:shown],
        by_score=by_score[:, :shown],
        by_interval=np.nanpercentile(by_boot, [2.5, 97.5], axis=0).transpose(1, 2, 0)[:, :shown],
        by_controls={name: values[:, :shown] for name, values in by_controls.items()},
        by_p={name: values[:, :shown] for name, values in by_p.items()},
        directions={name: found[name].weight[0].numpy() for name in data.sites},
        biases={name: found[name].bias[0].numpy() for name in data.sites},
        settings=settings,
        notes=tuple(notes),
        provenance=own.again(seeds={**own.seeds, "fit_probe": seed}),
    )
