"""What `probe_position` found: errors beside controls from early to late sites, decoders to use again, figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._position_draw import draw_errors, draw_maps, draw_occupancy
from torchmem.result import Result, save_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """p: (n, C) probabilities of `tiles` (C, 2). best: (n, 2) likeliest tile. mean: (n, 2) mean position. Tiles are in
    the coordinates of the recording, divided by `cell` and rounded down."""

    p: np.ndarray
    tiles: np.ndarray
    best: np.ndarray
    mean: np.ndarray

    def maps(self, origin: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
        """(n, W, H) probability maps on a grid."""
        out = np.zeros((len(self.p), *shape), np.float32)
        at = self.tiles - np.array(origin)
        out[:, at[:, 0], at[:, 1]] = self.p
        return out


@dataclasses.dataclass(frozen=True)
class PositionResult(Result):
    """Scores of S sites on held-out groups, beside controls. Distances are Manhattan, in tiles.

    scores: metric -> (S,): manhattan (mean error of the likeliest tile), median, accuracy, expected (error of the mean
    position), nll (nats), bits (gained on the training occupancy). intervals: metric -> (S, 2), 95 %, from resampled
    groups. controls: name -> metric -> (S,), with "p": of a Manhattan error as small as the site's; exchanged and
    shifted also "spread", the standard deviation over draws.
    rows: (N,) steps of the recording that were used. tile: (N, 2) where the agent was, from `origin`. episode: (N,)
    ids. held_out: (N,) bool. best: (S, N, 2), expected: (S, N, 2), log_p: (S, N): what was decoded; -1 and NaN where
    never held out. shown: (M,) index into rows; maps: (S, M, W, H) of these. cells: (K, 2) visited tiles.
    decoders: site -> arrays of the decoder refitted to all steps, which `decode` applies.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.5, 4.5)

    decoder: str
    target: str
    sites: tuple[str, ...]  # early to late
    widths: tuple[int, ...]
    steps: int  # held out
    groups: int
    folds: int
    holdout: float
    origin: tuple[int, int]
    shape: tuple[int, int]
    cell: float
    scores: Numbers
    intervals: Numbers
    controls: dict[str, Numbers]
    rows: np.ndarray
    tile: np.ndarray
    episode: np.ndarray
    held_out: np.ndarray
    best: np.ndarray
    expected: np.ndarray
    log_p: np.ndarray
    shown: np.ndarray
    maps: np.ndarray
    cells: np.ndarray
    decoders: dict[str, Numbers]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    def errors(self, site: str) -> np.ndarray:
        """(N,) Manhattan error in tiles of each step; NaN where it was never held out."""
        off = np.abs(self.best[self.sites.index(site)].astype(float) - self.tile).sum(1)
        return np.where(self.held_out, off, np.nan)

    def decode(self, site: str, activations: np.ndarray) -> Decoded:
        """Apply the saved decoder of a site to (n, ...) activations of it, as recorded or imagined."""
        if site not in self.decoders:
            raise ValueError(f"no decoder of {site!r}; there are {', '.join(self.decoders)}")
        model = self.decoders[site]
        x = np.asarray(activations).reshape(len(activations), -1).astype(np.float32)
        width = self.widths[self.sites.index(site)]
        if x.shape[1] != width:
            raise ValueError(f"{site} has {x.shape[1]} units here, {width} where its decoder was made")
        if "mean" in model:
            x = (x - model["mean"]) / model["std"]
            x = x @ model["basis"] if "basis" in model else x
        cells, mean = self.cells.astype(np.int64), None
        every = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), -1).reshape(-1, 2)
        if self.decoder == "ridge":
            cells, mean = every, x @ model["weight"] + model["bias"]
            off = cells - mean[:, None]
            logits = -0.5 * np.einsum("nci,ij,ncj->nc", off, np.linalg.inv(model["covariance"]), off)
        elif self.decoder == "mlp":
            logits = np.maximum(x @ model["w1"] + model["b1"], 0) @ model["w2"] + model["b2"]
        else:
            logits = x @ model["weight"] + model.get("bias", 0)
            cells = every if self.decoder == "prnn" else cells
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        best = cells[p.argmax(1)]
        if mean is None:
            mean = p @ cells
        else:
            best = np.clip(np.rint(mean), 0, np.array(self.shape) - 1).astype(np.int64)
        origin = np.array(self.origin)
        return Decoded(p, cells + origin, best + origin, mean + origin)

    def summary(self) -> str:
        """A table of sites, early to late; then the controls."""
        split = f"{self.holdout:g} of the groups held out" if self.holdout else f"{self.folds} folds"
        lines = [
            f"{self.target} ({self.decoder}; {self.steps} held-out steps, {self.groups} groups, {split}; "
            f"{len(self.cells)} of {self.shape[0]} x {self.shape[1]} tiles visited). Errors are Manhattan, in tiles"
        ]
        refits = [name for name in ("exchanged", "shifted") if name in self.controls]
        header = ["site", "units", "error", "95 % interval", "median", "accuracy", "of mean", "nll", "bits"]
        header += [*refits, *(["untrained"] if "untrained" in self.controls else [])]
        rows = []
        for s, site in enumerate(self.sites):
            low, high = self.intervals["manhattan"][s]
            value = {name: style.number(scores[s]) for name, scores in self.scores.items()}
            row = [site, str(self.widths[s]), value["manhattan"], f"{low:.3f} to {high:.3f}", value["median"],
                   value["accuracy"], value["expected"], value["nll"], value["bits"]]  # fmt: skip
            for name in header[9:]:
                control = self.controls[name]
                row.append(f"{style.number(control['manhattan'][s])} (p {control['p'][s]:.3f})")
            rows.append(row)
        lines += [style.table(header, rows), ""]
        blind = [name for name in self.controls if name not in header]
        header = ["control", "error", "median", "accuracy", "of mean", "nll", "bits"]
        metrics = ("manhattan", "median", "accuracy", "expected", "nll", "bits")
        rows = [[name, *(style.number(self.controls[name][m][0]) for m in metrics)] for name in blind]
        lines.append(style.table(header, rows))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """Scores, intervals and controls as JSON."""
        names = ("decoder", "target", "sites", "widths", "steps", "groups", "folds", "origin", "shape", "scores",
                 "intervals", "controls", "settings", "notes")  # fmt: skip
        return style.as_json({n: getattr(self, n) for n in names} | {"caveats": self.provenance.caveats})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Errors of all sites, early to late: boxes over steps, means with intervals, controls as grey marks."""
        return draw_errors(self, self.axes(ax))

    def plot_occupancy(self, site: str, background: np.ndarray | None = None) -> Any:
        """Visits per tile, mean error per tile, and error against visits. Returns the figure."""
        return draw_occupancy(self, site, background)

    def plot_maps(self, site: str, background: np.ndarray | None = None) -> Any:
        """Probability maps at steps of a held-out episode, on a picture of the grid if given (H, W, 3)."""
        return draw_maps(self, site, background)

    def save_figures(
        self, folder: str | Path, background: np.ndarray | None = None, site: str | None = None
    ) -> list[Path]:
        """layer_comparison, occupancy_vs_error_<site>, probmap_world_<site>, as svg and png, of `site` or the best."""
        site = site or self.sites[int(np.nanargmin(self.scores["manhattan"]))]
        stem = site.replace(".", "_")
        figures = {
            "layer_comparison": self.plot().figure, f"occupancy_vs_error_{stem}": self.plot_occupancy(site, background),
            f"probmap_world_{stem}": self.plot_maps(site, background),
        }  # fmt: skip
        return save_figures(figures, folder, self.provenance.caveats)
