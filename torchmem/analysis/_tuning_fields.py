"""The shape of rate maps, of all units at once: fields by autocorrelation, borders, and statistics of neighbours."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

PEAK, CORE = 0.15, 0.5  # of the autocorrelation, as vviggyy/dreamerv3f and pRNN have them
NEAR = 2  # tiles from a wall that count as beside it (pRNN)
WITHIN = np.zeros((3, 3, 3), bool)  # neighbours in the same map, none in the next
WITHIN[1] = True


def autocorrelate(maps: np.ndarray) -> np.ndarray:
    """(U, 2 W - 1, 2 H - 1) sum of products of each map with itself at every shift, over its peak.

    maps: (U, W, H); bins without a visit (NaN) take no part. All NaN where a map is 0 throughout.
    """
    filled = np.nan_to_num(maps).astype(np.float32)
    shape = [2 * n - 1 for n in maps.shape[1:]]
    size = [fft.next_fast_len(n, real=True) for n in shape]
    spectrum = np.asarray(fft.rfft2(filled, size))
    power = np.asarray(fft.irfft2(np.abs(spectrum) ** 2, size))
    power = np.roll(power, (maps.shape[1] - 1, maps.shape[2] - 1), (1, 2))[:, : shape[0], : shape[1]]
    peak = (filled**2).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((peak > 0)[:, None, None], power / peak[:, None, None], np.nan)


def fields(maps: np.ndarray) -> dict[str, np.ndarray]:
    """peaks, field_size (tiles) and asymmetry of each unit, NaN for a unit whose map is 0.

    peaks: number of fields, (local maxima of the autocorrelation above 0.15, + 1) // 2. field_size: square root of the
    area of its central part above 0.5. asymmetry: long over short axis of that part, the short one at least 1 tile.
    """
    correlation = autocorrelate(maps)
    alive = np.isfinite(correlation[:, 0, 0])
    values = np.round(np.nan_to_num(correlation), 5)  # the transform's last digits must not make or break a plateau
    top = (ndimage.maximum_filter(values, size=(1, 3, 3)) == values) & (values > PEAK)
    peaks = _components(top)
    label, _ = _labelled(values > CORE, WITHIN)
    middle = label[:, maps.shape[1] - 1, maps.shape[2] - 1]
    core = (label == middle[:, None, None]) & (middle > 0)[:, None, None]
    area = core.sum((1, 2)).astype(float)
    x, y = (np.arange(n, dtype=float) - n // 2 for n in values.shape[1:])
    column, row = core.sum(2), core.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = column @ x / area, row @ y / area
        less = np.maximum(area - 1, 1)
        xx, yy = (column @ x**2 - area * mx**2) / less, (row @ y**2 - area * my**2) / less
        xy = (np.einsum("uxy,x,y->u", core, x, y, optimize=True) - area * mx * my) / less
    spread = np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    long, short = (2 * np.sqrt(np.maximum((xx + yy) / 2 + sign * spread, 0)) for sign in (1, -1))
    found = {"peaks": (peaks + 1) // 2, "field_size": np.sqrt(area), "asymmetry": long / np.maximum(short, 1)}
    return {name: np.where(alive, each, np.nan) for name, each in found.items()}


def _labelled(mask: np.ndarray, structure: np.ndarray) -> tuple[np.ndarray, int]:
    label = np.zeros(mask.shape, np.int32)
    return label, int(ndimage.label(mask, structure, output=label))  # pyright: ignore[reportArgumentType]


def _components(mask: np.ndarray) -> np.ndarray:
    """(U,) connected parts of each (U, W, H) mask."""
    label, count = _labelled(mask, WITHIN)
    first = np.full(count + 1, -1)
    u, x, y = np.nonzero(mask)
    first[label[u, x, y]] = u
    return np.bincount(first[1:], minlength=len(mask)).astype(float)


def wall_groups(walls: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(group -> (W, H) free tiles within 2 of it, (W, H) free tiles farther than 2 from every wall).

    walls: (W, H) bool; beyond the map all is wall. Groups: left, right, top, bottom are walls connected with the
    outside as met in that direction; inner walls are not connected with it.
    """
    padded = np.pad(walls, NEAR + 1, constant_values=True)
    label, _ = _labelled(padded, np.ones((3, 3), bool))
    outer = padded & (label == label[0, 0])
    free = ~walls

    def beside(wall: np.ndarray, dx: int, dy: int) -> np.ndarray:
        found = np.zeros_like(walls)
        blocked = np.zeros_like(walls)
        for k in range(1, NEAR + 1):
            x, y = NEAR + 1 + k * dx, NEAR + 1 + k * dy
            window = (slice(x, x + walls.shape[0]), slice(y, y + walls.shape[1]))
            found |= wall[window] & ~blocked
            blocked |= padded[window]
        return found & free

    ways = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
    groups = {name: beside(outer, *way) for name, way in ways.items()}
    groups["inner"] = np.logical_or.reduce([beside(padded & ~outer, *way) for way in ways.values()])
    far = free & ~np.logical_or.reduce(list(groups.values()))
    return groups, far


def border_score(maps: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """(U,) (near - far) / (near + far) of the mean rate within 2 tiles of one wall group and far from all; the best
    group counts. NaN where no visited tile is near one, or none is far. maps: (U, W, H) >= 0. Source: pRNN."""
    groups, far = wall_groups(walls)
    seen = np.isfinite(maps[0])
    if not (far & seen).any():
        return np.full(len(maps), np.nan)
    away = maps[:, far & seen].mean(1)
    best = np.full(len(maps), np.nan)
    for near in groups.values():
        if (near & seen).any():
            beside = maps[:, near & seen].mean(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                best = np.fmax(best, (beside - away) / (beside + away))
    return best


def neighbours(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Moran's I, Geary's C and Getis and Ord's general G of each map over visited tiles, weight 1 for the up to 8
    neighbours of a tile. NaN for a constant map; G also for one with negative values. maps: (U, W, H)."""
    seen = np.isfinite(maps[0])
    values = maps[:, seen].astype(np.float64)
    index = np.full(seen.shape, -1)
    index[seen] = np.arange(seen.sum())
    pairs = []
    for dx, dy in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = index[: seen.shape[0] - dx, max(0, -dy) : seen.shape[1] - max(0, dy)]
        there = index[dx:, max(0, dy) : seen.shape[1] - max(0, -dy)]
        both = (here >= 0) & (there >= 0)
        pairs.append(np.stack([here[both], there[both]]))
    i, j = np.concatenate(pairs, 1)
    n, weight = values.shape[1], 2 * len(i)
    z = values - values.mean(1, keepdims=True)
    square = (z**2).sum(1)
    total = values.sum(1)
    cross = 2 * np.einsum("up,up->u", values[:, i], values[:, j])
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = square > 1e-12 * (values**2).sum(1)
        moran = n / weight * 2 * np.einsum("up,up->u", z[:, i], z[:, j]) / square
        geary = (n - 1) / (2 * weight) * 2 * ((values[:, i] - values[:, j]) ** 2).sum(1) / square
        getis = cross / (total**2 - (values**2).sum(1))
    found = {"moran": moran, "geary": geary, "getis": np.where(values.min(1) >= 0, getis, np.nan)}
    return {name: np.where(varies, each, np.nan) for name, each in found.items()}
