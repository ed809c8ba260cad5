"""What `map_trajectories` found: numbers, figures, films."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from torchmem.analysis import _trajectory_draw as draw
from torchmem.analysis import style
from torchmem.analysis.nulls import spans
from torchmem.result import Result, save_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class TrajectoriesResult(Result):
    """T steps of E episodes, in the order recorded.

    rows: (T,) of the recording. pos: (T, 2). tiled: positions are numbers of tiles (their middle is half a tile on).
    episode: (T,) numbers in the recording. heading: (T,) rad, NaN: unknown. action: (T,), -1: unknown. returns: (E,).
    picture: (h, w, 3) uint8, `pixels` per tile from tile `origin`; source: what it was made from. free: (H, W) bool of
    tiles to stand on, empty where no map tells. visited: (E,) tiles; shuffled: (E,) mean of the same moves in random
    order. view: columns and rows of tiles in sight; turned: seen ahead. actions: names; moves: those that move.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.0, 6.0)

    target: str
    cell: float
    tiled: bool
    rows: np.ndarray
    pos: np.ndarray
    episode: np.ndarray
    heading: np.ndarray
    action: np.ndarray
    returns: np.ndarray
    picture: np.ndarray
    pixels: int
    origin: tuple[int, int]
    free: np.ndarray
    source: str
    visited: np.ndarray
    shuffled: np.ndarray
    view: tuple[int, int]
    turned: bool
    actions: tuple[str, ...]
    moves: tuple[int, ...]
    hz: float
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def pieces(self) -> list[np.ndarray]:
        """The steps of each episode."""
        return spans(self.episode)

    @property
    def places(self) -> np.ndarray:
        """(T, 2) in tiles, where tile i is [i, i + 1)."""
        return self.pos / self.cell + (0.5 if self.tiled else 0.0)

    @property
    def occupancy(self) -> np.ndarray:
        """(W, H) steps in each tile of the picture, from `origin`."""
        shape = np.array(self.picture.shape[1::-1]) // self.pixels
        tile = np.floor(self.places).astype(int) - self.origin
        return np.bincount(tile[:, 0] * shape[1] + tile[:, 1], minlength=shape.prod()).reshape(shape)

    def summary(self) -> str:
        """How long, how far, how much of the world, beside the same moves in random order."""
        seen = self.occupancy
        met = seen[seen > 0] / seen.sum()
        lengths = [len(one) for one in self.pieces]
        text = [f"{len(lengths)} episodes, {len(self.pos)} steps (median {np.median(lengths):g}), "
                f"median return {np.median(self.returns):.2f}"]  # fmt: skip
        text.append(f"tiles visited in an episode: mean {self.visited.mean():.1f}; by the same moves in random order "
                    f"{style.number(float(self.shuffled.mean()), 1)}")  # fmt: skip
        free = f" of {self.free.sum()} where one can stand at first" if self.free.size else ""
        text.append(f"in all episodes: {len(met)} tiles{free}; entropy of the occupancy "
                    f"{-(met * np.log2(met)).sum():.2f} bits")  # fmt: skip
        return "\n".join([*text, *(f"note: {one}" for one in self.notes)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Paths on the map, green where they begin, red where they end."""
        return draw.draw_paths(self, self.axes(ax))

    def save_figures(self, folder: str | Path, recording: Any = None, units: tuple[tuple[str, int], ...] = ()
                     ) -> list[Path]:  # fmt: skip
        """trajectories, heatmap and, with a picture of the world, world, as png and svg under dreamerv3f's names.

        units: (site, unit) pairs of `recording`, whose activity is drawn along the paths. Returns the files.
        """
        figures = {"trajectories": draw.draw_trajectories(self), "heatmap": draw.draw_heatmap(self)}
        if self.source:
            figures["fullworld_overlay" if self.source != "mosaic" else "world_overlay"] = draw.draw_world(self)
        for site, unit in units:
            name = f"{site}_{unit}_activation"
            figures[name] = draw.draw_unit(self, recording, site, unit)
        return save_figures(figures, folder, self.provenance.caveats)  # type: ignore[arg-type]

    def film(
        self, path: str | Path, recording: Any = None, *, kind: Literal["view", "paths"] = "view",
        episode: int | None = None, fps: float = 5.0, window: int = 17, steps: int = 600,
    ) -> Path:  # fmt: skip
        """A film as .gif or .mp4. Returns the file. See `_trajectory_film.py`; raises ValueError."""
        from torchmem.analysis._trajectory_film import write_film

        return write_film(self, Path(path), recording, kind, episode, fps, window, steps)
