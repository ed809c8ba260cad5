"""What `decode_dreams` found: curves over the steps of a dream beside their controls, and the decoded paths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import _dream_draw as draw
from torchmem.analysis import style
from torchmem.files import atomic_write
from torchmem.result import Result, save_figures
from torchmem.video import gif_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REAL = "real"  # the real futures, measured as if they were dreams
Numbers = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DreamResult(Result):
    """C conditions (the last is "real": the futures themselves), H + 1 steps of which index 0 is where dreams begin.

    means, medians: measure -> (C, H + 1); intervals: measure -> (C, H + 1, 2), bootstrap over episodes, of the means.
    pooled, pooled_intervals: measure -> (C,), (C, 2), over the steps 1 to H of all dreams. Measures and units: see
    `_dream_scores.measures`. count: (C, H + 1) dreams. p: (C, H + 1) of a divergence as large as rotated futures give.
    wake_near: median distance of a waking state to those of other episodes. warmup_edges: (K + 1,) steps; by_warmup:
    "mean" (C, K) and "interval" (C, K, 2) of the divergence.
    condition, start, copy, episode, warmup: (N,), tile, real: (N, H + 1, 2) whole tiles, before: (N, B, 2): all paths.
    maps: (M, H + 1, W, H') probabilities of the dreams `shown` (M,), on the grid from `origin`.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.2)

    site: str
    decoder: str
    target: str
    actions: str
    cell: float
    origin: tuple[int, int]
    shape: tuple[int, int]
    conditions: tuple[str, ...]
    means: Numbers
    intervals: Numbers
    medians: Numbers
    pooled: Numbers
    pooled_intervals: Numbers
    count: np.ndarray
    p: np.ndarray
    rotations: int
    wake_near: float
    warmup_edges: np.ndarray
    by_warmup: Numbers
    condition: np.ndarray
    start: np.ndarray
    copy: np.ndarray
    episode: np.ndarray
    warmup: np.ndarray
    tile: np.ndarray
    real: np.ndarray
    before: np.ndarray
    shown: np.ndarray
    maps: np.ndarray
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def horizon(self) -> int:
        """H."""
        return self.tile.shape[1] - 1

    def index(self, condition: str) -> int:
        """Its place in `conditions`. Raises ValueError naming those there are."""
        if condition not in self.conditions:
            raise ValueError(f"no condition {condition!r}; there are {', '.join(self.conditions)}")
        return self.conditions.index(condition)

    def summary(self) -> str:
        """Divergence beside chance at four steps; then continuity and distance to waking states."""
        dreams = self.condition < len(self.conditions) - 1
        lines = [
            f"dreams of {self.horizon} steps, {self.actions} actions, decoded from {self.site} ({self.decoder}): "
            f"{len(np.unique(self.start))} starts in {len(np.unique(self.episode))} episodes, {int(dreams.sum())} "
            f"rows; {self.rotations} rotations. Distances in tiles, mean [95 %]"
        ]
        at = [0, *dict.fromkeys(int(h) for h in np.linspace(1, self.horizon, min(3, self.horizon)).round())]
        header = ["condition", "step", "dreams", "divergence", "rotated future", "p", "stand still", "spread"]
        rows = []
        for c, name in enumerate(self.conditions[:-1]):
            for h in at:
                if not self.count[c, h]:
                    continue
                rows.append([name, str(h), str(int(self.count[c, h])), self._with("divergence", c, h),
                             self._with("chance", c, h), style.number(self.p[c, h]),
                             *(style.number(self.means[m][c, h]) for m in ("stay", "spread"))])  # fmt: skip
        lines += [style.table(header, rows), ""]
        header = ["condition", "length of a step", "to another dream", "stays put", "length of a jump", "leaps",
                  "to waking states"]  # fmt: skip
        rows = []
        for c, name in enumerate(self.conditions):
            low, high = self.pooled_intervals["step"][c]
            step = f"{style.number(self.pooled['step'][c])} [{style.number(low)}, {style.number(high)}]"
            rows.append([name, step, *(style.number(self.pooled[m][c]) for m in
                                       ("elsewhere", "stay_put", "jump", "leap", "near"))])  # fmt: skip
        lines.append(style.table(header, rows))
        lines.append(f"waking states to those of other episodes: {style.number(self.wake_near)} (median)")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _with(self, measure: str, c: int, h: int) -> str:
        low, high = self.intervals[measure][c, h]
        return f"{style.number(self.means[measure][c, h])} [{style.number(low)}, {style.number(high)}]"

    def to_json(self) -> str:
        """Curves, intervals and settings as JSON."""
        names = ("site", "decoder", "target", "actions", "conditions", "means", "intervals", "medians", "pooled",
                 "pooled_intervals", "count", "p", "rotations", "wake_near", "warmup_edges", "by_warmup", "settings",
                 "notes")  # fmt: skip
        return style.as_json({n: getattr(self, n) for n in names} | {"caveats": self.provenance.caveats})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Divergence from the real future by step of the dream, beside its controls."""
        return draw.draw_divergence(self, self.axes(ax))

    def save_figures(self, folder: str | Path, background: np.ndarray | None = None) -> list[Path]:
        """Figures under the names of dreamerv3f as svg and png, and dreams.gif; background: a picture of the grid.

        divergence_vs_horizon, dream_vs_real, dream_trajectories_world, dream_probmap_1 and following (4 at most),
        continuity, seed_ablation, error_vs_warmup.
        """
        figures = {
            "divergence_vs_horizon": self.plot().figure, "dream_vs_real": draw.draw_futures(self),
            "dream_trajectories_world": draw.draw_world(self, background), "continuity": draw.draw_continuity(self),
            "seed_ablation": draw.draw_ablation(self), "error_vs_warmup": draw.draw_warmup(self),
        }  # fmt: skip
        for number in range(min(4, len(self.maps))):
            figures[f"dream_probmap_{number + 1}"] = draw.draw_maps(self, number, background)
        made = save_figures(figures, folder, self.provenance.caveats)
        if len(self.maps):
            made.append(atomic_write(Path(folder) / "dreams.gif", gif_bytes(draw.film(self), 4)))
        return made
