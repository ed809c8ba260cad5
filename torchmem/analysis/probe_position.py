"""Where is the agent, by its activations: decoders of the tile, all sites and folds at once, with controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from torchmem.analysis import _position_lda as lda
from torchmem.analysis._position_data import (
    PositionData,
    Scaled,
    batches,
    read_position_data,
    scale_site,
    stack,
)  # fmt: skip
from torchmem.analysis._position_fit import Model, fit_ridge_position, fit_tiles, null_ridge, null_tiles
from torchmem.analysis._position_nets import Prnn, fit_mlp, fit_prnn
from torchmem.analysis._position_result import PositionResult
from torchmem.analysis._position_score import LOWER, METRICS, Errors, Guesses, chance, prior_log_p
from torchmem.analysis._probe_controls import clock, draw_labels
from torchmem.analysis._probe_data import Recorded
from torchmem.analysis.nulls import resample_groups
from torchmem.result import Provenance

__all__ = ["PositionResult", "Prnn", "probe_position"]

Decoder = Literal["tiles", "ridge", "mlp", "prnn"]
AT_ONCE = 2**23  # entries of squared widths, times folds, in one solve
SHOWN = 12  # steps whose probability map is kept
PIXELS = 16  # side of the picture that the raw-pixel control sees


def probe_position(
    recording: Recorded,
    sites: str | Sequence[str] = "*",
    target: str = "pos",
    *,
    decoder: Decoder = "tiles",
    groups: str | np.ndarray = "episode",
    folds: int = 5,
    holdout: float = 0.0,
    where: str | Sequence[str] | np.ndarray | None = None,
    cell: float = 1.0,
    area: tuple[int, int] | None = None,
    pixels: str | None = "obs.image",
    untrained: Recorded | None = None,
    widest: int = 1024,
    draws: int = 20,
    resamples: int = 1000,
    prnn: Prnn | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> PositionResult:
    """Decode the tile that `target` (steps, 2) lies in from each site, always on episodes (groups) held out as a whole.

    decoder: "tiles", a linear classifier over tiles (discriminants with one covariance, in closed form); "ridge",
    linear regression of x and y; "mlp", 128 hidden units over tiles; "prnn", the decoder of pRNN and dreamerv3f as it
    was (settings: `prnn`), slow. Penalties and calibration are chosen by the training folds alone. groups: "episode",
    or a covariate such as "world". holdout: hold out this share of the groups once in place of cross-validation.
    cell: side of a tile in units of the target. area: (W, H) of a grid from 0; None: the box of what was visited.
    widest: sites with more units are turned to as many principal components first (noted). where, folds: as fit_probe.

    Scores: mean and median Manhattan error in tiles of the likeliest tile, its accuracy; Manhattan error of the mean
    position; log loss in nats; bits gained on who knows the occupancy alone. Controls: uniform guesses over the grid;
    guesses drawn from the training occupancy; its modal tile; a refit to labels exchanged between episodes, or shifted
    in a circle within them (`draws` each, with the penalty that serves them best; of the tile classifier unless
    decoder="ridge"); time in the episode alone; `pixels`: the picture alone, 16 x 16; `untrained`: another recording.
    Intervals: bootstrap over episodes.

    Raises ValueError for unknown names, too few episodes, too many tiles.
    """
    if decoder not in ("tiles", "ridge", "mlp", "prnn"):
        raise ValueError(f"decoder={decoder!r}: tiles, ridge, mlp or prnn")
    if draws < 1 or resamples < 1:
        raise ValueError(f"draws={draws}, resamples={resamples}: at least one of each")
    area = area or _known_area(recording)
    read = {"groups": groups, "folds": folds, "holdout": holdout, "where": where, "cell": cell, "area": area}
    rng = np.random.default_rng(seed)
    data = read_position_data(recording, sites, target, rng=rng, **read)
    names, notes = data.probe.sites, []
    raw = {name: data.probe.matrix(name) for name in names}
    scaled = {name: scale_site(raw[name], widest, seed) for name in names}
    notes += [f"{n}: {raw[n].shape[1]} units turned to {widest} components, {one.kept:.1%} of the variance"
              for n, one in scaled.items() if one.basis is not None and decoder != "prnn"]  # fmt: skip
    guesses, models = _decode(decoder, raw, scaled, data, prnn or Prnn(), seed, device)

    unit = np.unique(data.probe.group, return_inverse=True)[1]
    weights = resample_groups(int(unit.max()) + 1, resamples, rng)
    if holdout:  # only the groups that were tested can be drawn
        tested = np.unique(unit[data.fold == 0])
        weights = np.zeros_like(weights)
        weights[:, tested] = resample_groups(len(tested), resamples, rng)
    prior = prior_log_p(data)
    errors = Errors.of(guesses, unit, prior)
    scores, boot = errors.scores(), errors.scores(weights)
    controls: dict[str, dict[str, np.ndarray]] = {}
    for name, found in _refits(data, scaled, decoder, draws, rng, device, notes).items():
        better = found["manhattan"] <= scores["manhattan"]
        controls[name] = {metric: values.mean(0) for metric, values in found.items()}
        controls[name]["spread"] = found["manhattan"].std(0)
        controls[name]["p"] = (1 + better.sum(0)) / (1 + len(better))
    rivals = {name: (chance(data, name, unit, prior), weights) for name in ("uniform", "occupancy", "modal tile")}
    blind = {"time only": clock(data.probe.step)}
    if pixels is not None and pixels in recording.covariates:
        blind["pixels only"] = _small(np.asarray(recording.covariates[pixels][:])[data.probe.rows])
    elif pixels is not None:
        notes.append(f"no pixels-only control: {pixels} was not recorded")
    other_kind = decoder if decoder == "ridge" else "tiles"
    for name, matrix in blind.items():
        own = {name: scale_site(matrix, widest, seed)}
        rivals[name] = Errors.of(_decode(other_kind, {}, own, data, Prnn(), seed, device)[0], unit, prior), weights
    if untrained is not None:
        theirs = read_position_data(untrained, list(names), target, rng=rng, **read)
        their_raw = {name: theirs.probe.matrix(name) for name in names}
        own = {name: scale_site(their_raw[name], widest, seed) for name in names}
        made = _decode(decoder, their_raw, own, theirs, prnn or Prnn(), seed, device)[0]
        their_unit = np.unique(theirs.probe.group, return_inverse=True)[1]
        drawn = resample_groups(int(their_unit.max()) + 1, resamples, rng)
        rivals["untrained"] = Errors.of(made, their_unit, prior_log_p(theirs)), drawn
    for name, (rival, drawn) in rivals.items():
        total, resampled = rival.scores(), rival.scores(drawn)["manhattan"]
        controls[name] = {metric: np.broadcast_to(total[metric], len(names)).copy() for metric in METRICS}
        if name == "modal tile":
            controls[name] |= {metric: np.full(len(names), np.nan) for metric in ("nll", "bits")}  # it has no odds
        controls[name]["p"] = (1 + (boot["manhattan"] >= resampled).sum(0)) / (1 + resamples)
    own_provenance = getattr(recording, "provenance", None) or Provenance.here()
    grid = data.grid
    return PositionResult(
        decoder=decoder, target=target, sites=names, widths=tuple(raw[n].shape[1] for n in names),
        steps=int((np.isin(data.fold, data.tested)).sum()), groups=int(unit.max()) + 1, folds=folds, holdout=holdout,
        origin=grid.origin, shape=grid.shape, cell=cell, scores=scores,
        intervals={m: np.nanpercentile(boot[m], [2.5, 97.5], axis=0).T for m in METRICS}, controls=controls,
        rows=data.probe.rows, tile=grid.tile.astype(np.int16), episode=np.asarray(data.probe.episode),
        held_out=np.isin(data.fold, data.tested), best=guesses.best, expected=guesses.expected, log_p=guesses.log_p,
        shown=guesses.shown, maps=guesses.maps, cells=grid.cells.astype(np.int16),
        decoders={n: _whole(models[n], scaled[n], decoder) for n in names},
        settings={k: v if isinstance(v, str | int | float | tuple) or v is None else "given" for k, v in read.items()}
        | {"seed": seed, "draws": draws, "resamples": resamples, "lower_is_better": sorted(LOWER)},
        notes=tuple(notes), provenance=own_provenance.again(seeds={**own_provenance.seeds, "probe_position": seed}),
    )  # fmt: skip


def _known_area(recording: Recorded) -> tuple[int, int] | None:
    """The (W, H) that an importer or the world's own arguments name."""
    provenance, plan = getattr(recording, "provenance", None), getattr(recording, "plan", {})
    found = plan.get("kwargs", {}).get("area") or (provenance.config.get("area") if provenance else None)
    return (int(found[0]), int(found[1])) if isinstance(found, Sequence) and len(found) == 2 else None


def _decode(
    decoder: str, raw: Mapping[str, np.ndarray], scaled: dict[str, Scaled], data: PositionData, prnn: Prnn, seed: int,
    device: str,
) -> tuple[Guesses, dict[str, Model]]:  # fmt: skip
    names = list(scaled)
    held = np.flatnonzero(np.isin(data.fold, data.tested))
    one = held[data.probe.episode[held] == data.probe.episode[held[-1]]]  # a whole episode, in order
    shown = np.unique(one[np.linspace(0, len(one) - 1, min(SHOWN, len(one))).astype(int)])
    order = [names] if decoder == "prnn" else batches(scaled, AT_ONCE // data.folds)
    whole = Guesses.empty(len(names), data.grid, shown)
    models: dict[str, Model] = {}
    for part in order:
        made = Guesses.empty(len(part), data.grid, shown)
        if decoder == "prnn":
            found = fit_prnn([raw[n] for n in part], data, made, 0, prnn, seed, device)
        else:
            x = stack(scaled, part, device)
            fits: dict[str, Any] = {"tiles": fit_tiles, "ridge": fit_ridge_position}
            every = slice(None)
            found = fit_mlp(x, data, made, every, seed) if decoder == "mlp" else fits[decoder](x, data, made, every)
        models |= dict(zip(part, found))
        for i, name in enumerate(part):
            s = names.index(name)
            whole.best[s], whole.expected[s], whole.log_p[s], whole.maps[s] = (
                made.best[i], made.expected[i], made.log_p[i], made.maps[i],
            )  # fmt: skip
    return whole, models


def _whole(model: Model, scaled: Scaled, decoder: str) -> dict[str, np.ndarray]:
    """A decoder that takes the activations as they were recorded."""
    if decoder == "prnn":
        return dict(model)
    kept = {"mean": scaled.mean, "std": scaled.std}
    if scaled.basis is not None:
        kept["basis"] = scaled.basis
    width = scaled.z.shape[1]
    first = "w1" if "w1" in model else "weight"
    return {**kept, **model, first: model[first][:width]}  # without the padding


def _refits(
    data: PositionData, scaled: dict[str, Scaled], decoder: str, draws: int, rng: np.random.Generator, device: str,
    notes: list[str],
) -> dict[str, dict[str, np.ndarray]]:  # fmt: skip
    """Control -> metric -> (draws, S): the probe refitted to labels that are not those of the steps."""
    sources = draw_labels(data.probe, draws, rng, notes)
    null = null_ridge if decoder == "ridge" else null_tiles
    names = list(scaled)
    out = {name: {m: np.zeros((draws, len(names))) for m in ("manhattan", "accuracy")} for name in sources}
    for part in batches(scaled, AT_ONCE // data.folds):
        tiles = lda.Tiles.of(stack(scaled, part, device), torch.as_tensor(data.fold, device=device))
        at = [names.index(name) for name in part]
        for name, drawn in sources.items():
            for r, rows in enumerate(drawn):
                out[name]["manhattan"][r, at], out[name]["accuracy"][r, at] = null(tiles, data.grid.y[rows], data)
    return out


def _small(picture: np.ndarray) -> np.ndarray:
    """(N, height, width, ...) -> (N, pixels), averaged to at most 16 x 16."""
    if picture.ndim < 3 or min(picture.shape[1:3]) < 2 * PIXELS:
        return picture.reshape(len(picture), -1)
    fy, fx = picture.shape[1] // PIXELS, picture.shape[2] // PIXELS
    cut = picture[:, : fy * PIXELS, : fx * PIXELS]
    blocks = cut.reshape(len(cut), PIXELS, fy, PIXELS, fx, -1)
    return blocks.mean((2, 4), dtype=np.float32).reshape(len(cut), -1)
